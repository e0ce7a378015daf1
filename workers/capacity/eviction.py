"""Who gives way when a lease grants less than is used.

What it keeps true: no more are chosen than have to go, those included that are going already, for whatever reason: each
of them has a slot until its socket is gone. Who has been idle longest goes first; before those, once there is a legacy
protocol, which comes later and which no connection speaks yet, further legacy connections of a user who has others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nsmallest

from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.users import GOING, Users


class GivingWay:
    """Counts, by group, who was told to leave or closed, and whose socket is not yet gone."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._going: Counter[str] = Counter()

    def goes(self, connection: Connection) -> None:
        """It is about to be told to leave, or closed. Said again of one that goes already, it changes nothing."""
        if connection.state not in GOING:
            self._going[connection.group] += 1

    def gone(self, connection: Connection) -> None:
        """Its socket is about to be known as gone."""
        if connection.state in GOING and connection.state is not State.gone:
            self._going[connection.group] -= 1
            if not self._going[connection.group]:
                del self._going[connection.group]

    def choose(self, excess: Mapping[str, int], connections: Iterable[Connection]) -> list[Connection]:
        """Those of `connections` that have to go so that each group is `excess` smaller than it is."""
        needed = {group: n for group, number in excess.items() if (n := number - self._going[group]) > 0}
        if not needed:
            return []
        staying: dict[str, list[Connection]] = {group: [] for group in needed}
        for connection in connections:
            if connection.group in needed and connection.state not in GOING:
                staying[connection.group].append(connection)
        return [c for group, number in needed.items() for c in nsmallest(number, staying[group], key=self._rank)]

    def _rank(self, connection: Connection) -> tuple[bool, float]:
        user = self._users.get(connection.identity.user)
        duplicate = connection.kind == "legacy" and user is not None and len(user.staying()) > 1
        return not duplicate, connection.heard_at
