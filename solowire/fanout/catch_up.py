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
* Nothing is kept per connection but its `Reader`: where it stands. What the log drops before a connection has read it
  is looked through once, and counted (`trimmed_entries`); the newest states are still there
  (`RecentLog.latest_states`), and so are the durable events, for longer than any others (`RecentLog.durable_tail`).
  When one is gone that a connection lacks, the connection is *lost*: it has to come back with its cursor.

A flood (`aggregation`) and a slow reader are compacted by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from solowire.fanout.aggregation import SUMMARY_BYTES, AggregationStream
from solowire.fanout.conflation import Conflator
from solowire.fanout.frame_builder import FeedFilter, FrameBuilder
from solowire.fanout.reader import Counts, FeedHead, Reader, make_counts
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

    last_release, reported_omitted: as in `Reader`, then. omitted_count: events that it counts and does not hold.
    is_full: more did not fit. scanned_count: how many entries were looked at for it.
    """

    cursor: int
    payload: str | bytes | None
    event_count: int = 0
    last_release: int = 0
    reported_omitted: Counts = ()
    omitted_count: int = 0
    is_full: bool = False
    scanned_count: int = 0


class StreamSample(msgspec.Struct, frozen=True, gc=False):
    """What a flow sends of the events that it has collected: those at these offsets, of all behind `began`."""

    began_offset: int
    offsets: set[int]


class CatchUp:
    """Makes the frames of the readers of one feed that are behind. filter: what the feed wants and may see."""

    __slots__ = ("_codec", "_conflator", "_filter", "_has_telemetry", "_log", "streams")

    def __init__(self, filter: FeedFilter, log: RecentLog, conflator: Conflator) -> None:
        self.streams: Mapping[str, AggregationStream[Any]] = {}  # by event type
        self._filter = filter
        self._codec = filter.key.codec  # of frames that hold nothing of one user's own; all others are plain
        self._log = log
        self._conflator = conflator
        types = (log.catalog.get_declared(name) for name, _ in filter.key.selection)
        self._has_telemetry = any(t is not None and t.delivery is Delivery.telemetry for t in types)

    def read_frame(self, reader: Reader, head: FeedHead, user: str | None = None, *, compacted: bool = False) -> Frame:
        """One frame for a reader, as the table above says; at most MAX_FRAME_BYTES of what lies up to the feed's head.

        user: whose personal events belong in it; None builds the frame that all share who have none. compacted: it is
        slow.
        """
        summed = self._summarised_types(reader, head, compacted=compacted)
        released = reader.last_release < head.last_release and reader.last_release < head.newest_release
        owed = reader.reported_omitted != head.reported_omitted
        plain = not (summed or compacted or released or owed)
        parts = FrameBuilder(MAX_EVENTS_BYTES if plain else COMPACTED_BYTES)
        if compacted and summed:
            parts.started_at = self._log.ingest_time_before(reader.offset)
        # What lies further on is read where it stands.
        edge = max(reader.offset, reader.trimmed_until)
        last_release = (
            self.add_released(parts, reader.last_release, edge, user, head.last_release)
            if released
            else max(reader.last_release, head.last_release)
        )
        if parts.is_full:
            return self.build_frame(parts, reader.offset, last_release, reader.reported_omitted, 0, user)
        cursor, reported, scanned = reader.offset, reader.reported_omitted if owed else head.reported_omitted, 0
        if cursor < reader.trimmed_until:
            cursor, reported, scanned = self._add_trimmed(parts, reader, user)
        summaries = self._summaries(parts, reader, head, summed)
        if not parts.is_full and reader.trimmed_until <= cursor < head.offset:
            upto = min(head.offset, reader.full_until) if reader.is_in_full else head.offset
            cursor, entries = self._scan(parts, cursor, upto, user, summed, compacted, reader)
            scanned += entries
        for name, found in summaries:
            parts.bytes_left += SUMMARY_BYTES
            parts.add_summaries(name, (s for s in found if s.offset <= cursor), self._filter)
        if owed and cursor >= reader.trimmed_until:
            parts.add_omitted(head.reported_omitted, reported)
            reported = head.reported_omitted
        return self.build_frame(parts, cursor, last_release, reported, scanned, user)

    def _summarised_types(
        self, reader: Reader, head: FeedHead, *, compacted: bool
    ) -> Mapping[str, StreamSample | None]:
        """The types that are aggregated in the connection's frame, with a sample of each stream.

        It is None for a slow one's, which has a summary of its own.
        """
        if not self.streams or reader.is_in_full:
            return {}
        if compacted:
            return dict.fromkeys(self.streams)
        return {
            name: StreamSample(
                flow.began_offset, {entry.offset for entry in flow.sample_between(reader.offset, head.offset)}
            )
            for name, flow in self.streams.items()
            if flow.is_active
        }

    def _summaries(
        self, parts: FrameBuilder, reader: Reader, head: FeedHead, summed: Mapping[str, StreamSample | None]
    ) -> list[tuple[str, Sequence[Entry]]]:
        """The summaries that belong in the connection's frame, each with room kept for it."""
        found = []
        for name, sampled in summed.items():
            if sampled is not None:
                summaries = self.streams[name].summaries_between(reader.offset, head.offset)
                if summaries and parts.reserve_summary():
                    found.append((name, summaries))
        return found

    def build_frame(
        self,
        parts: FrameBuilder,
        cursor: int,
        last_release: int,
        reported: Counts,
        scanned: int,
        user: str | None = None,
    ) -> Frame:
        """What is in `parts` as a frame; as `Frame` says. user: whose own events it holds."""
        fragments = parts.build_fragments(self._filter)
        if not fragments and not parts.compacted:
            return Frame(
                cursor,
                None,
                last_release=last_release,
                reported_omitted=reported,
                is_full=parts.is_full,
                scanned_count=scanned,
            )
        codec = self._codec if user is None else self._codec.without_deflate
        payload = codec.encode_events(cursor, fragments, parts.compacted)
        left = sum(parts.compacted.values())
        return Frame(cursor, payload, len(fragments), last_release, reported, left, parts.is_full, scanned)

    def _scan(
        self,
        parts: FrameBuilder,
        cursor: int,
        upto: int,
        user: str | None,
        summed: Mapping[str, StreamSample | None],
        compacted: bool,
        reader: Reader,
    ) -> tuple[int, int]:
        """Fills the frame from the log; up to where, and how many entries that took."""
        whole = reader.is_in_full
        states = compacted and not whole
        follows = bool(parts.pieces)
        parts.needs_sort = parts.needs_sort or states or follows
        reached, scanned = cursor, -1
        for scanned, entry in enumerate(self._log.entries_after(cursor, telemetry=self._has_telemetry)):
            if entry.offset > upto:
                return upto, scanned
            if scanned == SCAN_ENTRIES:
                return reached, scanned
            event = entry.event
            owner = event.user
            if (owner is None or owner == user) and (whole or not entry.is_deferred) and self._filter.accepts(entry):
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
                fragment = self._filter.encode_for(entry)
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

    def add_released(self, parts: FrameBuilder, last_release: int, edge: int, user: str | None, last: int) -> int:
        """Puts in the states of the releases behind `last_release` and up to `last` whose offset is `edge` at most.

        Returns up to which release that is done.
        """
        for number, entry in self._conflator.releases_since(last_release):
            if number > last:
                break
            if entry.offset <= edge and entry.event.user in (None, user) and self._filter.accepts(entry):
                fragment = self._filter.encode_for(entry)
                if fragment is not None:
                    if not parts.add(entry.offset, fragment):
                        return last_release
                    parts.omit(entry.event.type, 0)  # the frame has to say that it is not in the order of offsets
            last_release = number
        return last

    # -------------------------------------------------------------------------------- what the log no longer has

    def _add_trimmed(self, parts: FrameBuilder, reader: Reader, user: str | None) -> tuple[int, Counts, int]:
        """Puts in the durable events and the newest states that are older than the log.

        Up to where, what they change in the counts, and how many entries were looked at.
        """
        durable, upto = self._log.durable_tail(reader.offset, reader.trimmed_until), reader.trimmed_until
        if len(durable) > OLDER_ENTRIES:
            del durable[OLDER_ENTRIES:]
            upto = durable[-1].offset
        reported = dict(reader.reported_omitted)
        have = {entry.offset for _, entry in self._conflator.releases_since(reader.last_release)}
        latest = self._log.latest_states()
        states = [e for e in latest if reader.offset < e.offset <= min(upto, self._log.start_offset)]
        reached, scanned = reader.offset, len(durable) + len(latest)
        for entry in sorted(durable + states, key=_offset_of):
            if (
                entry.is_deferred
                or entry.offset in have
                or entry.event.user not in (None, user)
                or not self._filter.accepts(entry)
            ):
                continue
            fragment = self._filter.encode_for(entry)
            if fragment is not None:
                is_state = entry.event.delivery is Delivery.state
                critical = entry.event.priority is Priority.critical
                if not parts.add(entry.offset, fragment, later=is_state or not critical):
                    return reached, make_counts(reported), scanned
                if is_state:  # it was counted
                    reported[entry.event.type] = reported.get(entry.event.type, 0) + 1
            reached = entry.offset
        return max(upto, reached), make_counts(reported), scanned


def _offset_of(entry: Entry) -> int:
    return entry.offset
