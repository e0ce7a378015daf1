from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from solowire.errors import BufferFull, ConfigError
from solowire.sdk.publisher import PublisherStats
from solowire.sources.files import log_agent
from solowire.sources.files.file_follower import LINE_BYTES, READ_BYTES, FileFollower
from solowire.sources.files.held_files import FILES_HELD, HeldFiles
from tests.support.examples import examples
from tests.support.query_log_agent import run_bind9
from tests.support.query_logs import add, read_all, until


def held(log: Path) -> int:
    """How many descriptors this process has of files beside or in place of the log, removed ones too."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith(f"{log.parent}/")
    return found


def test_begins_at_the_end(log: Path) -> None:
    """What the file held before isn't read, nor the rest of a line that was begun before."""
    add(log, "old\nbegun be")
    follower = FileFollower(log)
    add(log, "fore\nnew\n")
    assert read_all(follower) == ["new"]


def test_begins_at_the_start_if_asked(log: Path) -> None:
    """from_start reads what the file held before."""
    add(log, "old\n")
    follower = FileFollower(log, from_start=True)
    add(log, "new\n")
    assert read_all(follower) == ["old", "new"]


def test_a_file_that_comes_later_is_read_from_its_start(log: Path) -> None:
    """A file that isn't there yet is waited for and read whole."""
    follower = FileFollower(log)
    assert follower.read() == []
    add(log, "first\n")
    assert read_all(follower) == ["first"]


def test_a_partial_line_waits_for_its_newline(log: Path) -> None:
    """A line written in pieces, split even within a character, is handed out once and whole."""
    follower = FileFollower(log)
    written = "grün\nrest".encode()
    seen = []
    for place in range(len(written)):
        add(log, written[place : place + 1])
        seen += follower.read()
    assert seen == ["grün"]
    add(log, "\n")
    assert follower.read() == ["rest"]


def test_invalid_utf8_is_replaced(log: Path) -> None:
    """Bytes that are not UTF-8 raise nothing."""
    follower = FileFollower(log)
    add(log, b"a\xff\xfeb\n")
    assert follower.read() == ["a\ufffd\ufffdb"]


def test_a_call_reads_a_bounded_amount(log: Path) -> None:
    """A large backlog is read in pieces of READ_BYTES at most, and nothing of it is lost."""
    line = "x" * 99
    add(log, f"{line}\n" * 10_000)
    follower = FileFollower(log, from_start=True)
    first = follower.read()
    assert len(first) == READ_BYTES // 100
    assert first + read_all(follower) == [line] * 10_000


@pytest.mark.parametrize("pieces", [1, 7])
def test_overlong_lines_are_dropped_and_counted(log: Path, pieces: int) -> None:
    """A line over LINE_BYTES is dropped and counted once, however it arrives, and its neighbours are kept."""
    follower = FileFollower(log)
    longest = "y" * LINE_BYTES
    text = f"before\n{'x' * (5 * READ_BYTES)}\nbetween\n{'x' * (LINE_BYTES + 1)}\n{longest}\nafter\n"
    size = len(text) // pieces + 1
    seen = []
    for start in range(0, len(text), size):
        add(log, text[start : start + size])
        for _ in range(10):
            seen += follower.read()
    assert seen == ["before", "between", longest, "after"]
    assert follower.dropped == 2


def test_rotation_reads_the_old_file_to_its_end_first(log: Path) -> None:
    """Lines unread at the rename come before those of the new file."""
    follower = FileFollower(log)
    add(log, "1\n")
    assert follower.read() == ["1"]
    add(log, "2\n")
    log.rename(log.with_suffix(".0"))
    add(log, "3\n")
    assert read_all(follower) == ["2", "3"]


def test_the_writer_may_go_on_in_the_old_file(log: Path) -> None:
    """While the new file is empty (logrotate's `create`) what is still written to the old one is read."""
    follower = FileFollower(log)
    old = log.with_suffix(".0")
    add(log, "1\n")
    assert read_all(follower) == ["1"]
    log.rename(old)
    log.touch()
    assert read_all(follower) == []
    add(old, "2\n")
    assert read_all(follower) == ["2"]
    add(old, "3\n")
    add(log, "4\n")
    assert read_all(follower) == ["3", "4"]


