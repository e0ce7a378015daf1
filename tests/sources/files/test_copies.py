"""Copies of a log, truncations that nobody sees, and holes: each line once, whatever else has what it says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from solowire.sources.files.file_follower import FileFollower
from tests.support.query_logs import add, copytruncate, read_all, reopen


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("emptied", [False, True], ids=["new", "truncated"])
def test_what_came_and_was_truncated_while_the_log_seemed_empty(
    log: Path, times: int, restarts: bool, emptied: bool
) -> None:
    """An empty file that was written to and truncated between two looks, or two starts, is read from its copies."""
    add(log, "")
    follower = FileFollower(log, from_start=True)
    if emptied:
        add(log, "0\n")
        assert read_all(follower) == ["0"]
        copytruncate(log, "9")
    assert read_all(follower) == []

    def go_on() -> None:
        for number in range(times):
            add(log, f"{number} a\n{number} b\n")
            copytruncate(log, str(times - number))
        add(log, "last\n")

    if restarts:
        follower = reopen(follower, meanwhile=go_on)
    else:
        go_on()
    expected = [f"{number} {letter}" for number in range(times) for letter in "ab"]
    assert read_all(follower) == [*expected, "last"]
    assert read_all(reopen(follower)) == []


def test_a_truncation_before_anything_was_read(log: Path) -> None:
    """What the file held when it was opened is read from its copy, though the file is longer again by now."""
    add(log, "1\n")
    follower = FileFollower(log, from_start=True)
    copytruncate(log, "1")
    add(log, "2\n3\n")
    assert read_all(follower) == ["1", "2", "3"]
    follower.close()


def test_a_truncation_is_seen_though_the_last_lines_are_the_same(log: Path) -> None:
    """Without times in the log its lines may be alike: that it begins in another way tells."""
    tail = "the same query\n" * 20
    add(log, "1\n" + tail)
    follower = FileFollower(log, from_start=True)
    assert len(read_all(follower)) == 21
    log.write_text("2\n" + tail)
    assert read_all(follower) == ["2", *tail.splitlines()]
    follower.close()


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("name", ["query.log.1", "query.log-20261123", "query.log.bak"])
def test_a_log_that_is_copied_and_removed(log: Path, name: str, looks: bool) -> None:
    """As `mv` does it from one file system to another, and logrotate's `renamecopy`: the copy is not read once more."""
    add(log, "1\n2\n")
    follower = FileFollower(log, from_start=True)
    if looks:
        assert read_all(follower) == ["1", "2"]
    shutil.copy2(log, log.with_name(name))
    log.unlink()
    add(log, "3\n")
    assert read_all(follower) == ([] if looks else ["1", "2"]) + ["3"]
    assert read_all(reopen(follower)) == []


def test_a_backup_that_somebody_makes(log: Path) -> None:
    """A copy of the growing log beside it, before or after the next rotation, makes no line come twice."""
    add(log, "1\n2\n")
    follower = FileFollower(log, from_start=True)
    assert read_all(follower) == ["1", "2"]
    shutil.copy(log, f"{log}.bak")
    add(log, "3\n")
    assert read_all(follower) == ["3"]
    log.rename(f"{log}.1")
    add(log, "4\n5\n")
    shutil.copy(log, f"{log}.backup")
    add(log, "6\n")
    assert read_all(follower) == ["4", "5", "6"]
    log.rename(f"{log}.2")
    add(log, "7\n")
    shutil.copy(f"{log}.2", f"{log}.old")
    log.rename(f"{log}.3")
    shutil.copy(f"{log}.3", f"{log}.copy")
    add(log, "8\n")
    assert read_all(follower) == ["7", "8"]
    assert read_all(reopen(follower)) == []


@pytest.mark.parametrize("size", [10, 200_000, 3_000_000])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_writer_that_goes_on_behind_a_hole(log: Path, size: int, restarts: bool) -> None:
    """One that doesn't append goes on at its old place in a truncated file: what stands before are NUL bytes."""
    add(log, "0\n")
    follower = FileFollower(log, from_start=True)
    assert read_all(follower) == ["0"]
    os.truncate(log, 0)
    os.truncate(log, size)
    if restarts:
        assert read_all(follower) == []
        follower = reopen(follower)
    add(log, "1\n")
    assert read_all(follower) == ["1"]
    add(log, "2\n")
    assert read_all(reopen(follower)) == ["2"]
    assert follower.dropped == 0


def test_nul_bytes_of_a_crash(log: Path) -> None:
    """A machine that crashed leaves them behind a half line; the next line is whole, and so is a padded one."""
    log.write_bytes(b"1\nhal\0\0\0\x002\n3\0\0\n\0\0\n4\n")
    follower = FileFollower(log, from_start=True)
    assert read_all(follower) == ["1", "2", "3", "", "4"]
    follower.close()
