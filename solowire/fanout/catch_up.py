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
* Nothing is kept per connection but a `Lag`: where it stands. What the log drops before a connection has read it is
  looked through once, and counted; the newest states are still there (`Log.latest`), and so are the durable events, for
  longer than any others (`Log.older`). When one is gone that a connection lacks, the connection is *lost*: it has to
  come back with its cursor.

A flood (`aggregation`) and a slow reader are compacted by the same code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from solowire.fanout.aggregation import SUMMARY_BYTES, Flow
from solowire.fanout.conflation import Pacing
from solowire.fanout.frame_builder import Counts, FeedKey, Matcher, Parts
from solowire.fanout.recent_log import Entry, Log
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

    seen, told: as in `Lag`, then. left: events that it counts and does not hold. full: more did not fit. scanned: how
    many entries were looked at for it.
    """

    cursor: int
    payload: str | bytes | None
    events: int = 0
    seen: int = 0
    told: Counts = {}
    left: int = 0
    full: bool = False
    scanned: int = 0


class Lag(msgspec.Struct, gc=False):
    """Where a connection stands. seen: the newest release (`pacing`) that it has.

    told: of its feed's counts, those that it knows; one may be below zero, for what was counted for it alone.
    whole_upto: it came back, and gets all up to there. busy: its socket was. forgotten: what the log has dropped up to
    there was counted, durable events apart. lost: one of those is gone.
    """

    cursor: int
    seen: int = 0
    told: Counts = {}
    whole_upto: int = 0
    busy: bool = False
    forgotten: int = 0
    lost: bool = False

    @property
    def is_whole(self) -> bool:
        return self.cursor < self.whole_upto

    def place(self) -> tuple[int, ...]:
        """Connections of a feed with equal places get the same frame, what is for one user alone apart."""
        whole = self.whole_upto if self.is_whole else 0
        return (self.cursor, self.seen, id(self.told), whole, self.forgotten)


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """What a flow sends of the events that it has collected: those at these offsets, of all behind `began`."""

    began: int
    offsets: set[int]


class Reading(Matcher):
    """Reads the log for the connections of one feed that are behind.

    position: up to where it is read. seen, told: as in `Lag`, of the connections that are not behind. left: how many of
    each type were left out of the feed. released: the newest release that the feed accepts.
    """

    __slots__ = ("_log", "_pacing", "_telemetry", "flows", "left", "position", "released", "seen", "told")

    def __init__(self, key: FeedKey, log: Log, pacing: Pacing) -> None:
        super().__init__(key, log.catalog)
        self.position = log.position
        self.flows: Mapping[str, Flow[Any]] = {}  # by event type
        self.seen = pacing.last
        self.released = 0
        self.left: Counts = {}
        self.told: Counts = self.left
        self._log = log
        self._pacing = pacing
        types = (log.catalog.declared(name) for name, _ in key.selection)
        self._telemetry = any(t is not None and t.delivery is Delivery.telemetry for t in types)

    def read(self, lag: Lag, user: str | None = None, *, compacted: bool = False) -> Frame:
        """One frame for a connection, as the table above says; at most MAX_FRAME_BYTES of what lies up to `position`.

        user: whose personal events belong in it; None builds the frame that all share who have none. compacted: it is
        slow.
        """
        summed = self._summed(lag, compacted=compacted)
        released = lag.seen < self.seen and lag.seen < self.released
        owed = lag.told is not self.told and lag.told != self.told
        plain = not (summed or compacted or released or owed)
        parts = Parts(MAX_EVENTS_BYTES if plain else COMPACTED_BYTES)
        if compacted and summed:
            parts.since = self._log.taken_before(lag.cursor)
        # What lies further on is read where it stands.
        edge = max(lag.cursor, lag.forgotten)
        seen = self.put_released(parts, lag.seen, edge, user, self.seen) if released else max(lag.seen, self.seen)
        if parts.full:
            return self._frame(parts, lag.cursor, seen, lag.told, 0, user)
        cursor, told, scanned = lag.cursor, lag.told if owed else self.told, 0
        if cursor < lag.forgotten:
            cursor, told, scanned = self._put_older(parts, lag, user)
        summaries = self._summaries(parts, lag, summed)
        if not parts.full and lag.forgotten <= cursor < self.position:
            upto = min(self.position, lag.whole_upto) if lag.is_whole else self.position
            cursor, entries = self._scan(parts, cursor, upto, user, summed, compacted, lag)
            scanned += entries
        for name, found in summaries:
            parts.room += SUMMARY_BYTES
            parts.put_summaries(name, (s for s in found if s.offset <= cursor), self)
        if owed and cursor >= lag.forgotten:
            parts.tell(self.told, told)
            told = self.told
        return self._frame(parts, cursor, seen, told, scanned, user)

    def _summed(self, lag: Lag, *, compacted: bool) -> Mapping[str, Sampled | None]:
        """The types that are summed up in the connection's frame, and what its flow does; None for a slow one's, which
        has a summary of its own.
        """
        if not self.flows or lag.is_whole:
            return {}
        if compacted:
            return dict.fromkeys(self.flows)
        return {
            name: Sampled(flow.began, {entry.offset for entry in flow.sample_between(lag.cursor, self.position)})
            for name, flow in self.flows.items()
            if flow.active
        }

    def _summaries(
        self, parts: Parts, lag: Lag, summed: Mapping[str, Sampled | None]
    ) -> list[tuple[str, Sequence[Entry]]]:
        """The summaries that belong in the connection's frame, each with room kept for it."""
        found = []
        for name, sampled in summed.items():
            if sampled is not None:
                summaries = self.flows[name].summaries_between(lag.cursor, self.position)
                if summaries and parts.reserve():
                    found.append((name, summaries))
        return found

    def _frame(
        self, parts: Parts, cursor: int, seen: int, told: Counts, scanned: int, user: str | None = None
    ) -> Frame:
        fragments = parts.fragments(self)
        if not fragments and not parts.compacted:
            return Frame(cursor, None, seen=seen, told=told, full=parts.full, scanned=scanned)
        codec = self._codec if user is None else self._plain
        payload = codec.events(cursor, fragments, parts.compacted)
        left = sum(parts.compacted.values())
        return Frame(cursor, payload, len(fragments), seen, told, left, parts.full, scanned)

    def _scan(
        self,
        parts: Parts,
        cursor: int,
        upto: int,
        user: str | None,
        summed: Mapping[str, Sampled | None],
        compacted: bool,
        lag: Lag,
    ) -> tuple[int, int]:
        """Fills the frame from the log; up to where, and how many entries that took."""
        whole = lag.is_whole
        states = compacted and not whole
        follows = bool(parts.pieces)
        parts.sorts = parts.sorts or states or follows
        reached, scanned = cursor, -1
        for scanned, entry in enumerate(self._log.after(cursor, telemetry=self._telemetry)):
            if entry.offset > upto:
                return upto, scanned
            if scanned == SCAN_ENTRIES:
                return reached, scanned
            event = entry.event
            owner = event.user
            if (owner is None or owner == user) and (whole or not entry.held) and self.accepts(entry):
                critical = event.priority is Priority.critical
                if summed and owner is None and event.type in summed and not critical:
                    sampled = summed[event.type]
                    if sampled is None:
                        if not parts.sum_up(entry):
                            return reached, scanned
                        reached = entry.offset
                        continue
                    if entry.offset > sampled.began and entry.offset not in sampled.offsets:
                        parts.leave_out(event.type, 1)
                        reached = entry.offset
                        continue
                fragment = self.fragment(entry)
                if fragment is not None:
                    is_state = states and event.delivery is Delivery.state
                    if is_state and not critical:
                        put = parts.put_state(entry, fragment)
                    else:
                        # A state that was released is older: a critical one of its key doesn't go before it.
                        put = parts.put(
                            entry.offset, fragment, later=not (states and critical) or (is_state and follows)
                        )
                    if put and is_state and critical:
                        parts.overtake(entry.state)
                    if not put:
                        return reached, scanned
            reached = entry.offset
        return upto, scanned + 1

    def put_released(self, parts: Parts, seen: int, edge: int, user: str | None, last: int) -> int:
        """Puts in the states of the releases behind `seen` and up to `last` whose offset is `edge` at most; up to which
        release that is done.
        """
        for number, entry in self._pacing.since(seen):
            if number > last:
                break
            if entry.offset <= edge and entry.event.user in (None, user) and self.accepts(entry):
                fragment = self.fragment(entry)
                if fragment is not None:
                    if not parts.put(entry.offset, fragment):
                        return seen
                    parts.leave_out(entry.event.type, 0)  # the frame has to say that it is not in the order of offsets
            seen = number
        return last

    # -------------------------------------------------------------------------------- what the log no longer has

    def _put_older(self, parts: Parts, lag: Lag, user: str | None) -> tuple[int, Counts, int]:
        """Puts in the durable events and the newest states that are older than the log.

        Up to where, what they change in the counts, and how many entries were looked at.
        """
        durable, upto = self._log.older(lag.cursor, lag.forgotten), lag.forgotten
        if len(durable) > OLDER_ENTRIES:
            del durable[OLDER_ENTRIES:]
            upto = durable[-1].offset
        told = dict(lag.told)
        have = {entry.offset for _, entry in self._pacing.since(lag.seen)}
        latest = self._log.latest()
        states = [e for e in latest if lag.cursor < e.offset <= min(upto, self._log.floor)]
        reached, scanned = lag.cursor, len(durable) + len(latest)
        for entry in sorted(durable + states, key=_offset_of):
            if entry.held or entry.offset in have or entry.event.user not in (None, user) or not self.accepts(entry):
                continue
            fragment = self.fragment(entry)
            if fragment is not None:
                is_state = entry.event.delivery is Delivery.state
                critical = entry.event.priority is Priority.critical
                if not parts.put(entry.offset, fragment, later=is_state or not critical):
                    return reached, told, scanned
                if is_state:  # it was counted
                    told[entry.event.type] = told.get(entry.event.type, 0) + 1
            reached = entry.offset
        return max(upto, reached), told, scanned

    def forget(self, lags: Iterable[tuple[Lag, str]], dropped: Dropped, upto: int) -> None:
        """Before the log drops what lies up to `upto`: counts it for these connections, each with its user.

        Durable events are not counted: they are there for longer.
        """
        anything = -1
        by_type: dict[str, list[int]] = {}
        for entry in dropped.others.get(self, ()):
            if self.shows(entry):
                anything = entry.offset
                if entry.event.delivery is not Delivery.durable:
                    by_type.setdefault(entry.event.type, []).append(entry.offset)
        for name, flow in self.flows.items():
            offsets = dropped.telemetry.get(flow)
            if offsets:
                anything = max(anything, offsets[-1])
                by_type[name] = offsets
        counts: dict[int, Counter[str]] = {}  # by cursor
        made: dict[tuple[int, int], tuple[Counts, Counts]] = {}  # with the old ones, so that their ids stay theirs
        for lag, user in lags:
            cursor = lag.cursor
            if cursor >= upto:
                continue
            mine = [e for e in dropped.own.get(user, ()) if e.offset > cursor and self.accepts(e)]
            if lag.is_whole and (anything > cursor or mine):
                lag.whole_upto = (
                    0  # it came back, and can't have all in full any more: the rest is counted, as for others
                )
            lag.forgotten = upto
            behind = counts.get(cursor)
            if behind is None:
                found = ((name, len(offsets) - bisect_right(offsets, cursor)) for name, offsets in by_type.items())
                behind = counts[cursor] = Counter({name: events for name, events in found if events})
            place = (cursor, id(lag.told))
            counted = [e.event.type for e in mine if e.event.delivery is not Delivery.durable]
            if counted:
                lag.told = _less(lag.told, behind + Counter(counted))
            elif behind:
                if place not in made:
                    made[place] = (lag.told, _less(lag.told, behind))
                lag.told = made[place][1]


class Dropped:
    """What the log is about to drop, for the feeds that have connections that have not read it.

    telemetry: the offsets, by flow. others: what is for all who want it, by feed. own: what is for one user alone.
    """

    def __init__(self) -> None:
        self.telemetry: dict[Flow[Any], list[int]] = {}
        self.others: dict[Reading, list[Entry]] = {}
        self.own: dict[str, list[Entry]] = {}


def _less(told: Counts, counts: Mapping[str, int]) -> Counts:
    return {name: told.get(name, 0) - counts.get(name, 0) for name in {*told, *counts}}


def _offset_of(entry: Entry) -> int:
    return entry.offset
