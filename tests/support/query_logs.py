"""Query logs of a test's own making, and how the agent's follower reads them."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from solowire.sources.files.checkpoint import Checkpoint
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.log_file import Line, Place


def add(path: Path, text: str | bytes) -> None:
    """Appends to a log, as named does."""
    with path.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def copytruncate(log: Path, to: str) -> None:
    """Rotates a log as logrotate's `copytruncate` does: the copy keeps the time of the original."""
    shutil.copy2(log, f"{log}.{to}")
    os.truncate(log, 0)


def read_lines(follower: FileFollower) -> list[Line]:
    """All that there is now."""
    lines: list[Line] = []
    while (some := follower.read_lines()) or follower.is_behind:
        lines += some
    return lines


def read_all(follower: FileFollower) -> list[str]:
    """The text of all lines that there are now."""
    return [line.text for line in read_lines(follower)]


def reopen(
    follower: FileFollower, line: Line | None = None, meanwhile: Callable[[], object] = lambda: None
) -> FileFollower:
    """A new follower, as after a kill when all up to `line` was acknowledged; None: all that was handed out.

    meanwhile: what happens while none is there.
    """
    place = follower.current_place() if line is None else Place(line.file, line.end)
    written = msgspec.json.encode(follower.files.make_checkpoint(place, "ns1"))
    follower.close()
    meanwhile()
    return FileFollower(follower.path, checkpoint=msgspec.json.decode(written, type=Checkpoint))


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Returns when it is true; fails if that takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)
