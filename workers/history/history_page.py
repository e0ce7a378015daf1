"""One page of an answer about history: what is asked for it, what it holds, and where it ends.

What it keeps true: a page is judged by the same code as a live frame (`FeedFilter`), under the rights that the asker
has when it asks, and holds an event exactly if a live connection with the same rights and wishes gets it in full. It
ends at an offset, behind which the next one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from solowire.backplane.messages import HistoryBound, HistoryClause
from solowire.errors import RequestRejected
from solowire.fanout.feed import build_feed_key
from solowire.fanout.frame_builder import FeedFilter
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity, View
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import CUSTOM, NO_EVENT, DeniedPattern, Selection, Wanted, resolve
from solowire.protocol.dialect_codec import AnyCodec
from solowire.protocol.history_query import HistoryCursor, HistoryPosition, HistoryQuery


class HistoryPage(msgspec.Struct, frozen=True):
    """A page of past events.

    events: as they stand in `events` frames, encoded. next: where the next page begins; None if there is none.

    complete: that is all, at present. denied: what of the types was not granted.
    """

    events: list[msgspec.Raw]
    next: str | None
    complete: bool
    denied: list[DeniedPattern] = []


class HistoryJudge:
    """What one view may have of what one question wants. Raises RequestRejected if that is nothing at all."""

    def __init__(self, wanted: Wanted, view: View, codec: AnyCodec, log: RecentLog) -> None:
        resolved = resolve(wanted, view, log.catalog)
        if not resolved.selection:
            denied = resolved.denied[0] if resolved.denied else None
            why = f"{denied.type}: {denied.hint or denied.reason}" if denied else "your role has no event types"
            raise RequestRejected(403, "forbidden", f"nothing of it may be shown to you: {why}", "ask for other types")
        self.denied = resolved.denied
        self.clauses = make_clauses(resolved.selection, log.catalog)
        self._log = log
        key = build_feed_key(resolved.selection, view, codec.without_deflate, log.catalog)
        self._filter = FeedFilter(key, log.catalog)

    def write_event(self, offset: int, body: bytes, user: str) -> bytes | None:
        """The event as the asker may see it; None if it may not, or doesn't want it."""
        entry = self._log.decode_entry(offset, body)
        if entry is None or entry.event.user not in (None, user) or not self._filter.accepts(entry):
            return None
        return self._filter.encode_for(entry)


def make_clauses(selection: Selection, catalog: Catalog) -> list[HistoryClause] | None:
    """What the router looks for: types that have one filter together. None: all that there is."""
    by_filter: dict[Any, list[str]] = {}
    for name, conditions in selection:
        if conditions != NO_EVENT:
            by_filter.setdefault(conditions, []).append(name)
    if len(by_filter.get((), ())) == len((*catalog.names, CUSTOM)):
        return None
    attributes = catalog.attributes
    return [
        HistoryClause(
            types,
            [(name, sorted(values), name in attributes and attributes[name].hierarchical) for name, values in filter],
        )
        for filter, types in by_filter.items()
    ]


class HistoryTask:
    """A page that is being made. key: whose it is beside its user, to be cancelled with: a connection, or None.

    bounds: what is still to be looked at. part: what the router has sent of it; part_index: how much of that has
    been judged; cursor: up to where the range has been looked at when all of it has.
    """

    __slots__ = (
        "_end",
        "_first_bounds",
        "_is_end_fixed",
        "_start",
        "bytes_left",
        "cursor",
        "ends_at",
        "epoch",
        "events",
        "has_answer",
        "identity",
        "is_complete",
        "judge",
        "key",
        "part",
        "part_index",
        "query",
        "request",
        "user",
    )

    def __init__(
        self, identity: Identity, query: HistoryQuery, judge: HistoryJudge, *, key: object, max_bytes: int, now: float
    ) -> None:
        """Begins a page. now: unix seconds, as in `query`."""
        self.identity = identity
        self.user = identity.user
        self.query = query
        self.judge = judge
        self.key = key
        self.bytes_left = max_bytes
        self.ends_at = 0.0
        self.events: list[msgspec.Raw] = []
        self.part: Sequence[tuple[int, bytes]] = ()
        self.part_index = 0
        self.request: int | None = None
        self.has_answer = False
        self.is_complete = False
        self.epoch = ""
        self.cursor = 0
        self._first_bounds = _first_bounds(query)
        self._start = self._end = 0  # behind which offset, and up to which, once the router has said so
        far = query.since if query.is_descending else query.until
        self._is_end_fixed = far is not None and not (isinstance(far, float) and far > now)

    @property
    def bounds(self) -> tuple[HistoryBound | None, HistoryBound | None]:
        """What is still to be looked at: (since, until)."""
        if not self.has_answer:
            return self._first_bounds
        return HistoryBound(self.epoch, self._start), HistoryBound(self.epoch, self._end)

    @property
    def is_passed(self) -> bool:
        """Whether nothing is left to be looked at; only once the router has been heard."""
        return self._start >= self._end

    @property
    def is_full(self) -> bool:
        return len(self.events) >= self.query.limit or self.bytes_left <= 0

    def begin_part(self, epoch: str, start: int, end: int, events: Sequence[tuple[int, bytes]]) -> None:
        """The router has answered: what is wanted lies behind `start` and up to `end`."""
        self.has_answer = True
        self.epoch, self.part, self.part_index = epoch, events, 0
        self._start, self._end = start, end

    def advance_to(self, offset: int) -> None:
        """Everything up to there, or from there on, has been looked at."""
        if self.query.is_descending:
            self._end = max(0, offset - 1)
        else:
            self._start = offset

    def take_event(self, offset: int, body: bytes) -> bool:
        """Judges the next event of the part, and takes it if it is the asker's; False if there is no room for it.

        One that is larger than a page has a page to itself.
        """
        written = self.judge.write_event(offset, body, self.user)
        if written is None:
            return True
        size = len(written) + 1
        if self.events and size > self.bytes_left:
            return False
        self.events.append(msgspec.Raw(written))
        self.bytes_left -= size
        return True

    def make_page(self) -> HistoryPage:
        """The page with what has been taken; only once the router has been heard."""
        if self.query.is_descending:
            end = self._start if self._is_end_fixed else None
            cursor = None if self.is_complete else HistoryCursor(self.epoch, self._end + 1, end)
        else:
            cursor = HistoryCursor(self.epoch, self._start, self._end if self._is_end_fixed else None)
        return HistoryPage(
            self.events, None if cursor is None else str(cursor), self.is_complete, list(self.judge.denied)
        )


def _first_bounds(query: HistoryQuery) -> tuple[HistoryBound | None, HistoryBound | None]:
    since, until = _make_bound(query.since), _make_bound(query.until)
    after = query.after
    if after is None:
        return since, until
    end = None if after.end is None else HistoryBound(after.epoch, after.end)
    if query.is_descending:
        return end or since, HistoryBound(after.epoch, max(0, after.offset - 1))
    return HistoryBound(after.epoch, after.offset), end or until


def _make_bound(bound: float | HistoryPosition | None) -> HistoryBound | None:
    if bound is None:
        return None
    if isinstance(bound, HistoryPosition):
        return HistoryBound(bound.epoch, bound.offset)
    return HistoryBound(at=bound)
