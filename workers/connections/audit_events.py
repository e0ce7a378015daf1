"""The audit records of a shard's connections.

What it keeps true: each line says who it is about; of what somebody wishes it names AUDITED_SUBSCRIPTIONS at most, and
how many more there are.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.model.subscriptions import ResolvedSubscriptions
from solowire.workers.connections.connection import Connection

AUDITED_SUBSCRIPTIONS = 50
"""How many of a client's wishes a line of the audit log names."""


class ConnectionAudit:
    """Writes the audit records of a shard's connections. audit(event, **fields): writes a line."""

    def __init__(self, audit: Callable[..., None]) -> None:
        self._audit = audit

    def record_connected(self, connection: Connection) -> None:
        client = connection.dialect
        codec = connection.codec.label if client is None or not client.is_decided else client.name
        self._record("connected", connection, codec=codec, transport=connection.transport)

    def record_subscribed(self, connection: Connection, resolved: ResolvedSubscriptions) -> None:
        """It has said what it wants, or another token has changed what it gets of that."""
        patterns, denied = list(connection.wanted), [d.type for d in resolved.denied]
        most = AUDITED_SUBSCRIPTIONS
        more = max(0, len(patterns) - most) + max(0, len(denied) - most)
        fields = {"denied": denied[:most]} if denied else {}
        self._record("subscribed", connection, subscriptions=patterns[:most], more=more, **fields)

    def record_disconnected(self, connection: Connection, code: int | None, reason: str) -> None:
        """Records the end of a connection. code: of the close, None if the client has gone by itself."""
        self._record("disconnected", connection, code=code, reason=connection.drain_reason or reason)

    def _record(self, event: str, connection: Connection, **fields: object) -> None:
        identity = connection.identity
        self._audit(
            event,
            user=identity.user,
            role=identity.role,
            address=connection.address,
            session=connection.session,
            **fields,
        )
