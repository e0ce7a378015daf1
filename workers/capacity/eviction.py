"""The choice of connections to evict when a lease grants less than is used.

What it keeps true: no more are chosen than have to go, those included that are going already, for whatever reason: each
of them has a slot until its socket is gone. Connections that speak a dialect go first, but for a user's newest one if
that is all that the user has. Then goes who has been idle longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nsmallest

from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.users import ENDING_STATES, UserRegistry


class EvictionPolicy:
    """Counts, by group, who was told to leave or closed, and whose socket is not yet gone."""

    def __init__(self, users: UserRegistry) -> None:
        self._users = users
        self._ending: Counter[str] = Counter()

    def mark_ending(self, connection: Connection) -> None:
        """It is about to be told to leave, or closed. Said again of one that goes already, it changes nothing."""
        if connection.state not in ENDING_STATES:
            self._ending[connection.group] += 1

    def mark_closed(self, connection: Connection) -> None:
        """Its socket is about to be known as gone."""
        if connection.state in ENDING_STATES and connection.state is not State.closed:
            self._ending[connection.group] -= 1
            if not self._ending[connection.group]:
                del self._ending[connection.group]

    def select(self, excess: Mapping[str, int], connections: Iterable[Connection]) -> list[Connection]:
        """Those of `connections` that have to go so that each group is `excess` smaller than it is."""
        needed = {group: n for group, number in excess.items() if (n := number - self._ending[group]) > 0}
        if not needed:
            return []
        staying: dict[str, list[Connection]] = {group: [] for group in needed}
        for connection in connections:
            if connection.group in needed and connection.state not in ENDING_STATES:
                staying[connection.group].append(connection)
        return [c for group, number in needed.items() for c in nsmallest(number, staying[group], key=self._rank)]

    def _rank(self, connection: Connection) -> tuple[bool, float]:
        return not self._is_spare(connection), connection.last_message_at

    def _is_spare(self, connection: Connection) -> bool:
        """Whether its user can do without it."""
        user = self._users.get(connection.identity.user)
        if connection.dialect is None or user is None:
            return False
        return bool(user.active()) or connection is not user.dialect_connections()[-1]