def test_the_end_of_an_old_file_is_not_joined_to_the_new_one(log: Path) -> None:
    """A last line without a newline is handed out by itself when its file is over."""
    follower = FileFollower(log)
    add(log, "cut")
    assert follower.read() == []
    log.rename(log.with_suffix(".0"))
    add(log, "new\n")
    assert read_all(follower) == ["cut", "new"]


def test_rotations_that_are_noticed_are_all_read(log: Path) -> None:
    """Rotations without a read lose nothing, up to FILES_HELD, not even if the old files are deleted."""
    follower = FileFollower(log)
    for number in range(FILES_HELD + 3):
        add(log, f"{number}\n")
        follower.files.hold_new_files()
        log.unlink()
    add(log, "last\n")
    assert read_all(follower) == [str(number) for number in range(FILES_HELD)] + ["last"]


def test_truncation_starts_again(log: Path) -> None:
    """After a copytruncate the file is read from its start."""
    follower = FileFollower(log)
    add(log, "one\ntwo\n")
    assert follower.read() == ["one", "two"]
    os.truncate(log, 0)
    assert follower.read() == []
    add(log, "three\n")
    assert read_all(follower) == ["three"]


def test_truncation_is_seen_though_the_file_has_grown_past_the_place(log: Path) -> None:
    """A file that was truncated and has outgrown its former size between two reads is read from its start."""
    follower = FileFollower(log)
    add(log, "one\ntwo\n")
    assert follower.read() == ["one", "two"]
    os.truncate(log, 0)
    add(log, "three\nfour\nfive\n")
    assert read_all(follower) == ["three", "four", "five"]


