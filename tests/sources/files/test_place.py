"""The follower's place in a log, over restarts, rotations and truncations in any order."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from solowire.sources.files import held_files
from solowire.sources.files.checkpoint import Checkpoint
from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.log_file import Line, Place
from tests.support.examples import examples
from tests.support.query_logs import add, copytruncate, read_lines, reopen


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def ids(lines: list[Line]) -> list[str]:
    return [line.file.make_event_id(line.start, "ns1") for line in lines]


def test_goes_on_behind_what_was_acknowledged(log: Path) -> None:
    """After a restart the lines that were not acknowledged come again, with the same ids, and then the new ones."""
    add(log, "1\n2\n3\n")
    follower = FileFollower(log, from_start=True)
    before = read_lines(follower)
    add(log, "4\n")
    follower = reopen(follower, before[0])
    after = read_lines(follower)
    assert texts(after) == ["2", "3", "4"]
    assert ids(after)[:2] == ids(before)[1:]
    assert len({*ids(before), *ids(after)}) == 4
    follower.close()


def test_what_is_written_meanwhile_is_read(log: Path) -> None:
    """A follower that began at the end, or before there was a file, goes on from there after a restart."""
    follower = reopen(FileFollower(log))
    add(log, "1\n")
    assert texts(read_lines(follower)) == ["1"]
    follower = reopen(follower)
    add(log, "2\n")
    assert texts(read_lines(follower)) == ["2"]
    follower.close()


def test_a_half_written_line_is_read_whole_after_a_restart(log: Path) -> None:
    """A line whose first half was read before the restart is not cut, nor dropped if its file was rotated."""
    add(log, "1\nha")
    follower = FileFollower(log, from_start=True)
    assert texts(read_lines(follower)) == ["1"]
    follower = reopen(follower)
    add(log, "lf\n2\ncu")
    assert texts(read_lines(follower)) == ["half", "2"]
    follower = reopen(follower)
    add(log, "t")
    log.rename(f"{log}.0")
    add(log, "3\n")
    assert texts(read_lines(follower)) == ["cut", "3"]
    follower.close()


@pytest.mark.parametrize("names", [("2", "1", "0"), ("-20261121", "-20261122", "-20261123"), ("a", "b", "c")])
def test_all_rotated_files_since_are_read_in_order(log: Path, names: tuple[str, ...]) -> None:
    """Whatever rotated files are called, the rest of the last one and all after it come, and nothing before it."""
    add(log, "old\n")
    log.rename(f"{log}.{names[0]}")
    os.utime(f"{log}.{names[0]}", (1, 1))
    add(log, "1\n")
    follower = FileFollower(log, from_start=True)
    assert texts(read_lines(follower)) == ["1"]
    add(log, "2\n")
    log.rename(f"{log}.{names[1]}")
    os.utime(f"{log}.{names[1]}", (2_000_000_000, 2_000_000_000))
    add(log, "3\n")
    log.rename(f"{log}.{names[2]}")
    os.utime(f"{log}.{names[2]}", (2_000_000_001, 2_000_000_001))
    add(log, "4\n")
    os.utime(log, (2_000_000_002, 2_000_000_002))
    follower = reopen(follower)
    assert texts(read_lines(follower)) == ["2", "3", "4"]
    assert not follower.files.losses
    follower.close()


@pytest.mark.parametrize("name", ["2026-12-{}.log", "queries.202612{}", "q-2026-12-{}T0000.log"])
def test_the_rest_of_the_file_of_another_day_is_read(tmp_path: Path, name: str) -> None:
    """A link leads to another file each day: what was written to those before, and not read, is not lost."""
    log = tmp_path / "current"
    first, second, third = (tmp_path / name.format(day) for day in ("02", "03", "04"))
    log.symlink_to(first)
    add(first, "1\n2\n")
    follower = FileFollower(log, from_start=True)
    read_lines(follower)
    mark = follower.files.make_checkpoint(follower.current_place(), "ns1")
    follower.close()
    add(first, "3\n")
    add(second, "4\n")
    add(third, "5\n")
    log.unlink()
    log.symlink_to(third)
    follower = FileFollower(log, checkpoint=mark)
    assert texts(read_lines(follower)) == ["3", "4", "5"]
    assert follower.files.losses == []
    follower.close()


def test_the_rest_of_a_truncated_file_is_read_from_its_copy(log: Path) -> None:
    """After copytruncate the copy gives what was not read before, while the follower runs and while it doesn't."""
    follower = FileFollower(log)
    for restarts in (False, True, False):
        add(log, "1\n")
        assert texts(read_lines(follower)) == ["1"]
        add(log, "2\nha")
        copytruncate(log, "1")
        add(log, "3\n")
        if restarts:
            follower = reopen(follower)
        assert texts(read_lines(follower)) == ["2", "ha", "3"]
        assert not [loss for loss in follower.files.losses if loss.size or not loss.is_all]
    follower.close()


