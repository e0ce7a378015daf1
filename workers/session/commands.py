"""The commands of clients, and their answers.

What it keeps true: each message that carries an id is answered once, with that id; one that is wrong or one too many
with an error, and ten of those in a minute close the connection (4400). Whenever identity or subscriptions change, the
connection changes feeds, and takes nothing along but its cursor; what waits for it under other rights is never sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from solowire.auth.key_source import KEYS_UNAVAILABLE, SHORTEST_WAIT_SECONDS
from solowire.auth.tokens import Tokens
from solowire.errors import InvalidMessage, InvalidToken, UnknownKey
from solowire.fanout.recent_log import RecentLog
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import DeniedPattern, Wanted, list_unknown_types, resolve
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import (
    ClientMessage,
    FetchHistory,
    Hello,
    Id,
    Ping,
    Pong,
    Refresh,
    Reply,
    Stats,
    Subscribe,
    Subscriptions,
    Unsubscribe,
)
from solowire.workers.capacity.slots import SlotManager
from solowire.workers.clock import Clock
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.expiry import TokenExpiry
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.history_commands import HistoryCommands
from solowire.workers.session.handshake import Handshake, format_token_end
from solowire.workers.session.inbound_limits import (
    InboundLimits,
    error_message,
    exceeds_limit,
    keep,
    updated_subscriptions,
)

NOT_ASKED = 0.0
"""Nobody has tried to read the provider's keys for this refresh."""

_ACCEPTING_STATES = (State.awaiting_hello, State.resuming, State.live)


class PendingRefresh(msgspec.Struct, frozen=True):
    """A refresh whose key is not known: it is tried once more when the provider's keys have been read again."""

    connection: Connection
    message: Refresh


