"""The builder of catch-up frames: their content and the room that is left. `catch_up` decides what goes in.

What it keeps true: the parts together never take more than the room that they were given, unless one event alone does;
what is left out is counted; and the fragments come out in the order of offsets, critical ones first where the frame
says that it left out something.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from solowire.fanout.aggregation import SUMMARY_BYTES, Digest, build_digest
from solowire.fanout.conflation import Key
from solowire.fanout.reader import Counts, subtract_counts
from solowire.fanout.recent_log import Entry
from solowire.model.catalog import Catalog
from solowire.model.condition_match import compile_conditions, meets_conditions
from solowire.model.events import Priority
from solowire.model.subscriptions import Selection
from solowire.protocol.dialect_codec import AnyCodec

SAMPLE_BYTES = 16 * 1024
"""What the sample of one type takes at most."""

NOTHING: frozenset[str] = frozenset()


class FeedKey(msgspec.Struct, frozen=True):
    """What makes two connections the same feed. hidden: the fields that redaction takes out, by event type."""

    selection: Selection
    hidden: tuple[tuple[str, frozenset[str]], ...]
    codec: AnyCodec


class FeedFilter:
    """What one feed wants and may see."""

    __slots__ = ("_codec", "_hidden", "_plain", "_selection", "_summary_hidden", "key")

    def __init__(self, key: FeedKey, catalog: Catalog) -> None:
        self.key = key
        self._codec = key.codec  # of frames that hold nothing of one user's own; all others are plain
        self._plain = key.codec.without_deflate
        ready = {filter: compile_conditions(filter, catalog) for _, filter in key.selection}  # many types share one
        self._selection = {name: ready[filter] for name, filter in key.selection}
        self._hidden = dict(key.hidden)
        self._summary_hidden = {
            name: event_type.rollup.list_hidden(hidden)
            for name, hidden in key.hidden
            if (event_type := catalog.get_declared(name)) is not None and event_type.rollup is not None
        }

    def has_type(self, name: str) -> bool:
        """Whether its selection holds the event type `name`, under whatever conditions."""
        return name in self._selection

    def accepts(self, entry: Entry) -> bool:
        """Whether the feed wants `entry`, redaction apart."""
        for name in entry.match_names:
            conditions = self._selection.get(name)
            if conditions is not None:
                return not conditions or meets_conditions(entry.event.attributes, conditions)
        return False

    def encode_for(self, entry: Entry) -> bytes | None:
        """`entry` as this feed's connections may see it; None if nothing is left of it."""
        return entry.get_fragment(self._plain, self._hidden_of(entry) if self._hidden else NOTHING)

    def _hidden_of(self, entry: Entry) -> frozenset[str]:
        for name in entry.match_names:
            if name in self._hidden:
                return self._hidden[name]
        return NOTHING

    def encode_summary(self, name: str, summary: Entry) -> bytes | None:
        """A summary of events of the type `name`, as `fragment`."""
        return summary.get_fragment(self._plain, self._summary_hidden.get(name, NOTHING))

    def is_visible(self, entry: Entry) -> bool:
        """Whether redaction leaves anything of an entry that the feed accepts."""
        return not self._hidden or not self._hidden_of(entry) or self.encode_for(entry) is not None


