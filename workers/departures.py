"""Departures: how a connection ends here, closed at once or sent to come back elsewhere.

What it keeps true: whichever part of the shard wants a connection to end, it ends in the same order. It gets nothing
more of the log, every part forgets it, its end is a line of the audit log and counts under its close code, and then its
socket is told. Each step is taken once, whatever ends it in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from solowire.model.dialect import Dialect
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import ReconnectNow
from solowire.workers.capacity.eviction import EvictionPolicy
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import MAX_STRIKES, Connection, State
from solowire.workers.connections.heartbeat import Heartbeats
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import TimerKind, Timers
from solowire.workers.connections.users import UserRegistry
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.history_scheduler import HistoryScheduler
from solowire.workers.session.dialect_handler import DialectHandler
from solowire.workers.session.handshake import Handshake

_REASONS = {
    "token_expired": "the token has expired",
    "token_revoked": "the token has been revoked",
    "bad_messages": f"{MAX_STRIKES} bad messages within a minute",
}
"""What a client is told, where that is more than its close code says: by why it was told to leave."""

CLOSED = "closed_"
"""Totals that begin so count closed connections, by close code, or `client_disconnected`."""


class Departures:
    """Ends the connections of one shard. connections: those that there are. totals: where it counts.

    dialect: whose close codes old frontends are told; dialects: its handler, None where nobody speaks it.
    """

    def __init__(
        self,
        connections: set[Connection],
        users: UserRegistry,
        dispatcher: Dispatcher,
        handshake: Handshake,
        history: HistoryScheduler,
        heartbeats: Heartbeats,
        eviction: EvictionPolicy,
        timers: Timers,
        sockets: Sockets,
        audit: ConnectionAudit,
        totals: Counter[str],
        dialect: Dialect | None,
        dialects: DialectHandler | None,
    ) -> None:
        self._connections = connections
        self._users = users
        self._dispatcher = dispatcher
        self._handshake = handshake
        self._history = history
        self._heartbeats = heartbeats
        self._eviction = eviction
        self._timers = timers
        self._sockets = sockets
        self._connection_audit = audit
        self._totals = totals
        self._dialect = dialect
        self._dialects = dialects

    def close(self, connection: Connection, code: CloseCode) -> None:
        """Ends it, if it has not ended: its socket is told why, and gone when `finish` is called."""
        if connection.state in (State.closing, State.closed):
            return
        self._eviction.mark_ending(connection)
        self._forget(connection)
        connection.become(State.closing)
        self._totals[f"{CLOSED}{code.value}"] += 1
        reason = _REASONS.get(connection.drain_reason, code.reason)
        self._connection_audit.record_disconnected(connection, code.value, reason)
        shown_code: int = code
        if connection.dialect is not None and self._dialect is not None:
            shown_code = self._dialect.convert_close_code(code.value, connection.drain_reason)
        self._sockets.close(connection, shown_code, reason)

    def close_all(self, connections: Iterable[Connection], code: CloseCode) -> None:
        """Ends each of these."""
        for connection in list(connections):
            self.close(connection, code)

    def close_lost(self) -> None:
        """Ends those for whom events are lost, as the dispatcher says."""
        for connection in self._dispatcher.take_lost():
            self.close(connection, CloseCode.too_slow)

    def eject(self, connections: Sequence[Connection], code: CloseCode, reason: str) -> int:
        """Ends those whom somebody wants out; how many they were."""
        for connection in connections:
            connection.drain_reason = reason
            self.close(connection, code)
        return len(connections)

    def send_away(
        self, connection: Connection, after: float, reason: str, now: float, close_after: float | None = None
    ) -> None:
        """Tells it to come back elsewhere, and gives it nothing more: its cursor stays what it has seen.

        after, close_after: seconds; by default it has a second more than it is to wait, to go by itself.
        """
        self._dispatcher.leave_feed(connection)
        self._handshake.cancel(connection)
        self._eviction.mark_ending(connection)
        connection.drain_reason = reason
        connection.become(State.draining)
        if connection.dialect is not None:  # it is told by the close alone, and waits for nothing
            close_after = after if close_after is None else close_after
        self._dispatcher.send_reply(connection, ReconnectNow(int(after * 1000), reason), now)
        self._timers.schedule(now + (after + 1.0 if close_after is None else close_after), TimerKind.leave, connection)

    def finish(self, connection: Connection) -> bool:
        """Its socket has ended, whoever ended it; False if that is known."""
        if connection.state is State.closed:
            return False
        self._eviction.mark_closed(connection)
        if connection.state is not State.closing:
            self._totals[f"{CLOSED}client_disconnected"] += 1
            self._connection_audit.record_disconnected(connection, None, "client disconnected")
        self._forget(connection)
        connection.become(State.closed)
        return True

    def _forget(self, connection: Connection) -> None:
        self._dispatcher.forget_connection(connection)
        self._connections.discard(connection)
        self._heartbeats.discard(connection)
        self._handshake.cancel(connection)
        self._history.cancel_tasks(connection)
        if self._dialects is not None:
            self._dialects.forget_connection(connection)
        self._users.remove(connection)
