"""The meaning of one line of a log: nothing that is looked for, something that makes no event, or an event."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

import msgspec

from solowire.sources.files.log_condition import LogKind


class LineEvent(msgspec.Struct, frozen=True, gc=False):
    """The event that a line becomes. timestamp: RFC 3339; None: the time of its reading."""

    type: str
    data: dict[str, Any]
    timestamp: str | None = None


class LineMeaning(msgspec.Struct, frozen=True, gc=False):
    """What a line says. is_known: it is a line of the log that is looked for, if one that makes no event."""

    is_known: bool
    event: LineEvent | None = None


UNKNOWN_LINE = LineMeaning(False)
SILENT_LINE = LineMeaning(True)


class LineInterpreter(Protocol):
    """Makes sense of the lines of one kind of log."""

    @property
    def kind(self) -> LogKind: ...

    def interpret_line(self, text: str, now: datetime) -> LineMeaning:
        """What a line says. Called once for each line, in order; it may tell others of it, but must not raise."""
        ...

    def recognizes_line(self, text: str) -> bool:
        """Whether a line is of this kind of log; without any effect."""
        ...
