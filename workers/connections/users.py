"""The users of a shard: which connections each has here, and how much it may say.

What it keeps true: a user is here while it has a connection, or one of its handshakes is under way. Of its connections
that were not told to leave there are at most `limit`, and these are the newest. What it may say is counted for the user
and not for each connection: another connection gives nobody more, nor does one after the other, since it is remembered
for the users who left last. Connections that speak a dialect stand beside the others: they replace none and are
replaced by none, and have a limit of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from solowire.workers.connections.connection import Connection, State

MAX_REMEMBERED = 10_000
"""Of so many users who have left it is known what they said last: 3 MB."""

ENDING_STATES = (State.draining, State.closing, State.closed)


class User:
    """One user's connections on this shard.

    connections: oldest first. handshake_count: handshakes under way.

    messages_full_at, changes_full_at, replays_full_at: when the buckets of what it may say, subscribe, and have read of
    the log are full again (`solowire.algorithms.token_bucket`).
    """

    __slots__ = ("changes_full_at", "connections", "handshake_count", "messages_full_at", "replays_full_at")

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.handshake_count = 0
        self.messages_full_at = self.changes_full_at = self.replays_full_at = -inf

    def active(self) -> list[Connection]:
        """Those that were not told to leave and speak no dialect, oldest first."""
        return [c for c in self.connections if c.state not in ENDING_STATES and c.dialect is None]

    def dialect_connections(self) -> list[Connection]:
        """Those that were not told to leave and speak a dialect, oldest first."""
        return [c for c in self.connections if c.state not in ENDING_STATES and c.dialect is not None]


class UserRegistry:
    """By name. limit: connections of one user. dialect_limit: of those that speak a dialect."""

    def __init__(self, limit: int, dialect_limit: int = 10) -> None:
        self._limit = limit
        self.dialect_limit = dialect_limit
        self._users: dict[str, User] = {}
        self._recent_users: OrderedDict[str, User] = (
            OrderedDict()
        )  # those who had said something, who left last at the end

    def __len__(self) -> int:
        """Users who have a connection, or are about to."""
        return len(self._users)

    def get(self, name: str) -> User | None:
        return self._users.get(name)

    def is_at_limit(self, name: str) -> bool:
        """Whether the user has as many as it may, handshakes included."""
        user = self._users.get(name)
        return user is not None and len(user.active()) + user.handshake_count >= self._limit

    def replaceable(self, name: str) -> Connection | None:
        """The connection that one more would replace."""
        user = self._users.get(name)
        staying = user.active() if user is not None else []
        return staying[0] if len(staying) >= self._limit else None

    def list_dialect(self, name: str) -> list[Connection]:
        """The user's connections that speak a dialect, oldest first."""
        user = self._users.get(name)
        return user.dialect_connections() if user is not None else []

    def begin_handshake(self, name: str) -> None:
        """A handshake of the user has begun; `cancel_handshake` or `add` ends it."""
        self._user(name).handshake_count += 1

    def cancel_handshake(self, name: str) -> None:
        """The handshake came to nothing."""
        user = self._users.get(name)
        if user is not None:
            user.handshake_count = max(0, user.handshake_count - 1)
            self._forget_if_gone(name, user)

    def add(self, connection: Connection) -> list[Connection]:
        """The user has another connection; returns those that it replaces."""
        user = self._user(connection.identity.user)
        user.handshake_count = max(0, user.handshake_count - 1)
        older = user.active() if connection.dialect is None else []
        user.connections.append(connection)
        return older[: max(0, len(older) + 1 - self._limit)]

    def excess_over(self, name: str, elsewhere: int) -> list[Connection]:
        """The connections that have to go, since the user has so many newer ones elsewhere."""
        user = self._users.get(name)
        staying = user.active() if user is not None else []
        return staying[: max(0, len(staying) - max(0, self._limit - elsewhere))]

    def remove(self, connection: Connection) -> None:
        user = self._users.get(connection.identity.user)
        if user is not None and connection in user.connections:
            user.connections.remove(connection)
            self._forget_if_gone(connection.identity.user, user)

    def _user(self, name: str) -> User:
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = self._recent_users.pop(name) if name in self._recent_users else User()
        return user

    def _forget_if_gone(self, name: str, user: User) -> None:
        if not user.connections and not user.handshake_count:
            del self._users[name]
            if max(user.messages_full_at, user.changes_full_at, user.replays_full_at) > -inf:
                self._recent_users[name] = user
                if len(self._recent_users) > MAX_REMEMBERED:
                    self._recent_users.popitem(last=False)