def test_what_cannot_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    """A directory, or a pipe, in the log's place raises OSError at once."""
    with pytest.raises(OSError, match="not a regular file"):
        FileFollower(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        FileFollower(tmp_path / "pipe")


def test_trouble_later_does_not_stop_the_old_file(log: Path) -> None:
    """If the path's new file can't be opened, the old one is followed on, and `trouble` says why."""
    follower = FileFollower(log)
    add(log, "1\n")
    assert follower.read() == ["1"]
    old = log.with_suffix(".0")
    log.rename(old)
    log.mkdir()
    add(old, "2\n")
    assert follower.read() == ["2"]
    assert follower.files.trouble is not None
    log.rmdir()
    add(log, "3\n")
    assert read_all(follower) == ["3"]
    assert follower.files.trouble is None


def test_close_lets_go_of_the_files(log: Path) -> None:
    """close() leaves no descriptor open, and may be called twice."""
    add(log, "1\n")
    follower = FileFollower(log)
    assert held(log) == 1
    follower.close()
    follower.close()
    assert held(log) == 0


def test_many_rotations_of_a_quiet_log_lose_nothing(tmp_path: Path) -> None:
    """A server that is silent through a dozen rotations is heard again, even if it still writes to the last file."""
    path = tmp_path / "log"
    path.touch()
    follower = FileFollower(path)
    for number in range(12):
        path.rename(tmp_path / f"log.{number}")
        path.touch()
        assert follower.read() == []
    with path.open("a") as old:
        path.rename(tmp_path / "log.12")
        path.touch()
        follower.files.hold_new_files()
        old.write("late\n")
    path.write_text("new\n")
    assert follower.read() + follower.read() == ["late", "new"]
    follower.close()


class FollowedLog(RuleBasedStateMachine):
    """Any order of writes, rotations, truncations and reads: every line comes once and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = tempfile.TemporaryDirectory()
        self.path = Path(self.dir.name) / "log"
        self.writing = self.path.open("ab", buffering=0)
        self.follower = FileFollower(self.path)
        self.rotations = 0
        self.number = 0
        self.written: list[str] = []
        self.half = b""
        self.seen: list[str] = []

    @rule(count=st.integers(1, 5), pad=st.integers(0, 200))
    def write(self, count: int, pad: int) -> None:
        for _ in range(count):
            self.number += 1
            line = f"{self.number}:{'x' * pad}"
            if self.half:
                line = self.half.decode() + line
                self.writing.write(line[len(self.half) :].encode() + b"\n")
                self.half = b""
            else:
                self.writing.write(line.encode() + b"\n")
            self.written.append(line)

    @precondition(lambda self: not self.half)
    @rule()
    def write_half(self) -> None:
        self.number += 1
        self.half = f"half {self.number} ".encode()
        self.writing.write(self.half)

    @precondition(lambda self: not self.half)
    @rule(linger=st.booleans())
    def rotate(self, linger: bool) -> None:
        self.rotations += 1
        self.path.rename(self.path.with_suffix(f".{self.rotations}"))
        if linger:  # the new file is there, the writer still in the old one
            self.path.touch()
            self.follower.files.hold_new_files()
            self.write(1, 3)
        self.writing.close()
        self.writing = self.path.open("ab", buffering=0)
        self.read_to_the_end()

    @precondition(lambda self: not self.half)
    @rule(then=st.integers(0, 5))
    def truncate(self, then: int) -> None:
        self.read_to_the_end()  # what isn't read by then is gone, whoever follows
        os.truncate(self.path, 0)
        if then:
            self.write(then, 50)

    @rule()
    def read(self) -> None:
        self.seen += self.follower.read()

    @rule()
    def read_to_the_end(self) -> None:
        self.seen += read_all(self.follower)
        assert self.seen == self.written

    @invariant()
    def every_line_once_and_in_order(self) -> None:
        assert self.seen == self.written[: len(self.seen)]

    def teardown(self) -> None:
        self.read_to_the_end()
        self.follower.close()
        self.writing.close()
        self.dir.cleanup()


TestFollowedLog = FollowedLog.TestCase
TestFollowedLog.settings = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)


# The agent's loop, with a publisher in memory.

LINE = "2026-11-23T11:33:34.500Z client @0x7f 127.0.0.1#56031 ({0}): query: {0} IN A +E(0)K (127.0.0.1)\n"


class Memory:
    """A publisher that holds `limit` events until `empty` is set."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0
        self.empty = asyncio.Event()
        self.events: list[tuple[str, dict[str, Any], str | None, str | None]] = []
        self.ids: list[str | None] = []
        self.stats = PublisherStats()

    async def publish(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
    ) -> None:
        if self.held >= self.limit:
            self.refused += 1
            raise BufferFull(self.limit)
        self.held += 1
        self.events.append((type, data, timestamp, source))
        self.ids.append(id)

    async def drain(self) -> None:
        if self.held >= self.limit:
            await self.empty.wait()
        self.held = 0
        self.stats.accepted = len(self.events)

    def names(self) -> list[str]:
        return [data["query_domain"] for _, data, _, _ in self.events]


async def test_the_agent_publishes_queries_and_skips_the_rest(log: Path) -> None:
    """Queries become events with time, source and zone; other lines are counted; the counts are logged."""
    add(log, LINE.format("www.z.example") + "all zones loaded\n" + LINE.format("other.example"))
    publisher, stop = Memory(), asyncio.Event()
    with capture_logs() as logs:
        agent = asyncio.create_task(
            run_bind9(log, publisher, server="ns1", from_start=True, zones=["z.example"], stop=stop)
        )
        await until(lambda: len(publisher.events) == 2)
        stop.set()
        await agent
    type, data, timestamp, source = publisher.events[0]
    assert (type, timestamp, source) == ("dns_query_log", "2026-11-23T11:33:34.500Z", "ns1")
    assert data["zone"] == "z.example"
    assert "zone" not in publisher.events[1][1]
    counts = {
        "log": "query_log",
        "lines": 3,
        "events": 2,
        "skipped": 1,
        "dropped": 0,
        "passed_over": 0,
        "waited_s": 0.0,
    }
    assert logs == [{"event": "log_file_progress", "log_level": "info", "server": "ns1", **counts}]


async def test_the_agent_reports_as_time_passes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are logged every REPORT_S while the agent runs."""
    monkeypatch.setattr(log_agent, "REPORT_S", 0.01)
    stop = asyncio.Event()
    with capture_logs() as logs:
        agent = asyncio.create_task(run_bind9(log, Memory(), server="ns1", from_start=True, zones=[], stop=stop))
        await until(lambda: len(logs) >= 2)
        stop.set()
        await agent


async def test_a_full_publisher_loses_nothing(log: Path) -> None:
    """While the publisher is full the agent waits, across two rotations; then it publishes all in order."""
    publisher, stop = Memory(limit=3), asyncio.Event()
    agent = asyncio.create_task(run_bind9(log, publisher, server="ns1", from_start=True, zones=[], stop=stop))
    names = [f"n{number}.example" for number in range(30)]
    add(log, "".join(LINE.format(name) for name in names[:10]))
    await until(lambda: publisher.refused > 0)
    for start in (10, 20):
        os.unlink(log)
        add(log, "".join(LINE.format(name) for name in names[start : start + 10]))
        await until(lambda files=1 + start // 10: held(log) == files)  # type: ignore[misc]
    assert publisher.names() == names[:3]
    publisher.empty.set()
    await until(lambda: len(publisher.events) == len(names))
    assert publisher.names() == names
    stop.set()
    await agent


async def test_the_agent_says_what_it_could_not_hold_on_to(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the publisher is full for longer than rotated files can be held, the lost ones are counted and told."""
    publisher, stop, looks = Memory(limit=1), asyncio.Event(), [0]
    look = HeldFiles.hold_new_files

    def count_look(files: HeldFiles) -> None:
        look(files)
        looks[0] += 1

    monkeypatch.setattr(HeldFiles, "hold_new_files", count_look)
    add(log, LINE.format("a.example") * 2)
    with capture_logs() as logs:
        agent = asyncio.create_task(run_bind9(log, publisher, server="ns1", from_start=True, zones=[], stop=stop))
        await until(lambda: publisher.refused > 0)
        for number in range(FILES_HELD + 2):
            before = held(log)
            os.rename(log, f"{log}.{number}")  # so that no inode is used again
            add(log, LINE.format(f"n{number}.example"))
            if number < FILES_HELD - 1:
                await until(lambda before=before: held(log) > before)  # type: ignore[misc]
            else:  # there is no room: it waits beside the log, once the agent has looked
                seen = looks[0]
                await until(lambda seen=seen: looks[0] >= seen + 2)  # type: ignore[misc]
        publisher.limit = 1_000
        publisher.empty.set()
        await until(lambda: publisher.names()[-1] == f"n{FILES_HELD + 1}.example")
        stop.set()
        await agent
    assert [entry["files"] for entry in logs if entry["event"] == "log_file_lines_lost"] == [1]
    assert (logs[-1]["passed_over"], logs[-1]["waited_s"] > 0) == (1, True)
    assert len(publisher.events) == 2 + FILES_HELD + 1


async def test_the_agent_stops_while_the_publisher_is_full(log: Path) -> None:
    """`stop` ends the agent also when the gateway never takes another event."""
    add(log, LINE.format("a.example") * 5)
    publisher, stop = Memory(limit=1), asyncio.Event()
    agent = asyncio.create_task(run_bind9(log, publisher, server="ns1", from_start=True, zones=[], stop=stop))
    await until(lambda: publisher.refused > 0)
    stop.set()
    await asyncio.wait_for(agent, 30)
    assert len(publisher.events) == 1


async def test_a_failing_drain_ends_the_agent(log: Path) -> None:
    """What drain() raises reaches the agent's caller and is not taken for room."""

    class Broken(Memory):
        async def drain(self) -> None:
            raise RuntimeError("closed")

    add(log, LINE.format("a.example") * 2)
    with pytest.raises(RuntimeError, match="closed"):
        await run_bind9(log, Broken(limit=1), server="ns1", from_start=True, zones=[], stop=asyncio.Event())


async def test_an_unreadable_log_is_a_configuration_error(tmp_path: Path) -> None:
    """A directory in the log's place is a ConfigError of one line that names it."""
    with pytest.raises(ConfigError, match=f"^the query log {tmp_path} can't be read: .*$"):
        await run_bind9(tmp_path, Memory(), server="ns1", from_start=True, zones=[], stop=asyncio.Event())


async def test_trouble_is_told_once(log: Path) -> None:
    """A path that can't be opened any more is logged once, and once when it can again."""
    add(log, LINE.format("a.example"))
    publisher, stop = Memory(), asyncio.Event()
    with capture_logs() as logs:
        agent = asyncio.create_task(run_bind9(log, publisher, server="ns1", from_start=True, zones=[], stop=stop))
        await until(lambda: len(publisher.events) == 1)
        os.unlink(log)
        os.mkdir(log)
        await until(lambda: len(logs) == 1)
        os.rmdir(log)
        add(log, LINE.format("b.example"))
        await until(lambda: len(publisher.events) == 2)
        stop.set()
        await agent
    assert [entry["event"] for entry in logs] == ["log_file_open_failed", "log_file_reopened", "log_file_progress"]