class FrameBuilder:
    """A frame that is being filled."""

    __slots__ = ("_states", "_summed", "bytes_left", "compacted", "is_full", "needs_sort", "pieces", "started_at")

    def __init__(self, room: int) -> None:
        self.bytes_left = room
        self.is_full = False
        self.needs_sort = False
        self.started_at = 0.0  # when the event before the first of these was taken
        self.pieces: list[tuple[bool, int, bytes]] = []  # not critical, offset, fragment
        self.compacted: dict[str, int] = {}
        self._states: dict[Key, tuple[Entry, bytes]] = {}
        self._summed: dict[str, list[Entry]] = {}

    def add(self, offset: int, fragment: bytes, *, later: bool = True) -> bool:
        """Takes an event, if there is room; one that is too large for any frame has one to itself."""
        size = len(fragment) + 1
        if size > self.bytes_left and (self.pieces or self._states or self._summed):
            self.is_full = True
            return False
        self.bytes_left -= size
        self.pieces.append((later, offset, fragment))
        return True

    def add_state(self, entry: Entry, fragment: bytes) -> bool:
        """Takes a state in the place of an older value of its key."""
        known = self._states.get(entry.state_key)
        if known is None:
            size = len(fragment) + 1
            if size > self.bytes_left and (self.pieces or self._states or self._summed):
                self.is_full = True
                return False
        else:
            size = len(fragment) - len(known[1])
            if size > max(self.bytes_left, 0):
                self.is_full = True
                return False
            self.omit(entry.event.type, 1)
        self.bytes_left -= size
        self._states[entry.state_key] = (entry, fragment)
        return True

    def supersede_state(self, key: Key) -> None:
        """A value of this key goes to the frame's front: an older one must not come behind it."""
        known = self._states.pop(key, None)
        if known is not None:
            self.bytes_left += len(known[1]) + 1
            self.omit(key[0], 1)

    def summarise(self, entry: Entry) -> bool:
        """Takes an event that only counts."""
        name = entry.event.type
        entries = self._summed.get(name)
        if entries is None:
            if not self.reserve_summary():
                return False
            entries = self._summed[name] = []
        entries.append(entry)
        return True

    def reserve_summary(self) -> bool:
        """Keeps room for a digest."""
        if self.bytes_left < SUMMARY_BYTES and (self.pieces or self._states or self._summed):
            self.is_full = True
            return False
        self.bytes_left -= SUMMARY_BYTES
        return True

    def add_digest(self, name: str, digest: Digest, matcher: FeedFilter) -> None:
        """Puts a digest where room was kept for it: its summary, what fits of its sample, and the count of the rest."""
        self.bytes_left += SUMMARY_BYTES
        self.add_summaries(name, digest.summaries, matcher)
        room = min(self.bytes_left, SAMPLE_BYTES)
        sent = 0
        for entry in digest.sample:
            fragment = matcher.encode_for(entry)
            if fragment is not None and len(fragment) < room:
                room -= len(fragment) + 1
                self.bytes_left -= len(fragment) + 1
                sent += 1
                self.pieces.append((entry.event.priority is not Priority.critical, entry.offset, fragment))
        if sent < digest.total:
            self.omit(name, digest.total - sent)

    def add_summaries(self, name: str, summaries: Iterable[Entry], matcher: FeedFilter) -> None:
        """Puts in what fits of these. They stand for events that the connection has been told of before."""
        self.needs_sort = True
        for summary in summaries:
            fragment = matcher.encode_summary(name, summary)
            if fragment is not None and len(fragment) < self.bytes_left:
                self.bytes_left -= len(fragment) + 1
                self.pieces.append((True, summary.offset, fragment))
                self.omit(name, 0)

    def omit(self, name: str, events: int) -> None:
        self.compacted[name] = self.compacted.get(name, 0) + events

    def add_omitted(self, counts: Counts, reported: Counts) -> None:
        """Adds what of a feed's counts has not been told."""
        if counts != reported:
            for name, events in subtract_counts(counts, reported):
                if events > 0:
                    self.omit(name, events)

    def build_fragments(self, matcher: FeedFilter) -> list[bytes]:
        """All that is to be in the frame."""
        for name, entries in self._summed.items():
            seconds = entries[-1].event.taken - (self.started_at or entries[0].event.taken)
            self.add_digest(name, build_digest(entries, seconds if seconds > 0 else 1.0), matcher)
        self.pieces += ((True, entry.offset, fragment) for entry, fragment in self._states.values())
        if self.needs_sort or self._states:
            # A frame whose order is not that of the offsets has to say so, and one that left out something does.
            self.pieces.sort(key=None if self.compacted else _offset_of_piece)
        return [fragment for _, _, fragment in self.pieces]


def _offset_of_piece(piece: tuple[bool, int, bytes]) -> int:
    return piece[1]
