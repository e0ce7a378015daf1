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
from solowire.fanout.catch_up import Lag
from solowire.fanout.recent_log import Log
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import Denied, Wanted, resolve, unknown_types
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import (
    ClientMessage,
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
from solowire.workers.capacity.slots import Admission
from solowire.workers.connections.audit_events import Trail
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.expiry import Expiry
from solowire.workers.delivery.dispatcher import Delivering
from solowire.workers.session.handshake import Beginning, rfc3339
from solowire.workers.session.inbound_limits import Listening, changed, complaint, keep, too_big

_LISTENED_TO = (State.waiting, State.resuming, State.live)
AwaitKeys = Callable[[Callable[[float], None]], bool]
"""Has something done, with the time then, when a provider's keys have been read again; False if nobody does that."""


def no_keys_to_await(act: Callable[[float], None]) -> bool:
    """There is no provider."""
    return False


class Answering:
    """index: the shard's. wall_offset: what to add to a monotonic time to get unix seconds; may be set.

    totals: where it counts. close(connection, code): called when one has to end.
    """

    def __init__(
        self,
        index: int,
        recent: Log,
        delivery: Delivering,
        listening: Listening,
        beginning: Beginning,
        admission: Admission,
        expiry: Expiry,
        trail: Trail,
        totals: Counter[str],
        *,
        tokens: Tokens,
        catalog: Catalog,
        wall_offset: float,
        close: Callable[[Connection, CloseCode], None],
        await_keys: AwaitKeys = no_keys_to_await,
    ) -> None:
        self.wall_offset = wall_offset
        self._index = index
        self._log = recent
        self._delivery = delivery
        self._listening = listening
        self._beginning = beginning
        self._admission = admission
        self._expiry = expiry
        self._trail = trail
        self._totals = totals
        self._tokens = tokens
        self._catalog = catalog
        self._close = close
        self._await_keys = await_keys

    def take(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client that is not told to leave."""
        connection.heard = True
        if too_big(raw):
            self._close(connection, CloseCode.too_big)
            return
        try:
            message = self._listening.take(connection, raw, now)
            if message is not None:
                self._obey(connection, message, now)
        except InvalidMessage as error:
            self._complain(connection, error, now)

    def begun(self, connection: Connection, now: float) -> None:
        """Obeys what it has said while it was resuming."""
        self._listening.settle(connection, now)
        early, connection.early = connection.early, []
        for message in early:
            if connection.state is State.live:
                try:
                    self._obey(connection, message, now)
                except InvalidMessage as error:
                    self._complain(connection, error, now)

    def _complain(self, connection: Connection, error: InvalidMessage, now: float) -> None:
        self._totals["bad_messages"] += 1
        self._delivery.say(connection, complaint(error), now)
        if connection.strike(now):
            self._close(connection, CloseCode.bad_protocol)

    def _obey(self, connection: Connection, message: ClientMessage, now: float) -> None:
        try:
            self._listening.count(connection, message, now)
            match message:
                case Pong():
                    pass  # that it was heard is all there is to it
                case Ping():
                    self._delivery.say(connection, Pong(message.id, now + self.wall_offset), now)
                case Hello():
                    self._beginning.begin(connection, message, now)
                    if connection.state is State.live:
                        self._listening.settle(connection, now)
                case Subscribe():
                    self._want(connection, changed(connection, message, self._catalog), now, message.id)
                case Unsubscribe():  # a name that is none ends nothing: what was meant goes on
                    wanted, unknown = changed(connection, message, self._catalog), message.event_types
                    self._want(connection, wanted, now, message.id, unknown_types(unknown, self._catalog))
                case Refresh():
                    self._refresh(connection, message, now)
                case Stats():
                    self._delivery.say(connection, Reply(self._about(connection), message.id), now)
        except InvalidMessage as error:
            error.id = message.id  # the answer repeats it, wherever the fault was found
            raise

    def _want(self, connection: Connection, wanted: Wanted, now: float, id: Id, unknown: Sequence[Denied] = ()) -> None:
        connection.wanted = wanted
        resolved = resolve(wanted, connection.view, self._catalog)
        lag = self._delivery.leave(connection)
        if not self._delivery.say(connection, Subscriptions(resolved.names, [*unknown, *resolved.denied], id), now):
            return
        self._trail.subscribed(connection, resolved)
        if lag.lost or lag.cursor < self._log.floor:
            self._delivery.too_late(connection)  # nobody has counted for the new feed
            return
        lag = Lag(lag.cursor, lag.seen, whole_upto=lag.whole_upto, busy=lag.busy)
        self._delivery.join(connection, resolved.selection, lag, now)
        self._listening.settle(connection, now)
        self._delivery.run(now)

    def _refresh_again(self, connection: Connection, message: Refresh, now: float) -> None:
        """The keys of the provider have been read again, or could not be."""
        if connection.state in _LISTENED_TO:
            try:
                if connection.state is State.resuming:
                    keep(message, connection)  # what is read for it is judged by the rights that it came with
                else:
                    self._refresh(connection, message, now, waits=False)
            except InvalidMessage as error:
                error.id = message.id
                self._complain(connection, error, now)

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
        connection.identify(identity)
        if connection.backlog and connection.view != before:
            # It was written for the old rights, and is not sent yet.
            self._delivery.too_late(connection, "your rights have changed while you were getting what you had missed")
            return
        group = self._admission.group_of(identity)
        if group != connection.group and self._admission.leases.move(connection.group, group, now):
            connection.group = group  # else it goes on in the slot that it has
            self._totals["regrouped"] += 1
        self._expiry.watch(connection, self.wall_offset, now)
        self._delivery.say(connection, Reply({"token_expires_at": rfc3339(identity.expires)}, message.id), now)
        if connection.state is State.live:
            self._want(connection, connection.wanted, now, None)

    def _about(self, connection: Connection) -> dict[str, object]:
        feed = connection.feed
        return {
            "session": connection.session,
            "shard": self._index,
            "cursor": feed.cursor_of(connection) if feed is not None else self._log.position,
            "position": self._log.position,
            "subscriptions": [name for name, _ in connection.selection],
            "feed_connections": len(feed) if feed is not None else 0,
        }
