"""The audit log: lines, their file, floods of refusals, and a disk that takes nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from solowire.observability.audit import LINES_A_SECOND, MAX_TEXT, REFUSALS_A_SECOND, AuditWriter, open_audit
from solowire.runtime.line_writer import WAITING_BYTES
from solowire.runtime.settings import Settings
from solowire.runtime.settings.process_settings import AuditSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """A sink that keeps lines, and fails while `broken`."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.broken = False
        self.asked = 0

    def write(self, lines: bytes) -> None:
        self.asked += 1
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        assert lines.endswith(b"\n")
        self.lines += map(json.loads, lines.splitlines())

    def close(self) -> None:
        pass


def audit_of(data: Path, **settings: Any) -> AuditWriter:
    return open_audit(Settings(data_dir=data, audit=AuditSettings(**settings)), "shard-0", shard=0)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """A close waits for as long as this machine takes to write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solowire.runtime.line_writer.CLOSE_SECONDS", 30.0)
        yield


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(kept: Kept, clock: Clock) -> AuditWriter:
    return AuditWriter(kept, clock, shard=0)


def test_an_event_is_one_line_with_its_time(tmp_path: Path) -> None:
    """A line says when (RFC 3339, UTC), what, and all that it was given, in a file that only its owner may read."""
    audit = audit_of(tmp_path)
    audit("connected", user="ann\n\u2028", role="viewer", code=None)
    audit.close()
    path = tmp_path / "audit/shard-0.jsonl"
    [line] = lines_of(path)
    assert list(line) == ["time", "event", "shard", "user", "role", "code"]
    assert line["time"].endswith("Z")
    assert (line["event"], line["user"], line["code"]) == ("connected", "ann\n\u2028", None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_stranger_sent_takes_a_short_line(audit: AuditWriter, kept: Kept) -> None:
    """A path of 16 KB in each refusal would push out what others did."""
    audit("refused", code="missing_token", about="\x01" * 16_000)
    audit._lines.flush(10)
    assert len(kept.lines[0]["about"]) <= MAX_TEXT + 1


def test_it_is_the_same_whatever_the_logs_look_like(tmp_path: Path) -> None:
    """What `logs.configure` binds and renders is the logs' own: audit lines stay JSON without it."""
    structlog.contextvars.bind_contextvars(role="router")
    try:
        audit = audit_of(tmp_path)
        audit("published", user="ann")
        audit.close()
    finally:
        structlog.contextvars.clear_contextvars()
    [line] = lines_of(tmp_path / "audit/shard-0.jsonl")
    assert set(line) == {"time", "event", "shard", "user"}


def test_files_are_rotated_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    """No file is larger than set, the newest lines are in the first, and the oldest files go."""
    audit = audit_of(tmp_path, max_file_bytes=65536, max_files=3)
    for number in range(4000):
        audit("administered", user="x" * 50, number=number)
    audit.close()
    files = sorted((tmp_path / "audit").iterdir())
    assert [f.name for f in files] == ["shard-0.jsonl", "shard-0.jsonl.1", "shard-0.jsonl.2"]
    assert all(f.stat().st_size <= 65536 for f in files)
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in files)
    numbers = [line["number"] for f in reversed(files) for line in lines_of(f)]
    assert numbers == list(range(numbers[0], 4000))


def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    """Two gateways on one data directory: each follows when the other has begun a new file, and no line is torn."""
    one, other = (audit_of(tmp_path, max_file_bytes=65536, max_files=1000) for _ in range(2))
    for number in range(2000):
        one("administered", number=2 * number, pad="x" * 50)
        other("administered", number=2 * number + 1, pad="x" * 50)
    one.close()
    other.close()
    numbers = [line["number"] for f in (tmp_path / "audit").iterdir() for line in lines_of(f)]
    assert sorted(numbers) == list(range(4000))