class CommandHandler:
    """Obeys the messages of clients.

    index: the shard's. totals: where it counts. max_pending: refreshes that may wait for a provider's keys; 0 if there
    is no provider. What has to be done with a connection is returned: with which code it is to be closed.
    """

    def __init__(
        self,
        index: int,
        recent_log: RecentLog,
        dispatcher: Dispatcher,
        inbound_limits: InboundLimits,
        beginning: Handshake,
        admission: SlotManager,
        expiry: TokenExpiry,
        audit: ConnectionAudit,
        totals: Counter[str],
        *,
        tokens: Tokens,
        catalog: Catalog,
        clock: Clock,
        max_pending: int = 0,
        history: HistoryCommands,
    ) -> None:
        self._history = history
        self._clock = clock
        self._index = index
        self._log = recent_log
        self._dispatcher = dispatcher
        self._inbound_limits = inbound_limits
        self._handshake = beginning
        self._slot_manager = admission
        self._expiry = expiry
        self._connection_audit = audit
        self._totals = totals
        self._tokens = tokens
        self._catalog = catalog
        self._max_pending = max_pending
        self._pending_count = 0  # refreshes that wait for keys
        self._new_refreshes: list[PendingRefresh] = []

    def on_message(self, connection: Connection, raw: str | bytes, now: float) -> CloseCode | None:
        """One message of a client that is not told to leave."""
        connection.seen_since_ping = True
        if exceeds_limit(raw):
            return CloseCode.too_big
        try:
            message = self._inbound_limits.accept(connection, raw, now)
            if message is not None:
                self._dispatch(connection, message, now)
        except InvalidMessage as error:
            return self._reject(connection, error, now)
        return None

    def handle_early(self, connection: Connection, now: float) -> CloseCode | None:
        """Obeys what it has said while it was resuming."""
        self._inbound_limits.settle_change(connection, now)
        early, connection.early_messages = connection.early_messages, []
        code = None
        for message in early:
            if connection.feed is not None and code is None:  # else what came before has ended it
                try:
                    self._dispatch(connection, message, now)
                except InvalidMessage as error:
                    code = self._reject(connection, error, now)
        return code

    def _reject(self, connection: Connection, error: InvalidMessage, now: float) -> CloseCode | None:
        self._totals["message_errors"] += 1
        self._dispatcher.send_reply(connection, error_message(error), now)
        if not connection.record_strike(now):
            return None
        connection.drain_reason = "bad_messages"
        return CloseCode.bad_protocol

    def _dispatch(self, connection: Connection, message: ClientMessage, now: float) -> None:
        try:
            self._inbound_limits.charge(connection, message, now)
            match message:
                case Pong():
                    pass  # that it was heard is all there is to it
                case Ping():
                    self._dispatcher.send_reply(connection, Pong(message.id, self._clock.to_unix(now)), now)
                case Hello():
                    self._handshake.on_hello(connection, message, now)
                    if connection.state is State.live:
                        self._inbound_limits.settle_change(connection, now)
                case Subscribe():
                    wanted = updated_subscriptions(connection, message, self._catalog)
                    self._resubscribe(connection, wanted, now, message.id)
                case Unsubscribe():  # a name that is none ends nothing: what was meant goes on
                    wanted = updated_subscriptions(connection, message, self._catalog)
                    unknown = list_unknown_types(message.event_types, self._catalog)
                    self._resubscribe(connection, wanted, now, message.id, unknown)
                case Refresh():
                    self._refresh(connection, message, now)
                case FetchHistory():
                    self._history.start_page(connection, message, now)
                case Stats():
                    self._dispatcher.send_reply(connection, Reply(self._describe(connection), message.id), now)
        except InvalidMessage as error:
            error.id = message.id  # the answer repeats it, wherever the fault was found
            raise

    def _resubscribe(
        self, connection: Connection, wanted: Wanted, now: float, id: Id, unknown: Sequence[DeniedPattern] = ()
    ) -> None:
        connection.wanted = wanted
        resolved = resolve(wanted, connection.view, self._catalog)
        self._dispatcher.leave_feed(connection)
        answer = Subscriptions(resolved.names, [*unknown, *resolved.denied], id)
        if not self._dispatcher.send_reply(connection, answer, now):
            return
        self._connection_audit.record_subscribed(connection, resolved)
        if not self._dispatcher.rejoin_feed(connection, resolved.selection, now):
            return
        self._inbound_limits.settle_change(connection, now)
        self._dispatcher.run(now)

    def take_pending_refreshes(self) -> Sequence[PendingRefresh]:
        """The refreshes that have begun to wait: each is to be given to `retry_refresh`."""
        if not self._new_refreshes:
            return ()
        pending, self._new_refreshes = self._new_refreshes, []
        return pending

    def retry_refresh(self, pending: PendingRefresh, now: float, keys_wait: float | None) -> CloseCode | None:
        """The keys of the provider have been read again, or can't be for `keys_wait` seconds."""
        self._pending_count -= 1
        connection, message = pending.connection, pending.message
        if connection.state in _ACCEPTING_STATES:
            try:
                if connection.state is State.resuming:
                    keep(message, connection)  # what is read for it is judged by the rights that it came with
                else:
                    self._refresh(connection, message, now, keys_wait)
            except InvalidMessage as error:
                error.id = message.id
                return self._reject(connection, error, now)
        return None

    def _refresh(
        self, connection: Connection, message: Refresh, now: float, keys_wait: float | None = NOT_ASKED
    ) -> None:
        try:
            identity = self._tokens.identify(message.token, self._clock.to_unix(now))
        except UnknownKey as error:
            if keys_wait == NOT_ASKED and self._pending_count < self._max_pending:
                self._pending_count += 1
                self._new_refreshes.append(PendingRefresh(connection, message))
                return
            if keys_wait is None:
                raise InvalidMessage(error.code, error.message, error.hint) from None
            code, hint = KEYS_UNAVAILABLE
            wait = max(SHORTEST_WAIT_SECONDS, keys_wait)
            raise InvalidMessage(code, error.message, hint, retry_after=round(wait, 3)) from None
        except InvalidToken as error:
            raise InvalidMessage(error.code, error.message, error.hint) from None
        if identity.user != connection.identity.user:
            raise InvalidMessage("wrong_user", "the token is another user's", "open a connection of its own for it")
        if not self._tokens.may_connect(identity):
            fault = f"the role {identity.role!r} may not have a connection"
            raise InvalidMessage("forbidden", fault, "show a token of another role; this one is not taken")
        before = connection.view
        connection.replace_identity(identity)
        if connection.reader.initial_count and connection.view != before:
            # It was written for the old rights, and is not sent yet.
            self._dispatcher.lose(connection, "your rights have changed while you were getting what you had missed")
            return
        group = self._slot_manager.get_group(identity)
        if group != connection.group and self._slot_manager.lease.move_slot(connection.group, group, now):
            connection.group = group  # else it goes on in the slot that it has
            self._totals["regrouped"] += 1
        self._expiry.watch_token(connection, now)
        answer = Reply({"token_expires_at": format_token_end(identity)}, message.id)
        if self._dispatcher.send_reply(connection, answer, now) and connection.state is State.live:
            self._resubscribe(connection, connection.wanted, now, None)

    def _describe(self, connection: Connection) -> dict[str, object]:
        feed = connection.feed
        return {
            "session": connection.session,
            "shard": self._index,
            "cursor": feed.cursor_of(connection) if feed is not None else self._log.position,
            "position": self._log.position,
            "subscriptions": [name for name, _ in connection.selection],
            "feed_connections": len(feed) if feed is not None else 0,
        }
