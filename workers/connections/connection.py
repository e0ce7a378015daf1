"""One user's connection, as its shard sees it, and the states it goes through.

    awaiting_hello ──hello, or 2 s──► live ──sent away──► draining ──► closing ──► closed
       │               └──► resuming ───▲│                   │           ▲
       └───────────────────────┴─────────┴───────────────────┴───────────┘

One that is resuming waits for what the shard asks the router for; what the client says meanwhile is kept for then. One
that is draining has been told to go to another shard: nobody listens to it any more, and it gets no more events. A
connection belongs to a feed exactly while it is live. What it gets next, and what waits for its socket meanwhile, is
its reader's (`solowire.fanout.reader`). Nothing is queued for it but what it asked for itself: answers that came while
its socket was busy, at most MAX_PENDING_REPLIES, at which bound it is closed as too slow; and, once, the states or the
replay that it begins with, which is bounded, too, and handed over, and written, as its socket takes it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

import structlog

from solowire.fanout.feed import Feed
from solowire.fanout.reader import Reader
from solowire.model.access import Identity, View, make_view
from solowire.model.subscriptions import Selection, Wanted
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.dialect_codec import AnyCodec
from solowire.protocol.messages import ClientMessage
from solowire.workers.connections.dialect_client import DialectClient

logger = structlog.get_logger("solowire.shard")

MAX_STRIKES = 10
STRIKE_SECONDS = 60.0


class State(Enum):
    awaiting_hello = "awaiting_hello"
    resuming = "resuming"
    live = "live"
    draining = "draining"
    closing = "closing"
    closed = "closed"


TRANSITIONS = {
    State.awaiting_hello: {State.resuming, State.live, State.draining, State.closing, State.closed},
    State.resuming: {State.live, State.draining, State.closing, State.closed},
    State.live: {State.draining, State.closing, State.closed},
    State.draining: {State.closing, State.closed},
    State.closing: {State.closed},
    State.closed: set[State](),
}


class Connection:
    """One WebSocket.

    `socket` is whatever the seam (`solowire.workers.connections.sockets`) needs to reach it; nobody else looks at it.
    """

    __slots__ = (
        "address",
        "charged_item_count",
        "codec",
        "dialect",
        "drain_close_code",
        "drain_reason",
        "early_messages",
        "expires_at",
        "expiry_check_at",
        "feed",
        "group",
        "heartbeat_bucket",
        "hello_due_at",
        "identity",
        "item_count",
        "last_message_at",
        "missed_pings",
        "notice_s",
        "opened_at",
        "reader",
        "seen_since_ping",
        "selection",
        "session",
        "socket",
        "state",
        "strikes",
        "token_ends_at",
        "transport",
        "unanswered_pings",
        "view",
        "wanted",
        "warned_token_ends_at",
    )

    def __init__(
        self, session: str, identity: Identity, codec: AnyCodec, socket: Any, *, group: str = "", address: str = ""
    ) -> None:
        self.session = session
        self.group = group  # whose slot it has
        self.address = address  # whence it was asked for
        self.transport = "direct"  # or "relayed", by the gateway
        self.opened_at = 0.0  # monotonic
        self.hello_due_at = 0.0  # monotonic: when it begins without a hello
        self.last_message_at = 0.0  # when it last said something that was no answer to a ping
        self.drain_reason = ""  # why it was told to leave
        self.drain_close_code: CloseCode | None = None  # what it is closed with when it was told to leave
        self.codec = codec
        self.dialect: DialectClient | None = None  # what its client speaks in the place of solowire.v1
        self.socket = socket
        self.state = State.awaiting_hello
        self.reader = Reader()
        self.feed: Feed[Connection] | None = None
        self.wanted: Wanted = {}
        self.selection: Selection = ()
        self.item_count = (
            0  # event types and values of filters in what it asked for and gets: what it takes to look at all
        )
        self.charged_item_count = 0  # for so many its last change was charged
        self.early_messages: list[ClientMessage] = []
        self.strikes: deque[float] | None = None
        self.seen_since_ping = True
        self.heartbeat_bucket = 0
        self.missed_pings = 0
        self.unanswered_pings = 0  # of ours that it has not answered
        self.expires_at: float | None = None  # monotonic
        self.expiry_check_at: float | None = None  # when its expiry is looked at next
        self.token_ends_at: float | None = None  # unix: what `notice_s` was reckoned for
        self.notice_s = 0.0  # how long before its token's end it is told
        self.warned_token_ends_at: float | None = None  # unix: the end that it was told of
        self.identity = identity
        self.view: View = make_view(identity)

    def become(self, state: State) -> None:
        """Changes the state. Raises ValueError for a transition that the table doesn't have."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"connection {self.session}: {self.state.value} can't become {state.value}")
        logger.debug("connection_state_changed", session=self.session, was=self.state.value, becomes=state.value)
        self.state = state

    def replace_identity(self, identity: Identity) -> None:
        """Takes another identity of the same user: a refreshed token."""
        self.identity = identity
        self.view = make_view(identity)

    def record_strike(self, now: float) -> bool:
        """Notes a bad message; whether that makes ten within a minute."""
        if self.strikes is None:
            self.strikes = deque(maxlen=MAX_STRIKES)
        self.strikes.append(now)
        return len(self.strikes) == MAX_STRIKES and now - self.strikes[0] < STRIKE_SECONDS
