"""The present states, with which the log of a new shard begins: where in the journal the newest event of each is.

What it keeps true: their room is shared by publishers (`shared_room`), as it is in a shard's own log, so that nobody's
made-up states push out what others say. What has left the journal, or is damaged there, is passed over; a type is said
to lack states as long as one that found no room would be in the journal still. When the router starts, the newest
states in the journal take their places in the order of their offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
import structlog

from solowire.algorithms.shared_room import SharedRoom
from solowire.backplane.messages import PublishedEvent, StateSnapshot
from solowire.model.events import STATES, STATES_BYTES, decode_event, name_state
from solowire.router.log.journal import Journal, JournalHole, JournalUnavailable, Record
from solowire.router.log.known_ids import AppendResult
from solowire.router.log.state_selection import type_of_state

logger = structlog.get_logger("solowire.router")

READ_AT_START, BYTES_AT_START = 2 * STATES, 8 * STATES_BYTES


class PresentStates:
    """The present states in a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._room: SharedRoom[str, int] = SharedRoom(STATES_BYTES, STATES_BYTES // STATES)
        self._forgotten: dict[str, int] = {}  # by type: the newest offset of a state that found no room
        self._group: list[tuple[int, PublishedEvent, str]] = []  # of the journal's open group
        for record in self._read_newest():
            try:
                event = decode_event(record.body)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue  # no shard would take it, either
            name = name_state(event.type, event.key, event.user)
            self._put(name, record.offset, event.publisher or "", len(record.body))

    def note(self, events: Sequence[PublishedEvent], appended: AppendResult, publisher: str) -> None:
        """Events were put in the journal's open group."""
        if any(event.state is not None for event in events):
            known = set(appended.duplicates)
            self._group += (
                (offset, event, publisher)
                for index, (event, offset) in enumerate(zip(events, appended.offsets, strict=True))
                if event.state is not None and index not in known
            )

    def keep_group(self) -> None:
        """The open group is in the log."""
        for offset, event, publisher in self._group:
            self._put(event.state or "", offset, publisher, len(event.body))
        self._group.clear()

    def forget_group(self) -> None:
        """The open group could not be kept."""
        self._group.clear()

    def make_snapshot(self, upto: int) -> StateSnapshot:
        """What a log that begins behind `upto` begins with."""
        journal = self._journal
        events: list[tuple[int, bytes]] = []
        try:
            for offset in sorted(self._room):
                if journal.start_offset < offset <= upto:
                    with suppress(JournalHole):  # it is damaged there: the others are not
                        events += ((record.offset, record.body) for record in journal.read(offset - 1, 1))
        except JournalUnavailable as error:
            hint = "new shards start without some states; check the disk of the journal"
            logger.error("journal_unreadable", states=upto, reason=str(error), hint=hint)
        start = journal.start_offset
        self._forgotten = {kind: offset for kind, offset in self._forgotten.items() if offset > start}
        return StateSnapshot(journal.epoch, upto, events, sorted(self._forgotten))

    def _put(self, name: str, offset: int, publisher: str, size: int) -> None:
        for kind, gone in self._room.put(name, offset, publisher, type_of_state(name), size):
            self._forgotten[kind] = max(gone, self._forgotten.get(kind, 0))

    def _read_newest(self) -> Sequence[Record]:
        try:
            return self._journal.latest_states(self._journal.last_offset, READ_AT_START, BYTES_AT_START)
        except JournalUnavailable as error:
            hint = "new shards start without what was there before; check the disk of the journal"
            logger.error("journal_unreadable", states=self._journal.last_offset, reason=str(error), hint=hint)
            return []
