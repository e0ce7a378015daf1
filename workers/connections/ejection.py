"""Ejection of users: by an administrator, or because their tokens were revoked.

What it keeps true: who is covered is closed in the same turn in which the word comes, and told why; nobody else is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from solowire.auth.revocations import index_revocations
from solowire.backplane.messages import Revocation
from solowire.protocol.close_codes import CloseCode
from solowire.workers.connections.connection import Connection

_REASONS = {CloseCode.disconnected: "disconnected", CloseCode.unauthenticated: "token_revoked"}


class Ejection:
    """Closes the connections of users that are thrown out.

    connections: all of the shard's. close(connection, code): ends one.
    """

    def __init__(self, connections: Collection[Connection], close: Callable[[Connection, CloseCode], None]) -> None:
        self._connections = connections
        self._close = close

    def disconnect(self, user: str) -> int:
        """An administrator wants none of the user's connections here; how many there were."""
        return self._eject([c for c in self._connections if c.identity.user == user], CloseCode.disconnected)

    def revoke(self, revocations: Iterable[Revocation]) -> int:
        """These have just come into force: whom they cover is closed. How many that are."""
        table = index_revocations(revocations)
        return self._eject([c for c in self._connections if table.covers(c.identity)], CloseCode.unauthenticated)

    def _eject(self, connections: list[Connection], code: CloseCode) -> int:
        for connection in connections:
            connection.drain_reason = _REASONS[code]
            self._close(connection, code)
        return len(connections)