def test_a_flood_of_refusals_is_a_few_lines_and_a_count(audit: AuditWriter, kept: Kept, clock: Clock) -> None:
    """After a few of one code a second the rest is one line with how many; other codes and events are not held up."""
    for _ in range(1000):
        audit("refused", code="over_limit", user="ann")
    audit("refused", code="invalid_token")
    audit("connected", user="bob")
    assert audit._lines.flush(10)
    assert len(kept.lines) == REFUSALS_A_SECOND + 2
    clock.now += 1.0
    audit.flush_suppressed()
    assert audit._lines.flush(10)
    assert kept.lines[-1] == {
        "time": kept.lines[-1]["time"], "event": "refused", "shard": 0,
        "code": "over_limit", "count": 1000 - REFUSALS_A_SECOND,
    }  # fmt: skip
    audit.flush_suppressed()
    audit("refused", code="over_limit")
    assert audit._lines.flush(10)
    assert len(kept.lines) == REFUSALS_A_SECOND + 4


def test_a_flood_of_one_users_lines_is_a_few_and_their_sums(audit: AuditWriter, kept: Kept, clock: Clock) -> None:
    """A publisher that sends one event at a time pushes no other lines out; where its events stand is told."""
    for offset in range(1, 1001):
        audit("published", user="much", events=2, duplicates=1, first=2 * offset, last=2 * offset + 1)
    audit("published", user="little", events=1, duplicates=0, first=5000, last=5000)
    for shard in range(LINES_A_SECOND + 1):
        audit("administered", user="root", action=f"drain {shard}")
    clock.now += 1.0
    audit.flush_suppressed()
    audit._lines.flush(10)
    lines = [line for line in kept.lines if line["event"] == "published"]
    assert [line["user"] for line in lines] == ["much"] * LINES_A_SECOND + ["little", "much"]
    rest = 1000 - LINES_A_SECOND
    assert {name: lines[-1][name] for name in ("count", "events", "duplicates", "first", "last")} == {
        "count": rest, "events": 2 * rest, "duplicates": rest, "first": 2 * (LINES_A_SECOND + 1), "last": 2001,
    }  # fmt: skip
    assert len(kept.lines) - len(lines) == LINES_A_SECOND + 1, "an administrator's deeds have a line each"


def test_what_is_summed_up_is_told_at_the_end(audit: AuditWriter, kept: Kept) -> None:
    """A process that ends within the second still says how many it refused."""
    for _ in range(10):
        audit("refused", code="over_limit")
    audit.close()
    assert kept.lines[-1]["count"] == 10 - REFUSALS_A_SECOND


def test_a_disk_that_takes_nothing_loses_lines_and_is_asked_rarely(
    audit: AuditWriter, kept: Kept, clock: Clock
) -> None:
    """Lost lines are counted, nobody hears of them who writes one, and the disk is asked again after a second."""
    kept.broken = True
    for _ in range(100):
        audit("administered", user="ann")
    assert audit._lines.flush(10)
    assert (audit.lost_count, kept.asked) == (100, 1)
    kept.broken = False
    clock.now += 1.0
    audit("published", user="ann")
    assert audit._lines.flush(10)
    assert (audit.lost_count, len(kept.lines)) == (100, 1)


def test_a_directory_that_cannot_be_made_loses_lines(tmp_path: Path) -> None:
    """Where there is a file in the directory's place, lines are lost and counted, and nothing is raised."""
    (tmp_path / "audit").write_text("")
    audit = audit_of(tmp_path)
    audit("published", user="ann")
    audit.close()
    assert audit.lost_count == 1


