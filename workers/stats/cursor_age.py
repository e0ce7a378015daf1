"""For how long what a connection gets next has been on its way.

What it keeps true: only events that the connection's feed wants count, so a stuck socket of a quiet feed does not grow
old by what others get. One answer looks through MOST_ENTRIES of the log at most, whatever is asked: what lies further
on is said to have the age 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solowire.fanout.feed import Feed
from solowire.fanout.recent_log import Entry
from solowire.workers.connections.connection import Connection
from solowire.workers.shard import Shard

MOST_ENTRIES = 5_000
"""At about a microsecond each."""


class CursorAges:
    """For one answer, at one time. now: seconds, monotonic."""

    def __init__(self, shard: Shard, now: float) -> None:
        self._log = shard.log
        self._wall = shard.clock.to_unix(now)
        self._left = MOST_ENTRIES

    def measure(self, connection: Connection) -> float:
        """Of the event that it gets next, in seconds; 0 if there is none, or nobody knows."""
        return self.measure_oldest((connection,))

    def measure_oldest(self, connections: Iterable[Connection]) -> float:
        """The largest of these connections' ages."""
        cursors: dict[Feed[Connection], dict[str, int]] = {}  # of each user, the last of its connections
        for connection in connections:
            feed = connection.feed
            if feed is not None:
                cursor, known = feed.cursor_of(connection), cursors.setdefault(feed, {})
                user = connection.identity.user
                known[user] = min(cursor, known.get(user, cursor))
        found: Entry | None = None
        for feed, users in sorted(cursors.items(), key=lambda pair: min(pair[1].values())):
            found = self._find_first(feed, users, found) or found
        return max(0.0, self._wall - found.event.taken) if found is not None and found.event.taken else 0.0

    def _find_first(self, feed: Feed[Connection], users: Mapping[str, int], before: Entry | None) -> Entry | None:
        """The first entry that one of these gets; None if none comes before that one."""
        for entry in self._log.entries_after(min(users.values())):
            if self._left <= 0 or (before is not None and entry.offset >= before.offset):
                return None
            self._left -= 1
            user = entry.event.user
            mine = user is None or users.get(user, entry.offset) < entry.offset
            if mine and not entry.is_deferred and feed.filter.accepts(entry) and feed.filter.is_visible(entry):
                return entry
        return None
