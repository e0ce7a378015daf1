"""The limits on what clients send: how long, how many, and when.

What it keeps true: a user's clients together are heard no more often than the settings of `[session]` say, and change
what they want no more often; a message too many is answered, and not obeyed. Both are counted by size: a long message
counts for several, and so does a change of many event types and values of filters, those that it names or those that it
results in. What answers our own pings costs nothing of that, and a client's first hello is heard whatever was said
before, unless it is a large one. What comes while a connection is resuming is kept for its beginning, MAX_ANSWERS
messages at most, and beyond that refused.

It changes nothing but the counts: what a message asks for is returned, and the shard does it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from solowire.algorithms.token_bucket import Rate
from solowire.errors import InvalidMessage
from solowire.fanout.reader import MAX_PENDING_REPLIES
from solowire.model.access import Role
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import (
    Selection,
    Wanted,
    check_patterns,
    check_values,
    count_values,
    drop_unknown,
    parse_filter,
    parse_wanted,
    subscribe,
    unsubscribe,
)
from solowire.protocol.messages import (
    MAX_MESSAGE_BYTES,
    ClientMessage,
    Error,
    Hello,
    Id,
    Ping,
    Pong,
    Refresh,
    Subscribe,
    Unsubscribe,
)
from solowire.runtime.settings.session_settings import SessionSettings
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.users import User, UserRegistry

PONG_BYTES = 128
"""What a pong may take that answers our ping; a longer one counts like any message."""


MESSAGE_BYTES = 8 * 1024
"""A message that is longer than that counts for as many as it has so many bytes."""

CHANGE_ITEMS = 200
"""A change of more event types and values of filters than that counts for as many as it has so many of them."""

MAX_ITEMS = 25_000
"""So many of them may the connections of one user have together: some megabytes."""

MAX_ERROR_CHARACTERS = 500

_MESSAGE_RATE, _SUBSCRIPTION_RATE = "SOLOWIRE_SESSION__MESSAGE_RATE", "SOLOWIRE_SESSION__SUBSCRIPTION_RATE"


class InboundLimits:
    """Limits what clients send. users: where what each has said is counted."""

    def __init__(self, users: UserRegistry, settings: SessionSettings, catalog: Catalog) -> None:
        self._users = users
        self._catalog = catalog
        self._messages = Rate(settings.message_rate, settings.message_burst)
        self._changes = Rate(settings.subscription_rate, settings.subscription_burst)
        self._hello_timeout_s = settings.hello_timeout_s

    def accept(self, connection: Connection, raw: str | bytes, now: float) -> ClientMessage | None:
        """The message that is to be obeyed, None if none is now. Raises InvalidMessage, for one too many as well."""
        if connection.unanswered_pings and _is_pong(connection, raw):
            connection.unanswered_pings -= 1  # we have asked for it: it is none of the messages that are limited
            return None
        wait = self.count_message(connection, raw, now)
        begins = connection.state is State.awaiting_hello and connection.last_message_at == connection.opened_at
        if wait and not begins:
            raise _RateExceeded(self._messages, "messages", _MESSAGE_RATE, wait, connection.codec.read_id(raw))
        message = connection.codec.decode(raw)
        if wait and not isinstance(message, Hello):  # which is heard, so that it needn't begin with the defaults
            raise _RateExceeded(self._messages, "messages", _MESSAGE_RATE, wait, message.id)
        if connection.state is State.resuming and not isinstance(message, (Ping, Pong)):
            keep(message, connection)
            return None
        return message

    def count_message(self, connection: Connection, raw: str | bytes, now: float) -> float:
        """Counts a message of its user; how long, in seconds, it should have waited with it."""
        user = self._users.get(connection.identity.user)
        if user is None:
            return 0.0
        cost = max(1.0, len(raw) / MESSAGE_BYTES)
        user.messages_full_at, wait = self._messages.try_take(user.messages_full_at, now, cost)
        return wait

    def charge(self, connection: Connection, message: ClientMessage, now: float) -> None:
        """The message is about to be obeyed. Raises InvalidMessage if it is a change of subscriptions too many."""
        if not isinstance(message, Pong):
            connection.last_message_at = now
        user = self._users.get(connection.identity.user)
        if user is not None and isinstance(message, (Hello, Subscribe, Unsubscribe, Refresh)):
            self._charge_change(user, connection, message, now)

    def _charge_change(
        self, user: User, connection: Connection, message: Hello | Subscribe | Unsubscribe | Refresh, now: float
    ) -> None:
        items = connection.item_count + _count_items(message)
        if items + sum(c.item_count for c in user.connections if c is not connection) > MAX_ITEMS:
            raise InvalidMessage(
                "too_many",
                f"your connections together may have {MAX_ITEMS} event types and values of filters at most",
                "filter by fewer values, or have fewer connections",
            )
        user.changes_full_at, wait = self._changes.try_take(user.changes_full_at, now, _change_cost(items))
        begins = connection.state is State.awaiting_hello
        if wait and (not begins or items > CHANGE_ITEMS):
            if begins:
                connection.hello_due_at = now + wait + self._hello_timeout_s  # so that it can say it again in time
            raise _RateExceeded(self._changes, "subscription changes", _SUBSCRIPTION_RATE, wait, None)
        connection.charged_item_count = items

    def settle_change(self, connection: Connection, now: float) -> None:
        """It has joined its feed: charges what its change has turned out to be more, and drops what has no meaning."""
        connection.wanted = drop_unknown(connection.wanted, self._catalog)
        connection.item_count = len(connection.wanted) + _count_selection_items(connection.selection)
        more = _change_cost(connection.item_count) - _change_cost(connection.charged_item_count)
        user = self._users.get(connection.identity.user)
        if user is not None and more > 0:
            user.changes_full_at = self._changes.full_after(user.changes_full_at, now, more)


def _change_cost(items: int) -> float:
    """Of how many changes one counts that has so many items."""
    return max(1.0, items / CHANGE_ITEMS)


def _count_items(message: Hello | Subscribe | Unsubscribe | Refresh) -> int:
    """How many event types and values of filters a message names."""
    if isinstance(message, Refresh):
        return 0
    if isinstance(message, Hello):
        names = len(message.subscriptions or ())
        filters = [message.filter or {}, *(message.filters or {}).values()]
    else:
        names = len(message.event_types)
        filters = [message.filter or {}] if isinstance(message, Subscribe) else []
    return names + sum(len(values) for filter in filters for values in filter.values())


def _count_selection_items(selection: Selection) -> int:
    """How many event types and values a selection has; a filter counts once, as it is in the index."""
    return len(selection) + count_values(conditions for _, conditions in selection)


def exceeds_limit(raw: str | bytes) -> bool:
    """Whether a message is larger than any may be."""
    if isinstance(raw, str) and 4 * len(raw) > MAX_MESSAGE_BYTES:
        raw = raw.encode(errors="surrogatepass")
    return len(raw) > MAX_MESSAGE_BYTES


def initial_subscriptions(connection: Connection, hello: Hello, roles: Mapping[str, Role], catalog: Catalog) -> Wanted:
    """What it wants from the beginning: its role's defaults, if it says nothing. Raises InvalidMessage."""
    if connection.state is not State.awaiting_hello:
        raise InvalidMessage(
            "duplicate_hello",
            "hello was already sent on this connection",
            "use subscribe and unsubscribe; "
            "without a hello within SOLOWIRE_SESSION__HELLO_TIMEOUT_S the role's defaults apply",
        )
    role = roles.get(connection.identity.role)
    patterns = hello.subscriptions
    if patterns is None:
        patterns = list(role.defaults) if role is not None else []
    wanted = parse_wanted(patterns, hello.filter, hello.filters, catalog)
    check_values(wanted)
    return wanted