def test_a_line_that_was_cut_off_by_a_full_disk_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The next line begins on a line of its own."""
    audit = audit_of(tmp_path)
    audit._lines._clock = clock
    audit("administered", number=1)
    assert audit._lines.flush(10)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:7]))
    audit("administered", number=2)
    assert audit._lines.flush(10)
    monkeypatch.undo()
    clock.now += 1.0
    audit("administered", number=3)
    audit.close()
    text = (tmp_path / "audit/shard-0.jsonl").read_text().splitlines()
    assert [json.loads(text[0])["number"], json.loads(text[2])["number"]] == [1, 3]
    assert audit.lost_count == 1


def test_it_can_be_off_or_go_to_standard_error(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """`off` writes nothing anywhere; `stderr` writes lines that say which log they are of."""
    for setting in ("off", "stderr"):
        audit = audit_of(tmp_path, output=setting)
        audit("published", user="ann")
        audit("refused", code="x")
        audit.close()
    assert not (tmp_path / "audit").exists()
    lines = [json.loads(line) for line in capfdbinary.readouterr().err.splitlines()]
    assert [(line["log"], line["event"]) for line in lines] == [("audit", "published"), ("audit", "refused")]


UNREAD = """
from pathlib import Path
from solowire.observability.audit import open_audit
from solowire.runtime.line_writer import WAITING_BYTES
from solowire.runtime.settings import Settings

audit = open_audit(Settings(data_dir=Path("data"), audit={"output": "stderr"}), "shard-0", shard=0)
for number in range(WAITING_BYTES // 1000 + 500):
    audit("administered", number=number, pad=["x" * 1000])
print(audit.lost_count)
audit.close()
print(audit.lost_count)
"""


def test_a_pipe_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Lines are lost when too many wait, the process goes on and ends in time, and what is in the pipe is whole."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
    out, err = process.communicate()
    before, after = (int(line) for line in out.split(b"\n") if line.isdigit())  # between what the log says of it
    lines = err.split(b"\n")[:-1]  # the last may have found no room
    assert [json.loads(line)["number"] for line in lines] == list(range(len(lines)))
    assert before > 0
    assert after == WAITING_BYTES // 1000 + 500 - len(lines)


class Stuck(Kept):
    """A sink that takes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, lines: bytes) -> None:
        self.free.wait(30)
        super().write(lines)


def test_what_overflows_is_counted_and_what_waited_is_written(clock: Clock) -> None:
    """A sink that is stuck for a while costs the lines that have no room, and none of those that have."""
    stuck = Stuck()
    audit = AuditWriter(stuck, clock)
    for number in range(2 * WAITING_BYTES // 1000):
        audit("administered", number=number, pad=["x" * 1000])
    lost = audit.lost_count
    assert 0.9 < 2 * lost * 1000 / (2 * WAITING_BYTES) < 1.2
    stuck.free.set()
    assert audit._lines.flush(30)
    audit("administered", number=-1)
    audit.close()
    kept = 2 * WAITING_BYTES // 1000 - lost
    assert [line["number"] for line in stuck.lines] == [*range(kept), -1]
    assert audit.lost_count == lost


def test_a_name_that_is_no_text_loses_its_line(audit: AuditWriter, kept: Kept) -> None:
    """Half a character in what a client sent costs that line, not the process."""
    audit("administered", about="\ud800")
    assert (audit.lost_count, kept.lines) == (1, [])


@pytest.mark.parametrize("what", ["file", "directory", "moved"])
def test_a_file_that_is_removed_while_it_is_written(what: str, tmp_path: Path) -> None:
    """What comes from then on is in a new one under the same name."""
    audit = audit_of(tmp_path / "data")
    path = tmp_path / "data" / "audit" / "shard-0.jsonl"
    audit("connected", user="ann")
    assert audit._lines.flush(30)
    if what == "file":
        path.unlink()
    elif what == "directory":
        shutil.rmtree(path.parent)
    else:
        path.parent.rename(tmp_path / "aside")
    audit("connected", user="bob")
    assert audit._lines.flush(30)
    audit.close()
    assert [line["user"] for line in lines_of(path)] == ["bob"]
    assert audit.lost_count == 0


def test_a_directory_that_is_gone_and_cannot_be_made(tmp_path: Path) -> None:
    """Its lines are counted as lost."""
    audit = audit_of(tmp_path / "data")
    audit("connected", user="ann")
    assert audit._lines.flush(30)
    shutil.rmtree(tmp_path / "data" / "audit")
    (tmp_path / "data" / "audit").write_text("no directory")
    audit("connected", user="bob")
    assert audit._lines.flush(30)
    audit.close()
    assert audit.lost_count == 1