def test_a_copy_of_what_waits_unread_is_taken_though_nothing_was_read(log: Path) -> None:
    """A file that the follower has only looked at is found in its copy, too."""
    follower = FileFollower(log)
    add(log, "1\n2\n")
    follower.files.hold_new_files()
    copytruncate(log, "1")
    follower.files.hold_new_files()
    add(log, "3\n4\n")
    follower.files.hold_new_files()
    os.rename(f"{log}.1", f"{log}.2")
    copytruncate(log, "1")
    add(log, "5\n")
    assert texts(read_lines(follower)) == ["1", "2", "3", "4", "5"]
    follower.close()


def test_the_same_lines_after_a_truncation_are_other_events(log: Path) -> None:
    """Without times in the log a new file may begin, and go on, just as the old one did: its ids are others."""
    follower = FileFollower(log)
    seen: list[str] = []
    for _ in range(4):
        add(log, "same\nsame\n")
        seen += ids(read_lines(follower))
        os.truncate(log, 0)
        follower.files.hold_new_files()
        follower = reopen(follower)
    assert len(set(seen)) == 8
    follower.close()


def test_a_truncation_without_a_copy_is_counted(log: Path) -> None:
    """What is known to have been there, and can't be read any more, is counted in bytes."""
    follower = FileFollower(log)
    add(log, "1\n")
    read_lines(follower)
    add(log, "22\n333\n")
    follower.files.hold_new_files()
    os.truncate(log, 0)
    add(log, "4\n")
    assert texts(read_lines(follower)) == ["4"]
    assert [(loss.reason, loss.size, loss.is_all) for loss in follower.files.losses] == [("truncated", 7, False)]
    assert follower.files.lost_bytes == 7
    follower.close()


def test_a_place_that_is_gone_is_said(log: Path) -> None:
    """If the file that was read last is nowhere, all that is newer is read, and that something may be lost is said."""
    add(log, "1\n")
    follower = FileFollower(log, from_start=True)
    read_lines(follower)
    log.rename(f"{log}.1")
    add(log, "2\n")
    os.unlink(f"{log}.1")
    log.rename(f"{log}.0")
    add(log, "3\n")
    follower = reopen(follower)
    assert texts(read_lines(follower)) == ["2", "3"]
    assert [(loss.files, loss.is_all) for loss in follower.files.losses] == [(0, False)]
    follower.close()


def test_an_inode_that_is_used_again_is_another_file(log: Path) -> None:
    """A new file with the old one's inode is read from its start."""
    add(log, "1\n" * 10)
    follower = FileFollower(log, from_start=True)
    read_lines(follower)
    checkpoint = follower.files.make_checkpoint(follower.current_place(), "ns1")
    follower.close()
    log.write_text("other\n" * 10)
    follower = FileFollower(log, checkpoint=checkpoint)
    assert texts(read_lines(follower)) == ["other"] * 10
    follower.close()


def test_files_between_two_looks_are_found(log: Path) -> None:
    """Rotated several times between two looks, as by a fast server: all files are read, and none is missed."""
    watch = DirectoryWatch(log)
    follower = FileFollower(log, watch=watch)
    number, written, seen = 0, [], []
    for rotations in (1, 3, 2, 0, 4):
        for _ in range(rotations):
            for old in range(8, -1, -1):
                if os.path.exists(f"{log}.{old}"):
                    os.rename(f"{log}.{old}", f"{log}.{old + 1}")
            number += 1
            written.append(f"line {number}")
            add(log, f"line {number}\n")
            log.rename(f"{log}.0")
        seen += texts(read_lines(follower))
    add(log, "last\n")
    assert seen + texts(read_lines(follower)) == [*written, "last"]
    assert follower.files.losses == []
    follower.close()
    watch.close()


def test_files_that_came_and_went_unseen_are_counted(log: Path) -> None:
    """Files that were removed before anybody looked are lost, and how many is known exactly."""
    watch = DirectoryWatch(log)
    add(log, "1\n")
    follower = FileFollower(log, from_start=True, watch=watch)
    for _ in range(3):
        log.unlink()
        add(log, "unseen\n")
    assert texts(read_lines(follower)) == ["1", "unseen"]
    assert [loss.files for loss in follower.files.losses] == [2]
    assert follower.files.passed_over == 2
    follower.close()
    watch.close()