def updated_subscriptions(connection: Connection, message: Subscribe | Unsubscribe, catalog: Catalog) -> Wanted:
    """What it wants from now on. Raises InvalidMessage."""
    if connection.state is not State.live:
        raise InvalidMessage(
            "hello_required", "the first message must be hello", "send it, and this one after the welcome"
        )
    check_patterns(message.event_types)
    if isinstance(message, Unsubscribe):
        return unsubscribe(connection.wanted, message.event_types, catalog)
    wanted = subscribe(connection.wanted, message.event_types, parse_filter(message.filter, catalog))
    check_values(wanted)
    return wanted


def error_message(error: InvalidMessage) -> Error:
    """What the client is told of it."""
    retry = error.retry_after if error.retry_after is not None else msgspec.UNSET
    return Error(error.code, error.message[:MAX_ERROR_CHARACTERS], error.hint, error.id, retry)


class _RateExceeded(InvalidMessage):
    def __init__(self, rate: Rate, what: str, setting: str, retry_after: float, id: Id) -> None:
        hint = f"wait for retry_after seconds; an operator raises {setting}"
        fault = f"one user may send {rate.per_second:g} {what} a second"
        super().__init__("rate_limited", fault, hint, id, retry_after=round(retry_after, 3))


def _is_pong(connection: Connection, raw: str | bytes) -> bool:
    """Looks into short messages only. Raises InvalidMessage for one that can't be read."""
    return len(raw) <= PONG_BYTES and isinstance(connection.codec.decode(raw), Pong)


def keep(message: ClientMessage, connection: Connection) -> None:
    """For when the connection has begun. Raises InvalidMessage if too many are kept."""
    if len(connection.early_messages) >= MAX_PENDING_REPLIES:
        raise InvalidMessage(
            "handshake_pending",
            f"{MAX_PENDING_REPLIES} messages at most may be sent before the welcome",
            "wait for the welcome first",
            message.id,
        )
    connection.early_messages.append(message)
