"""What the agent says of a log that gives no queries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import asyncinotify
import pytest
from structlog.testing import capture_logs

from solowire.sources.bind9.queries.query_lines import QUERY_LOG
from solowire.sources.bind9.queries.query_log import parse_query
from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.log_condition import AGAIN_S, MISSING_S, UNMATCHED, LogCondition

QUERY = "client @0x7f 127.0.0.1#56031 (a.example): query: a.example IN A +E(0)K (127.0.0.1)"

Said = list[MutableMapping[str, Any]]


class Agent:
    """A condition with what it is asked about, and a clock that only the test moves."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.watch = DirectoryWatch(path)
        self.follower = FileFollower(path, watch=self.watch)
        self.condition = LogCondition(path, "ns1", lambda: self.now, QUERY_LOG)

    def check(self) -> None:
        self.follower.files.hold_new_files()
        self.condition.check(self.follower, self.watch)

    def close(self) -> None:
        self.follower.close()
        self.watch.close()


@pytest.fixture
def said() -> Iterator[Said]:
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def follow() -> Iterator[Callable[[Path], Agent]]:
    agents: list[Agent] = []

    def begin(path: Path) -> Agent:
        agents.append(Agent(path))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.close()


def missing_below(path: Path) -> Path:
    return path / "named" / "query.log"


def link_to_nothing(path: Path) -> Path:
    (path / "link").symlink_to("nothing")
    return path / "link"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path / "query.log", "no such file"),
        (missing_below, "the directory {0}/named doesn't exist"),
        (link_to_nothing, "it is a symbolic link to nothing, which doesn't exist"),
    ],
)
def test_a_missing_log_is_said_at_once_and_once_a_minute(
    tmp_path: Path, said: Said, follow: Callable[[Path], Agent], make: Callable[[Path], Path], reason: str
) -> None:
    """Which part of the path is missing, and what to do; and once that it is there."""
    path = make(tmp_path)
    agent = follow(path)
    for _ in range(5):
        agent.check()
    assert [entry["event"] for entry in said] == ["log_file_missing"]
    assert (said[0]["log_level"], said[0]["path"]) == ("warning", str(path))
    assert said[0]["reason"] == reason.format(tmp_path)
    assert "named.conf" in said[0]["hint"]
    agent.now += AGAIN_S
    agent.check()
    agent.check()
    assert len(said) == 2
    if path.parent == tmp_path and not path.is_symlink():
        path.touch()
        agent.check()
        agent.check()
        assert [entry["event"] for entry in said[2:]] == ["log_file_found"]


def test_a_rotation_is_not_a_missing_log(tmp_path: Path, said: Said, follow: Callable[[Path], Agent]) -> None:
    """The path may be without a file for a moment; if it stays so, that is said."""
    path = tmp_path / "query.log"
    path.touch()
    agent = follow(path)
    agent.check()
    path.unlink()
    agent.check()
    agent.now += MISSING_S - 0.1
    agent.check()
    assert said == []
    agent.now += 0.2
    agent.check()
    assert [entry["event"] for entry in said] == ["log_file_missing"]


def test_a_truncation_that_lost_nothing_is_said(tmp_path: Path, said: Said, follow: Callable[[Path], Agent]) -> None:
    """The copy that was made before has what had not been read."""
    path = tmp_path / "query.log"
    path.write_text("a line\n")
    agent = follow(path)
    agent.follower.read_lines()
    shutil.copyfile(path, tmp_path / "query.log.1")
    path.write_text("")
    agent.follower.read_lines()
    agent.check()
    assert [entry["event"] for entry in said] == ["log_file_truncated"]


def test_after_a_hundred_lines_without_a_query_one_is_shown(
    tmp_path: Path, said: Said, follow: Callable[[Path], Agent]
) -> None:
    """Cut short, and with what a terminal would obey written out; then once a minute, until there is a query."""
    agent = follow(_touched(tmp_path / "query.log"))
    hostile = "\x1b]0;owned\x07\r\n\u202e\0" + "x" * 1000
    for _ in range(UNMATCHED - 1):
        agent.condition.skip_line("all zones loaded")
        agent.check()
    assert said == []
    agent.condition.skip_line(hostile)
    for _ in range(3):
        agent.check()
        agent.condition.skip_line(hostile)
    [entry] = said
    assert (entry["event"], entry["log_level"]) == ("log_file_unmatched", "warning")
    assert entry["sample"].isprintable()
    assert entry["sample"].startswith(r"\x1b]0;owned\x07\r\n\u202e\x00xxx")
    assert len(entry["sample"]) < 300
    assert str(UNMATCHED) in entry["reason"]
    agent.now += AGAIN_S
    agent.check()
    assert len(said) == 2
    agent.condition.match_line()
    agent.now += AGAIN_S
    agent.check()
    assert len(said) == 2


