"""What a client says, and what comes of it.

What it keeps true: each message that carries an id is answered once, with that id; one that is wrong or one too many
with an error, and ten of those in a minute close the connection (4400). Whenever identity or subscriptions change, the
connection changes feeds, and takes nothing along but its cursor; what waits for it under other rights is never sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from solowire.auth.tokens import Tokens
from solowire.errors import InvalidMessage, InvalidToken, UnknownKey
from solowire.fanout.catch_up import ReaderPosition
from solowire.fanout.recent_log import RecentLog
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import DeniedPattern, Wanted, list_unknown_types, resolve
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import (
    ClientMessage,
    Hello,
    History,
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
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.expiry import TokenExpiry
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.history_commands import HistoryCommands
from solowire.workers.session.handshake import Handshake, format_rfc3339
from solowire.workers.session.inbound_limits import (
    InboundLimits,
    error_message,
    exceeds_limit,
    keep,
    updated_subscriptions,
)

_ACCEPTING_STATES = (State.awaiting_hello, State.resuming, State.live)
AwaitKeys = Callable[[Callable[[float], None]], bool]
"""Has something done, with the time then, when a provider's keys have been read again; False if nobody does that."""


def no_keys_to_await(act: Callable[[float], None]) -> bool:
    """There is no provider."""
    return False


class CommandHandler:
    """index: the shard's. wall_offset: what to add to a monotonic time to get unix seconds; may be set.

    totals: where it counts. close(connection, code): called when one has to end.
    """

    def __init__(
        self,
        index: int,
        recent: RecentLog,
        delivery: Dispatcher,
        listening: InboundLimits,
        beginning: Handshake,
        admission: SlotManager,
        expiry: TokenExpiry,
        trail: ConnectionAudit,
        totals: Counter[str],
        *,
        tokens: Tokens,
        catalog: Catalog,
        wall_offset: float,
        close: Callable[[Connection, CloseCode], None],
        await_keys: AwaitKeys = no_keys_to_await,
        history: HistoryCommands,
    ) -> None:
        self._history = history
        self.wall_offset = wall_offset
        self._index = index
        self._log = recent
        self._dispatcher = delivery
        self._inbound_limits = listening
        self._handshake = beginning
        self._slot_manager = admission
        self._expiry = expiry
        self._connection_audit = trail
        self._totals = totals
        self._tokens = tokens
        self._catalog = catalog
        self._close = close
        self._await_keys = await_keys

    def on_message(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client that is not told to leave."""
        connection.seen_since_ping = True
        if exceeds_limit(raw):
            self._close(connection, CloseCode.too_big)
            return
        try:
            message = self._inbound_limits.accept(connection, raw, now)
            if message is not None:
                self._dispatch(connection, message, now)
        except InvalidMessage as error:
            self._reject(connection, error, now)

    def handle_early(self, connection: Connection, now: float) -> None:
        """Obeys what it has said while it was resuming."""
        self._inbound_limits.settle_change(connection, now)
        early, connection.early_messages = connection.early_messages, []
        for message in early:
            if connection.state is State.live:
                try:
                    self._dispatch(connection, message, now)
                except InvalidMessage as error:
                    self._reject(connection, error, now)

    def _reject(self, connection: Connection, error: InvalidMessage, now: float) -> None:
        self._totals["bad_messages"] += 1
        self._dispatcher.send_reply(connection, error_message(error), now)
        if connection.record_strike(now):
            self._close(connection, CloseCode.bad_protocol)

    def _dispatch(self, connection: Connection, message: ClientMessage, now: float) -> None:
        try:
            self._inbound_limits.charge(connection, message, now)
            match message:
                case Pong():
                    pass  # that it was heard is all there is to it
                case Ping():
                    self._dispatcher.send_reply(connection, Pong(message.id, now + self.wall_offset), now)
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
                case History():
                    self._history.start(connection, message, now, now + self.wall_offset)
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
        lag = self._dispatcher.leave_feed(connection)
        answer = Subscriptions(resolved.names, [*unknown, *resolved.denied], id)
        if not self._dispatcher.send_reply(connection, answer, now):
            return
        self._connection_audit.record_subscribed(connection, resolved)
        if lag.is_lost or lag.offset < self._log.start_offset:
            self._dispatcher.close_too_slow(connection)  # nobody has counted for the new feed
            return
        lag = ReaderPosition(lag.offset, lag.last_release, full_until=lag.full_until, was_busy=lag.was_busy)
        self._dispatcher.join_feed(connection, resolved.selection, lag, now)
        self._inbound_limits.settle_change(connection, now)
        self._dispatcher.run(now)

    def _refresh_again(self, connection: Connection, message: Refresh, now: float) -> None:
        """The keys of the provider have been read again, or could not be."""
        if connection.state in _ACCEPTING_STATES:
            try:
                if connection.state is State.resuming:
                    keep(message, connection)  # what is read for it is judged by the rights that it came with
                else:
                    self._refresh(connection, message, now, waits=False)
            except InvalidMessage as error:
                error.id = message.id
                self._reject(connection, error, now)

    def _refresh(self, connection: Connection, message: Refresh, now: float, *, waits: bool = True) -> None:
        try:
            identity = self._tokens.identify(message.token, now + self.wall_offset)
        except UnknownKey as error:
            if waits and self._await_keys(lambda then: self._refresh_again(connection, message, then)):
                return
            code = error.code if self._tokens.has_keys else "keys_unavailable"
            raise InvalidMessage(code, error.message, error.hint) from None
        except InvalidToken as error:
            raise InvalidMessage(error.code, error.message, error.hint) from None
        if identity.user != connection.identity.user:
            raise InvalidMessage("wrong_user", "the token is another user's", "open a connection of its own for it")
        before = connection.view
        connection.replace_identity(identity)
        if connection.initial_count and connection.view != before:
            # It was written for the old rights, and is not sent yet.
            self._dispatcher.close_too_slow(
                connection, "your rights have changed while you were getting what you had missed"
            )
            return
        group = self._slot_manager.get_group(identity)
        if group != connection.group and self._slot_manager.lease.move_slot(connection.group, group, now):
            connection.group = group  # else it goes on in the slot that it has
            self._totals["regrouped"] += 1
        self._expiry.watch_token(connection, self.wall_offset, now)
        self._dispatcher.send_reply(
            connection, Reply({"token_expires_at": format_rfc3339(identity.expires)}, message.id), now
        )
        if connection.state is State.live:
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
