"""The router of events to feeds: each event as it comes, and each state whose time has come.

What it keeps true: an event for all goes to the feeds that accept it, found without a look at the others; one for a
user goes to that user's connections, by their feeds, and to nobody else. A state that comes too soon is held back; when
a newer one goes out in its place, the feeds that would have got it know how many there were. Whatever is wrong with one
event, those behind it go on their way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sized

from solowire.backplane.messages import LogBatch
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.fanout.skipped_events import FAILED
from solowire.model.events import Delivery
from solowire.runtime.settings.shard_settings import FlushSettings
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import UserRegistry
from solowire.workers.delivery.dispatcher import Dispatcher

_STATE, _TELEMETRY = Delivery.state, Delivery.telemetry  # an enumeration looks its members up by name, each time


class EventRouter:
    """Routes events to the feeds that want them. connections: those that there are. totals: where it counts."""

    def __init__(
        self,
        recent_log: RecentLog,
        conflator: Conflator,
        feeds: FeedIndex[Connection],
        dispatcher: Dispatcher,
        users: UserRegistry,
        connections: Sized,
        totals: Counter[str],
        *,
        delays: FlushSettings,
    ) -> None:
        self._log = recent_log
        self._conflator = conflator
        self._feeds = feeds
        self._users = users
        self._connections = connections
        self._totals = totals
        self._delays = delays
        self._schedule = dispatcher.schedule_feed  # looked up once: it is called for nearly every event

    def seed_states(self, events: Iterable[tuple[int, bytes]]) -> None:
        """Takes the present states, with which a log begins: nobody gets them for that."""
        for offset, body in events:
            entry = self._log.decode_entry(offset, body)
            if entry is not None:
                self._log.seed_state(entry)

    def route_batch(self, batch: LogBatch, now: float) -> None:
        """Puts the events of the next part of the log into ours, and on the way to those who want them.

        One that can't be loaded, or be dealt with, is passed over. The log then stands where the part ends.
        """
        for offset, body in batch.events:
            if offset <= self._log.position:
                continue  # sent again after a reconnect
            entry = self._log.append(offset, body)
            if entry is not None:
                try:
                    self._route(entry, now)
                except Exception as error:  # the events behind it are on their way to others
                    self._log.skipped.skip(FAILED, offset, entry.event.type, error)
        self._log.position = max(self._log.position, batch.end_offset)
        self._conflator.mark_position(self._log.position, now)

    def _route(self, entry: Entry, now: float) -> None:
        self._totals["events"] += 1
        event = entry.event
        delivery = event.delivery
        if delivery is _STATE and not self._is_due(entry, now):
            return
        delay = self._delays.delay_for(event.priority, len(self._connections))
        user = event.user
        if user is None:
            if delivery is _TELEMETRY:
                sooner, summed = self._feeds.add_telemetry(entry, delay, now)
                self._totals["aggregated_events"] += summed
                for feed in sooner:
                    self._schedule(feed)
                return
            for feed in self._feeds.matching(entry):
                if feed.add(entry, delay, now):
                    self._schedule(feed)
            return
        known = self._users.get(user)
        for connection in known.connections if known is not None else ():
            own = connection.feed
            if own is not None and own.filter.accepts(entry) and own.add_personal(connection, entry, delay, now):
                self._schedule(own)

    def _is_due(self, entry: Entry, now: float) -> bool:
        """Whether a state may be sent at once; else it is held back."""
        due, overtaken = self._conflator.offer(entry, now)
        if overtaken is not None:
            self._count_superseded(overtaken.last, overtaken.state_count)
        return due

    def _count_superseded(self, last: Entry, states: int) -> None:
        self._totals["conflated_states"] += states
        for feed in self._feeds.matching(last) if last.event.user is None else ():
            if feed.filter.is_visible(last):
                feed.count_omitted(last.event.type, states)

    def release_due(self, now: float) -> None:
        """Sends the states whose interval has ended."""
        for number, entry, overtaken in self._conflator.due_values(now):
            try:
                self._release(number, entry, overtaken, now)
            except Exception as error:  # the states behind it are due, too
                self._log.skipped.skip(FAILED, entry.offset, entry.event.type, error)

    def _release(self, number: int, entry: Entry, overtaken: int, now: float) -> None:
        if overtaken:
            self._count_superseded(entry, overtaken)
        delay = self._delays.delay_for(entry.event.priority, len(self._connections))
        user = entry.event.user
        if user is None:
            for feed in self._feeds.matching(entry):
                if feed.release_state(number, None, delay, now):
                    self._schedule(feed)
            return
        known = self._users.get(user)
        for connection in known.connections if known is not None else ():
            own = connection.feed
            if own is not None and own.filter.accepts(entry) and own.release_state(number, connection, delay, now):
                self._schedule(own)
