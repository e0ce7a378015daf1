"""Throwing users out: by an administrator's word, or because their tokens are void.

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
    """connections: all of the shard's. close(connection, code): ends one. sign_out(user): tokens are void
    of clients that can be asked for no others, and would come back with them.
    """

    def __init__(
        self,
        connections: Collection[Connection],
        close: Callable[[Connection, CloseCode], None],
        sign_out: Callable[[str], None] = lambda user: None,
    ) -> None:
        self._connections = connections
        self._close = close
        self._sign_out = sign_out

    def disconnect(self, user: str) -> int:
        """An administrator wants none of the user's connections here; how many there were."""
        self._sign_out(user)
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
