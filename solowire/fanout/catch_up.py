"""One frame out of the log, for a connection that is behind, as far as what must be in it fits.

                        ordinary   in a flood   slow                  coming back
    critical events     in full    in full      in full, and first    in full
    other durable ones  in full    in full      in full               in full
    other states        in full    in full      the newest of a key   in full
    other telemetry     in full    summed up    summed up             in full

What it keeps true:

* A frame covers a range of the log, from the cursor to the one that it says; who is cut off after it comes back without
  gap or overlap. What of the range a connection may see and want is in the frame, or counted in its `compacted`.
* The counts of telemetry are exact. Those of states leave out what was overtaken while it was held back and nobody can
  say any more for whom.
* A connection that comes back gets all that it missed first, in full as long as the log has it.
* Nothing is kept per connection but a `ReaderPosition`: where it stands. What the log drops before a connection has
  read it is looked through once, and counted; the newest states are still there (`RecentLog.latest_states`), and so are
  the durable events, for longer than any others (`RecentLog.durable_tail`). When one is gone that a connection lacks,
  the connection is *lost*: it has to come back with its cursor.

A flood (`aggregation`) and a slow reader are compacted by the same code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from solowire.fanout.aggregation import SUMMARY_BYTES, AggregationStream
from solowire.fanout.conflation import Conflator
from solowire.fanout.frame_builder import Counts, FeedFilter, FeedKey, FrameBuilder
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.events import Delivery, Priority
from solowire.protocol.messages import MAX_FRAME_BYTES

MAX_EVENTS_BYTES = MAX_FRAME_BYTES - 128
"""What a frame's events may take, its head apart."""

COMPACTED_BYTES = MAX_EVENTS_BYTES - 4096
"""The same of one that also says, by type, what was left out."""

SCAN_ENTRIES = 10_000
"""How many entries of the log one frame may look through: bounds a turn's time."""

OLDER_ENTRIES = 1_000
"""The same of the durable ones that have left the log, of which a frame holds some hundreds."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One WebSocket message. payload: None if nothing was to be sent. cursor: where its receiver then stands.

    seen, told: as in `ReaderPosition`, then. left: events that it counts and does not hold. full: more did not fit.
    scanned: how many entries were looked at for it.
    """

    cursor: int
    payload: str | bytes | None
    event_count: int = 0
    last_release: int = 0
    reported_omitted: Counts = {}
    omitted_count: int = 0
    is_full: bool = False
    scanned_count: int = 0


class ReaderPosition(msgspec.Struct, gc=False):
    """Where a connection stands. seen: the newest release (`pacing`) that it has.

    told: of its feed's counts, those that it knows; one may be below zero, for what was counted for it alone.
    whole_upto: it came back, and gets all up to there. busy: its socket was. forgotten: what the log has dropped up to
    there was counted, durable events apart. lost: one of those is gone.
    """

    offset: int
    last_release: int = 0
    reported_omitted: Counts = {}
    full_until: int = 0
    was_busy: bool = False
    trimmed_until: int = 0
    is_lost: bool = False

    @property
    def is_in_full(self) -> bool:
        return self.offset < self.full_until

    def batch_key(self) -> tuple[int, ...]:
        """Connections of a feed with equal places get the same frame, what is for one user alone apart."""
        whole = self.full_until if self.is_in_full else 0
        return (self.offset, self.last_release, id(self.reported_omitted), whole, self.trimmed_until)


class StreamSample(msgspec.Struct, frozen=True, gc=False):
    """What a flow sends of the events that it has collected: those at these offsets, of all behind `began`."""

    began_offset: int
    offsets: set[int]