def test_removed_files_that_wait_take_no_more_than_their_share_of_the_disk(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that are held open and that nobody else has any more the oldest are let go, and counted."""
    monkeypatch.setattr(held_files, "REMOVED_BYTES", 10)
    follower = FileFollower(log)
    for number in range(8):
        add(log, f"{number}\n")
        follower.files.hold_new_files()
        log.unlink()
    add(log, "last\n")
    lines = texts(read_lines(follower))
    assert lines == ["3", "4", "5", "6", "7", "last"]
    assert (follower.files.passed_over, follower.files.lost_bytes) == (3, 6)
    follower.close()


class Places(RuleBasedStateMachine):
    """Any order of writes, rotations, copies, truncations, looks, reads and kills: with the ids that the gateway keeps
    apart, every line is one event, and in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dir = tempfile.TemporaryDirectory()
        self.path = Path(self.dir.name) / "log"
        self.watch: DirectoryWatch | None = None
        self.written: list[str] = []
        self.half = ""
        self.published: dict[str, str] = {}
        self.handed_out: list[Line] = []  # not acknowledged
        self.place: Place | None = None
        self.last_rotated: list[Path] = []

    @initialize(watching=st.booleans())
    def begin(self, watching: bool) -> None:
        self.watch = DirectoryWatch(self.path) if watching else None
        self.follower = FileFollower(self.path, watch=self.watch)
        self.place = self.follower.current_place()

    @rule(count=st.integers(1, 4), same=st.booleans(), pad=st.sampled_from([0, 0, 50, 3000]))
    def write(self, count: int, same: bool, pad: int) -> None:
        for _ in range(count):
            # Files that begin alike, and have the same inode, can't be told apart after a restart.
            same = same and self.path.exists() and self.path.stat().st_size > 0
            line = "same" if same else f"{len(self.written)} {'x' * pad}"
            add(self.path, line + "\n")
            self.written.append(self.half + line)
            self.half = ""

    @precondition(lambda self: not self.half)
    @rule()
    def write_half(self) -> None:
        self.half = f"half {len(self.written)} "
        add(self.path, self.half)

    @precondition(lambda self: self.path.exists())
    @rule(looks=st.booleans())
    def rotate(self, looks: bool) -> None:
        self.end_half()
        self.shift()
        self.path.rename(f"{self.path}.0")
        if looks:
            self.follower.files.hold_new_files()

    @precondition(lambda self: self.path.exists())
    @rule(looks=st.booleans())
    def copy_and_truncate(self, looks: bool) -> None:
        self.follower.files.hold_new_files()  # of a file of which nothing was ever seen no copy can be known
        self.end_half()
        self.shift()
        copytruncate(self.path, "0")
        # Two generations in one look can't be told apart if they begin alike.
        self.follower.files.hold_new_files()

    @rule()
    def notice(self) -> None:
        self.follower.files.hold_new_files()

    @rule(whole=st.booleans())
    def read(self, whole: bool) -> None:
        for line in read_lines(self.follower) if whole else self.follower.read_lines():
            id = line.file.make_event_id(line.start, "ns1")
            assert self.published.setdefault(id, line.text) == line.text
            self.handed_out.append(line)
        if whole:
            self.check()

    @rule(part=st.floats(0, 1))
    def acknowledge(self, part: float) -> None:
        count = round(part * len(self.handed_out))
        if count:
            line = self.handed_out[count - 1]
            self.place = Place(line.file, line.end)
            del self.handed_out[:count]
        if not self.handed_out and self.follower.current_place() is not None:
            self.place = self.follower.current_place()

    @rule()
    def kill(self) -> None:
        written = msgspec.json.encode(self.follower.files.make_checkpoint(self.place, "ns1"))
        self.follower.close()
        if self.watch is not None:
            self.watch.close()
            self.watch = DirectoryWatch(self.path)
        checkpoint = msgspec.json.decode(written, type=Checkpoint)
        self.follower = FileFollower(self.path, checkpoint=checkpoint, watch=self.watch)
        self.handed_out.clear()
        if self.follower.current_place() is not None:
            self.place = self.follower.current_place()

    def end_half(self) -> None:
        if self.half:
            self.written.append(self.half)
            self.half = ""

    def shift(self) -> None:
        for number in range(60, -1, -1):
            if os.path.exists(f"{self.path}.{number}"):
                os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")

    def check(self) -> None:
        expected = self.written
        # A last half line of a file that has no successor yet is still open.
        found = list(self.published.values())
        assert found == expected[: len(found)]
        if self.path.exists():  # else the last ones are found with the next file
            assert len(found) >= len(expected) - 1

    def teardown(self) -> None:
        try:
            self.write(1, False, 0)
            self.read(True)
            assert list(self.published.values()) == self.written
        finally:
            self.follower.close()
            if self.watch is not None:
                self.watch.close()
            self.dir.cleanup()


TestPlaces = Places.TestCase
TestPlaces.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