def test_a_log_that_other_categories_share_is_not_complained_of(
    tmp_path: Path, said: Said, follow: Callable[[Path], Agent]
) -> None:
    """Where there have been queries, a hundred other lines are nothing strange."""
    agent = follow(_touched(tmp_path / "query.log"))
    agent.condition.match_line()
    for _ in range(10 * UNMATCHED):
        agent.condition.skip_line("zone transfer")
    agent.check()
    assert said == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x7fELF\0\0" + bytes(range(256)) * 99, "it is a binary file"),
        (b"root:x:0:0:\nbin:x:1:1:\n", "of the 2 lines at its end none is a query"),
        (b"x" * 100_000 + b"\nlast\n", "of the 1 lines at its end none is a query"),
        (b"other\n" + QUERY.encode() + b"\nother\n", None),
        (b"", None),
        (b"half a line", None),
    ],
)
def test_what_a_log_holds_already_is_looked_at(
    tmp_path: Path, said: Said, follow: Callable[[Path], Agent], content: bytes, reason: str | None
) -> None:
    """A file that is none of ours is said to be so at once, also if nothing is ever written to it."""
    path = tmp_path / "query.log"
    path.write_bytes(content)
    agent = follow(path)
    agent.condition.inspect(lambda text: parse_query(text, None) is not None)
    agent.check()
    assert [entry["reason"] for entry in said] == ([] if reason is None else [reason])
    agent.now += AGAIN_S
    agent.check()
    assert len(said) == (0 if reason is None else 2)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_cannot_be_a_log_says_what_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A directory and a FIFO are called so."""
    make(tmp_path / "it")
    with pytest.raises(OSError, match=r"not a regular file but a (directory|FIFO)"):
        FileFollower(tmp_path / "it")


def test_without_inotify_the_log_is_looked_at_and_that_is_said(
    tmp_path: Path, said: Said, follow: Callable[[Path], Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the limit of watches is reached, lines and rotations are found all the same, and it is said once."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asyncinotify.Inotify, "add_watch", refuse)
    path = _touched(tmp_path / "query.log")
    agent = follow(path)
    for number in range(3):
        path.write_text(f"{number}\n")
        assert agent.follower.read() == [f"{number}"]
        path.rename(tmp_path / f"query.log.{5 - number}")
        path.touch()
        agent.check()
    assert [(entry["event"], entry["log_level"]) for entry in said] == [("log_file_polling", "warning")]
    assert said[0]["reason"] == "No space left on device"
    monkeypatch.undo()
    agent.follower.files.hold_new_files()
    assert agent.watch.trouble is None
    assert agent.watch.is_watching


def test_without_any_inotify_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no instance is to be had, the watch is none, and closes as one."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("solowire.sources.files.directory_watch.Inotify", refuse)
    watch = DirectoryWatch(tmp_path / "query.log")
    watch.read_events()
    assert (watch.is_watching, watch.trouble and watch.trouble.errno) == (False, 24)
    watch.close()


def test_the_watch_follows_the_link_and_the_directory(tmp_path: Path) -> None:
    """The directory may come later, be moved away and come again; a link may lead elsewhere."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "log"
    path.symlink_to(tmp_path / "b" / "log")
    watch = DirectoryWatch(path)
    follower = FileFollower(path, watch=watch)
    (tmp_path / "b").mkdir()
    follower.files.hold_new_files()
    (tmp_path / "b" / "log").write_text("1\n")
    assert follower.read() == ["1"]
    (tmp_path / "a" / "log").write_text("2\n")
    (tmp_path / "new").symlink_to(tmp_path / "a" / "log")
    (tmp_path / "new").rename(path)
    assert follower.read() == ["2"]
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "a").mkdir()
    follower.files.hold_new_files()
    for number in range(3):
        (tmp_path / "a" / "log").unlink(missing_ok=True)
        (tmp_path / "a" / "log").write_text(f"new {number}\n")
    assert follower.read() == ["new 2"]
    assert sum(loss.files for loss in follower.files.losses) <= 2
    follower.close()
    watch.close()


def _touched(path: Path) -> Path:
    path.touch()
    return path