class CatchUpReader(FeedFilter):
    """Reads the log for the connections of one feed that are behind.

    position: up to where it is read. seen, told: as in `ReaderPosition`, of the connections that are not behind. left:
    how many of each type were left out of the feed. released: the newest release that the feed accepts.
    """

    __slots__ = (
        "_conflator",
        "_log",
        "_telemetry",
        "last_release",
        "newest_release",
        "omitted",
        "position",
        "reported_omitted",
        "streams",
    )

    def __init__(self, key: FeedKey, log: RecentLog, pacing: Conflator) -> None:
        super().__init__(key, log.catalog)
        self.position = log.position
        self.streams: Mapping[str, AggregationStream[Any]] = {}  # by event type
        self.last_release = pacing.newest_release
        self.newest_release = 0
        self.omitted: Counts = {}
        self.reported_omitted: Counts = self.omitted
        self._log = log
        self._conflator = pacing
        types = (log.catalog.get_declared(name) for name, _ in key.selection)
        self._telemetry = any(t is not None and t.delivery is Delivery.telemetry for t in types)

    def read_frame(self, lag: ReaderPosition, user: str | None = None, *, compacted: bool = False) -> Frame:
        """One frame for a connection, as the table above says; at most MAX_FRAME_BYTES of what lies up to `position`.

        user: whose personal events belong in it; None builds the frame that all share who have none. compacted: it is
        slow.
        """
        summed = self._summarised_types(lag, compacted=compacted)
        released = lag.last_release < self.last_release and lag.last_release < self.newest_release
        owed = lag.reported_omitted is not self.reported_omitted and lag.reported_omitted != self.reported_omitted
        plain = not (summed or compacted or released or owed)
        parts = FrameBuilder(MAX_EVENTS_BYTES if plain else COMPACTED_BYTES)
        if compacted and summed:
            parts.started_at = self._log.ingest_time_before(lag.offset)
        # What lies further on is read where it stands.
        edge = max(lag.offset, lag.trimmed_until)
        seen = (
            self.add_released(parts, lag.last_release, edge, user, self.last_release)
            if released
            else max(lag.last_release, self.last_release)
        )
        if parts.is_full:
            return self._frame(parts, lag.offset, seen, lag.reported_omitted, 0, user)
        cursor, told, scanned = lag.offset, lag.reported_omitted if owed else self.reported_omitted, 0
        if cursor < lag.trimmed_until:
            cursor, told, scanned = self._add_trimmed(parts, lag, user)
        summaries = self._summaries(parts, lag, summed)
        if not parts.is_full and lag.trimmed_until <= cursor < self.position:
            upto = min(self.position, lag.full_until) if lag.is_in_full else self.position
            cursor, entries = self._scan(parts, cursor, upto, user, summed, compacted, lag)
            scanned += entries
        for name, found in summaries:
            parts.bytes_left += SUMMARY_BYTES
            parts.add_summaries(name, (s for s in found if s.offset <= cursor), self)
        if owed and cursor >= lag.trimmed_until:
            parts.add_omitted(self.reported_omitted, told)
            told = self.reported_omitted
        return self._frame(parts, cursor, seen, told, scanned, user)

    def _summarised_types(self, lag: ReaderPosition, *, compacted: bool) -> Mapping[str, StreamSample | None]:
        """The types that are summed up in the connection's frame, and what its flow does; None for a slow one's, which
        has a summary of its own.
        """
        if not self.streams or lag.is_in_full:
            return {}
        if compacted:
            return dict.fromkeys(self.streams)
        return {
            name: StreamSample(
                flow.began_offset, {entry.offset for entry in flow.sample_between(lag.offset, self.position)}
            )
            for name, flow in self.streams.items()
            if flow.is_active
        }

    def _summaries(
        self, parts: FrameBuilder, lag: ReaderPosition, summed: Mapping[str, StreamSample | None]
    ) -> list[tuple[str, Sequence[Entry]]]:
        """The summaries that belong in the connection's frame, each with room kept for it."""
        found = []
        for name, sampled in summed.items():
            if sampled is not None:
                summaries = self.streams[name].summaries_between(lag.offset, self.position)
                if summaries and parts.reserve_summary():
                    found.append((name, summaries))
        return found

    def _frame(
        self, parts: FrameBuilder, cursor: int, seen: int, told: Counts, scanned: int, user: str | None = None
    ) -> Frame:
        fragments = parts.build_fragments(self)
        if not fragments and not parts.compacted:
            return Frame(
                cursor, None, last_release=seen, reported_omitted=told, is_full=parts.is_full, scanned_count=scanned
            )
        codec = self._codec if user is None else self._plain
        payload = codec.encode_events(cursor, fragments, parts.compacted)
        left = sum(parts.compacted.values())
        return Frame(cursor, payload, len(fragments), seen, told, left, parts.is_full, scanned)

    def _scan(
        self,
        parts: FrameBuilder,
        cursor: int,
        upto: int,
        user: str | None,
        summed: Mapping[str, StreamSample | None],
        compacted: bool,
        lag: ReaderPosition,
    ) -> tuple[int, int]:
        """Fills the frame from the log; up to where, and how many entries that took."""
        whole = lag.is_in_full
        states = compacted and not whole
        follows = bool(parts.pieces)
        parts.needs_sort = parts.needs_sort or states or follows
        reached, scanned = cursor, -1
        for scanned, entry in enumerate(self._log.entries_after(cursor, telemetry=self._telemetry)):
            if entry.offset > upto:
                return upto, scanned
            if scanned == SCAN_ENTRIES:
                return reached, scanned
            event = entry.event
            owner = event.user
            if (owner is None or owner == user) and (whole or not entry.is_deferred) and self.accepts(entry):
                critical = event.priority is Priority.critical
                if summed and owner is None and event.type in summed and not critical:
                    sampled = summed[event.type]
                    if sampled is None:
                        if not parts.summarise(entry):
                            return reached, scanned
                        reached = entry.offset
                        continue
                    if entry.offset > sampled.began_offset and entry.offset not in sampled.offsets:
                        parts.omit(event.type, 1)
                        reached = entry.offset
                        continue
                fragment = self.encode_for(entry)
                if fragment is not None:
                    is_state = states and event.delivery is Delivery.state
                    if is_state and not critical:
                        put = parts.add_state(entry, fragment)
                    else:
                        # A state that was released is older: a critical one of its key doesn't go before it.
                        put = parts.add(
                            entry.offset, fragment, later=not (states and critical) or (is_state and follows)
                        )
                    if put and is_state and critical:
                        parts.supersede_state(entry.state_key)
                    if not put:
                        return reached, scanned
            reached = entry.offset
        return upto, scanned + 1

    def add_released(self, parts: FrameBuilder, seen: int, edge: int, user: str | None, last: int) -> int:
        """Puts in the states of the releases behind `seen` and up to `last` whose offset is `edge` at most; up to which
        release that is done.
        """
        for number, entry in self._conflator.releases_since(seen):
            if number > last:
                break
            if entry.offset <= edge and entry.event.user in (None, user) and self.accepts(entry):
                fragment = self.encode_for(entry)
                if fragment is not None:
                    if not parts.add(entry.offset, fragment):
                        return seen
                    parts.omit(entry.event.type, 0)  # the frame has to say that it is not in the order of offsets
            seen = number
        return last

    # -------------------------------------------------------------------------------- what the log no longer has

    def _add_trimmed(self, parts: FrameBuilder, lag: ReaderPosition, user: str | None) -> tuple[int, Counts, int]:
        """Puts in the durable events and the newest states that are older than the log.

        Up to where, what they change in the counts, and how many entries were looked at.
        """
        durable, upto = self._log.durable_tail(lag.offset, lag.trimmed_until), lag.trimmed_until
        if len(durable) > OLDER_ENTRIES:
            del durable[OLDER_ENTRIES:]
            upto = durable[-1].offset
        told = dict(lag.reported_omitted)
        have = {entry.offset for _, entry in self._conflator.releases_since(lag.last_release)}
        latest = self._log.latest_states()
        states = [e for e in latest if lag.offset < e.offset <= min(upto, self._log.start_offset)]
        reached, scanned = lag.offset, len(durable) + len(latest)
        for entry in sorted(durable + states, key=_offset_of):
            if (
                entry.is_deferred
                or entry.offset in have
                or entry.event.user not in (None, user)
                or not self.accepts(entry)
            ):
                continue
            fragment = self.encode_for(entry)
            if fragment is not None:
                is_state = entry.event.delivery is Delivery.state
                critical = entry.event.priority is Priority.critical
                if not parts.add(entry.offset, fragment, later=is_state or not critical):
                    return reached, told, scanned
                if is_state:  # it was counted
                    told[entry.event.type] = told.get(entry.event.type, 0) + 1
            reached = entry.offset
        return max(upto, reached), told, scanned

    def count_trimmed(self, lags: Iterable[tuple[ReaderPosition, str]], dropped: TrimmedEntries, upto: int) -> None:
        """Before the log drops what lies up to `upto`: counts it for these connections, each with its user.

        Durable events are not counted: they are there for longer.
        """
        anything = -1
        by_type: dict[str, list[int]] = {}
        for entry in dropped.others.get(self, ()):
            if self.is_visible(entry):
                anything = entry.offset
                if entry.event.delivery is not Delivery.durable:
                    by_type.setdefault(entry.event.type, []).append(entry.offset)
        for name, flow in self.streams.items():
            offsets = dropped.telemetry.get(flow)
            if offsets:
                anything = max(anything, offsets[-1])
                by_type[name] = offsets
        counts: dict[int, Counter[str]] = {}  # by cursor
        made: dict[tuple[int, int], tuple[Counts, Counts]] = {}  # with the old ones, so that their ids stay theirs
        for lag, user in lags:
            cursor = lag.offset
            if cursor >= upto:
                continue
            mine = [e for e in dropped.own.get(user, ()) if e.offset > cursor and self.accepts(e)]
            if lag.is_in_full and (anything > cursor or mine):
                lag.full_until = (
                    0  # it came back, and can't have all in full any more: the rest is counted, as for others
                )
            lag.trimmed_until = upto
            behind = counts.get(cursor)
            if behind is None:
                found = ((name, len(offsets) - bisect_right(offsets, cursor)) for name, offsets in by_type.items())
                behind = counts[cursor] = Counter({name: events for name, events in found if events})
            place = (cursor, id(lag.reported_omitted))
            counted = [e.event.type for e in mine if e.event.delivery is not Delivery.durable]
            if counted:
                lag.reported_omitted = _less(lag.reported_omitted, behind + Counter(counted))
            elif behind:
                if place not in made:
                    made[place] = (lag.reported_omitted, _less(lag.reported_omitted, behind))
                lag.reported_omitted = made[place][1]


class TrimmedEntries:
    """What the log is about to drop, for the feeds that have connections that have not read it.

    telemetry: the offsets, by flow. others: what is for all who want it, by feed. own: what is for one user alone.
    """

    def __init__(self) -> None:
        self.telemetry: dict[AggregationStream[Any], list[int]] = {}
        self.others: dict[CatchUpReader, list[Entry]] = {}
        self.own: dict[str, list[Entry]] = {}


def _less(told: Counts, counts: Mapping[str, int]) -> Counts:
    return {name: told.get(name, 0) - counts.get(name, 0) for name in {*told, *counts}}


def _offset_of(entry: Entry) -> int:
    return entry.offset
