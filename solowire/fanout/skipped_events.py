"""Events of the log that a shard passes over, because something is wrong with them: counted, and named in the log.

What it keeps true: each is counted and named once, by its offset, its type and the reason, however often it is met
again, as far as NAMED_OFFSETS are remembered. A flood of them writes LINES_A_SECOND lines a second, and one with the
number of the others. Whatever is wrong with an event, nothing is raised for it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import structlog

LINES_A_SECOND = 10
NAMED_OFFSETS = 10_000
SHOWN_CHARACTERS = 200

UNDECODABLE, UNKNOWN_TYPE, FAILED = "event_decode_failed", "event_unknown_type", "event_processing_failed"
"""The kinds, which are log events: it can't be decoded; this version does not know its type; it could not be matched or
written."""


class SkippedEvents:
    """Counts skipped events and logs them, sampled.

    totals: how many, by kind. logger: of structlog. `next_second` is to be called about once a second.
    """

    def __init__(self, logger: Any = None) -> None:
        self.totals: Counter[str] = Counter()
        self._logger = logger if logger is not None else structlog.get_logger("solowire.shard")
        self._named: dict[int, None] = {}  # offsets, in the order in which they were met
        self._lines = 0  # of this second
        self._unnamed = 0
        self._last = 0  # the last of those that have no line

    def skip(self, kind: str, offset: int, type: str, reason: object) -> None:
        """Notes that the event at `offset` is passed over. reason: a text or an exception."""
        if offset in self._named:
            return
        self._named[offset] = None
        if len(self._named) > NAMED_OFFSETS:
            del self._named[next(iter(self._named))]
        self.totals[kind] += 1
        if self._lines >= LINES_A_SECOND:
            self._unnamed += 1
            self._last = offset
            return
        self._lines += 1
        self._logger.error(
            kind,
            offset=offset,
            type=type[:SHOWN_CHARACTERS],
            reason=_shown(reason),
            hint="it is passed over: no client gets it; do all processes run one version, with one SOLOWIRE_CATALOG?",
        )

    def next_second(self) -> None:
        """Says how many had no line of their own, and has lines again."""
        if self._unnamed:
            hint = "the lines before name some of them"
            self._logger.error("events_skipped", more=self._unnamed, last_offset=self._last, hint=hint)
        self._lines = self._unnamed = 0

    def forget(self) -> None:
        """Another log: its offsets are others."""
        self._named.clear()


def guess_type(body: bytes) -> str:
    """The type that an event which can't be loaded seems to have; "" if that can't be told either."""
    try:
        found = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
        return msgspec.msgpack.decode(found[1], type=str)
    except Exception:  # it is here because something is wrong with it
        return ""


def _shown(reason: object) -> str:
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
    return text[:SHOWN_CHARACTERS]
