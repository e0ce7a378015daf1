"""The condition of a log: whether it can give what is looked for, told at once, and once a minute as long as it can't.

Nothing here stops the agent: a log may come later, or get its queries when `rndc querylog on` is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.held_file import explain_way_out
from solowire.sources.files.held_files import Loss

AGAIN_S = 60.0
MISSING_S = 5.0  # for which a rotation may leave the path without a file
UNMATCHED = 100
UNMATCHED_AFTER_A_MATCH = 10_000  # in a log that named shares with other categories
_SAMPLE_CHARACTERS = 200
_PEEK_BYTES = 64 * 1024

logger = structlog.get_logger()


class LogKind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of log, in words.

    name: in our own log lines. title: what messages call it. wanted: one of the lines that are
    looked for. channel_hint: how to have named write it.
    """

    name: str
    title: str
    wanted: str
    channel_hint: str


class LogCondition:
    """Says what is wrong with one log. clock: seconds, that never go back.

    hindrance: why there is nothing to read, with the path; None while there is.
    """

    def __init__(self, path: Path, server: str, clock: Callable[[], float], kind: LogKind) -> None:
        self.path = path
        self.hindrance: str | None = None
        self._kind = kind
        self._log = logger.bind(server=server, log=kind.name)
        self._clock = clock
        self._missing_since: float | None = clock() - MISSING_S  # at the start there is no rotation to wait for
        self._due: dict[str, float] = {}  # when to say again what was said
        self._trouble: str | None = None
        self._watch_trouble: str | None = None
        self._unmatched = 0  # lines since the last that was known
        self._has_matched = False
        self._sample = ""
        self._is_strange = False  # it has been said that its lines are of no use

    def inspect(self, is_wanted: Callable[[str], bool]) -> None:
        """Look at what the log holds already, which nobody may be going to read."""
        try:
            with self.path.open("rb") as file:
                head = file.read(4096)
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _PEEK_BYTES))
                lines = file.read(_PEEK_BYTES).split(b"\n")[1 if size > _PEEK_BYTES else 0 : -1]
        except OSError:
            return
        if b"\0" in head:
            self._is_strange = True
            self._sample = head.decode("utf-8", "replace")
            self._say_strange("it is a binary file")
            return
        texts = [line.decode("utf-8", "replace") for line in lines]
        if any(is_wanted(text) for text in texts):
            self._has_matched = True
        elif texts:
            self._is_strange = True
            self._sample = texts[-1]
            self._say_strange(f"of the {len(texts)} lines at its end none is {self._kind.wanted}")

    def match_line(self) -> None:
        """A line was of this kind of log."""
        self._unmatched = 0
        self._has_matched = True
        self._is_strange = False

    def skip_line(self, text: str) -> None:
        """A line was none."""
        self._unmatched += 1
        self._sample = text
        if self._unmatched >= (UNMATCHED_AFTER_A_MATCH if self._has_matched else UNMATCHED) and not self._is_strange:
            self._is_strange = True
            self._due.setdefault("strange", 0.0)

    def check(self, follower: FileFollower, watch: DirectoryWatch) -> None:
        """Say what there is to be said now."""
        losses, follower.files.losses = follower.files.losses, []
        for loss in losses:
            self._tell_loss(loss)
        self.hindrance = None if follower.files.trouble is None else str(follower.files.trouble)
        self._tell_trouble(follower.files.trouble)
        self._tell_missing(follower.files.is_missing)
        self.check_lines()
        trouble = None if watch.trouble is None else watch.trouble.strerror
        if trouble != self._watch_trouble:
            self._watch_trouble = trouble
            if trouble is not None:
                self._log.warning(
                    "log_file_polling",
                    path=str(self.path),
                    reason=trouble,
                    hint="no inotify: it is looked at ten times a second, and faster rotations may be missed; let the "
                    "agent's user list the directory, or raise fs.inotify.max_user_instances and max_user_watches",
                )

    def check_lines(self) -> None:
        """Say it if the lines are of no use."""
        if self._is_strange and self._is_due("strange"):
            self._say_strange(
                f"of its last {self._unmatched} lines none is {self._kind.wanted}"
                if self._unmatched
                else f"not {self._kind.wanted} yet"
            )

    def _tell_loss(self, loss: Loss) -> None:
        if loss.is_all and not loss.files and not loss.size:
            self._log.info("log_file_truncated", path=str(self.path))
            return
        self._log.warning(
            "log_file_lines_lost",
            path=str(self.path),
            reason=loss.reason,
            files=loss.files,
            bytes=loss.size,
            perhaps_more=not loss.is_all,
            hint="keep more or larger versions, uncompressed, and don't copy and truncate",
        )

    def _tell_trouble(self, found: OSError | None) -> None:
        """A rotation may give the log the wrong owner for a moment."""
        trouble = None if found is None else str(found)
        if found is not None and (trouble != self._trouble or self._is_due("trouble")):
            self._say_again_later("trouble")
            hint = f"{explain_way_out(found)}; it is tried again"
            self._log.warning("log_file_open_failed", path=str(self.path), error=trouble, hint=hint)
        elif found is None and self._trouble is not None:
            self._log.info("log_file_reopened", path=str(self.path))
        self._trouble = trouble

    def _tell_missing(self, is_missing: bool) -> None:
        now = self._clock()
        if not is_missing:
            if "missing" in self._due:
                del self._due["missing"]
                self._log.info("log_file_found", path=str(self.path))
            self._missing_since = None
            return
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < MISSING_S:
            return
        self.hindrance = f"{self.path}: {_why_missing(self.path)}"
        if self._is_due("missing"):
            self._say_again_later("missing")
            self._log.warning(
                "log_file_missing",
                path=str(self.path),
                reason=_why_missing(self.path),
                hint=f"waiting for it; {self._kind.channel_hint}",
            )

    def _say_strange(self, reason: str) -> None:
        self._say_again_later("strange")
        self._log.warning(
            "log_file_unmatched",
            path=str(self.path),
            reason=reason,
            sample=_escaped(self._sample),
            hint=self._kind.channel_hint,
        )

    def _is_due(self, what: str) -> bool:
        return self._clock() >= self._due.get(what, float("-inf"))

    def _say_again_later(self, what: str) -> None:
        self._due[what] = self._clock() + AGAIN_S


def _why_missing(path: Path) -> str:
    """What exactly is not there."""
    if path.is_symlink():
        return f"it is a symbolic link to {os.readlink(path)}, which doesn't exist"
    for parent in reversed(path.absolute().parents):
        if not os.path.exists(parent):
            return f"the directory {parent} doesn't exist"
    return "no such file"


def _escaped(text: str) -> str:
    """A line as it can be shown: one line, short, without control characters or what else a terminal obeys."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_SAMPLE_CHARACTERS])
    return shown + ("…" if len(text) > _SAMPLE_CHARACTERS else "")
