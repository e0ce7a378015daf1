"""Connections whose clients speak a dialect: how they begin, what they say, and what comes of it.

What it keeps true: such a client gets what its user's view allows, through the same feeds and log as all others; what
it says counts against the same limits as its user's other connections. Nothing that it says ends its connection, but a
message that is too big; one who says too much is told so once in a while, and then not heard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.errors import RequestError
from solowire.model.access import View
from solowire.model.catalog import Catalog
from solowire.model.dialect import Dialect, DialectSession, Outcome, Question
from solowire.model.subscriptions import ResolvedSubscriptions, parse_wanted, resolve
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.dialect_codec import DialectCodec, make_batch
from solowire.protocol.messages import Subscribe
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.connections.dialect_usage import DialectUsage
from solowire.workers.connections.timers import TimerKind
from solowire.workers.connections.users import UserRegistry
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.dialect_pages import DialectPages
from solowire.workers.history.dialect_replays import DialectReplays
from solowire.workers.history.history_page import HistoryPage
from solowire.workers.session.handshake import Handshake
from solowire.workers.session.inbound_limits import InboundLimits, exceeds_limit

logger = structlog.get_logger("solowire.shard")

SILENCE_SECONDS = 1.0
"""One who says too much is told so this often."""


class DialectHandler:
    """Serves connections whose clients speak a dialect.

    totals: what the shard counts. warns: whether the log names those who use it as a warning. What has to be done with
    a connection is returned: with which code it is to be closed.
    """

    def __init__(
        self,
        dialect: Dialect,
        catalog: Catalog,
        dispatcher: Dispatcher,
        inbound_limits: InboundLimits,
        handshake: Handshake,
        users: UserRegistry,
        connections: Collection[Connection],
        totals: Counter[str],
        *,
        clock: Clock,
        warns: bool = True,
        pages: DialectPages,
        replays: DialectReplays,
    ) -> None:
        self._clock = clock
        self.usage = DialectUsage()
        self._dialect = dialect
        self._dispatcher = dispatcher
        self._inbound_limits = inbound_limits
        self._handshake = handshake
        self._users = users
        self._connections = connections
        self._totals = totals
        self._catalog = catalog
        self._warns = warns
        self._pages = pages
        self._replays = replays
        self._codecs: WeakValueDictionary[tuple[View, Hashable], DialectCodec] = WeakValueDictionary()

    def begin(self, connection: Connection, now: float) -> None:
        """Its first frames, and the present states of what it wants."""
        client = connection.dialect
        if client is None or connection.state is not State.awaiting_hello:
            return
        client.is_decided = True
        self._note_use(connection, client, now)
        connection.codec = self._find_codec(connection, client.session)
        resolved = self._resolve(connection, client.session)
        self._send(connection, client.session.open(resolved.names, self._format_time(now)), now)
        self._handshake.start_with(connection, parse_wanted(client.session.patterns, None, None, self._catalog), now)

    def on_timer(self, kind: TimerKind, connection: Connection, now: float) -> None:
        """It is time for something of a dialect's."""
        if kind is TimerKind.dialect:
            self.begin(connection, now)
        else:
            self._replays.advance_replay(connection, now)

    def on_message(self, connection: Connection, raw: str | bytes, now: float) -> CloseCode | None:
        """One message of a client that is not told to leave."""
        client = connection.dialect
        if client is None or exceeds_limit(raw):
            return CloseCode.too_big
        connection.last_message_at = now
        wait = self._inbound_limits.count_message(connection, raw, now)
        if wait:
            self._reject_flood(connection, client, wait, now)
            return None
        outcome = client.session.receive(raw, self._format_time(now))
        self.usage.count_message(outcome.label)
        self._totals["bad_messages"] += outcome.is_fault
        self._send(connection, outcome.frames, now)
        self._do(connection, client.session, outcome, now)
        return None

    def _do(self, connection: Connection, session: DialectSession, outcome: Outcome, now: float) -> None:
        try:
            if outcome.is_change:
                self._resubscribe(connection, session, now)
            elif outcome.question is not None and outcome.question.about == "recent_events":
                self._fetch_recent(connection, session, outcome.question, now)
            elif outcome.question is not None:
                found = self._find_answer(connection, session, outcome.question, now)
                self._send(connection, session.answer(outcome.question, found, self._format_time(now)), now)
        except RequestError as error:
            self._reject(connection, session, error, now)

    def _reject(self, connection: Connection, session: DialectSession, error: RequestError, now: float) -> None:
        self._send(connection, session.reject(error.code, error.message, error.hint, self._format_time(now)), now)

    def _reject_flood(self, connection: Connection, client: DialectClient, wait: float, now: float) -> None:
        if now >= client.silenced_until:
            client.silenced_until = now + SILENCE_SECONDS
            text = f"more messages than one user may send: wait {wait:.1f} s"
            hint = "an operator raises SOLOWIRE_SESSION__MESSAGE_RATE"
            self._send(connection, client.session.reject("rate_limited", text, hint, self._format_time(now)), now)

    def _resubscribe(self, connection: Connection, session: DialectSession, now: float) -> None:
        """Raises InvalidMessage, and nothing has changed."""
        patterns = list(session.patterns)
        wanted = parse_wanted(patterns, None, None, self._catalog)
        self._inbound_limits.charge(connection, Subscribe(patterns), now)
        resolved = self._resolve(connection, session)
        frames = session.confirm(resolved.names, self._format_time(now))
        self._dispatcher.leave_feed(connection)
        connection.wanted = wanted
        connection.codec = self._find_codec(connection, session)
        if not self._send(connection, frames, now):
            return
        if not self._dispatcher.rejoin_feed(connection, resolved.selection, now):
            return
        self._inbound_limits.settle_change(connection, now)
        self._dispatcher.run(now)

    def _resolve(self, connection: Connection, session: DialectSession) -> ResolvedSubscriptions:
        wanted = parse_wanted(session.patterns, None, None, self._catalog)
        return resolve(wanted, connection.view, self._catalog)

    def _find_codec(self, connection: Connection, session: DialectSession) -> DialectCodec:
        """One for all who want and may see the same, so that they share feeds."""
        key = (connection.view, session.wish)
        codec = self._codecs.get(key)
        if codec is None:
            codec = self._codecs[key] = DialectCodec(session.make_translator(connection.view), self._dialect.name)
        return codec

    # ------------------------------------------------------------------------------------------------- questions

    def _find_answer(
        self, connection: Connection, session: DialectSession, question: Question, now: float
    ) -> Mapping[str, Any]:
        details = question.details
        match question.about:
            case "stats":
                return self.describe()
            case "start_replay":
                make_codec = partial(self._make_past_codec, session, details["names"])
                return self._replays.start_replay(connection, make_codec, details, now, self._clock.to_unix(now))
            case "stop_replay":
                return self._replays.stop_replay(connection, details.get("replay_id"))
            case _:
                return self._replays.describe_replay(connection, details.get("replay_id"))

    def _fetch_recent(self, connection: Connection, session: DialectSession, question: Question, now: float) -> None:
        """Has the newest events sent that the connection would have got, as frames, oldest first.

        Raises RequestError, and nothing is sent.
        """
        limit, names = question.details["limit"], question.details["names"]
        codec = self._make_past_codec(session, names)

        def send(outcome: HistoryPage | RequestError, then: float) -> None:
            if connection.state is not State.live:
                return
            if isinstance(outcome, RequestError):
                self._reject(connection, session, outcome, then)
                return
            # Together, so that what the dialect says once for each batch is written once.
            batch = bytes(codec.encode_events(0, [bytes(event) for event in reversed(outcome.events)]))
            events = [msgspec.Raw(frame) for frame in batch.split(b"\n") if frame][-limit:]
            self._send(connection, session.answer(question, {"events": events}, self._format_time(then)), then)

        if names:
            self._pages.fetch_newest(connection, codec, question.details, send, now)
        else:  # it has left all of its subscriptions
            send(HistoryPage([], None, True), now)

    def forget_connection(self, connection: Connection) -> None:
        """It has ended."""
        self._replays.forget_connection(connection)

    def _make_past_codec(
        self, session: DialectSession, names: Sequence[str], replay_id: str | None = None
    ) -> DialectCodec:
        """One of its own: what is old changes nothing of what its readers are told of the present."""
        tags = ("replay", replay_id) if replay_id is not None else ()
        return DialectCodec(session.make_past_translator(names, tags), self._dialect.name)

    def summarize(self) -> dict[str, int]:
        """What was served, and is open now, in one table."""
        return self.usage.as_totals() | {f"open {kind}": count for kind, count in self._count_kinds().items()}

    def _count_kinds(self) -> dict[str, int]:
        return dict(Counter(c.dialect.session.kind for c in self._connections if c.dialect is not None))

    def describe(self) -> dict[str, Any]:
        """What this shard counts, for administrators."""
        return {
            "users": len(self._users),
            "connections": len(self._connections),
            "frames": self._totals["frames"],
            "queued": len(self._dispatcher.blocked),
            "dialect_kinds": self._count_kinds(),
        }

    # ---------------------------------------------------------------------------------------------------- helpers

    def _send(self, connection: Connection, frames: Collection[str], now: float) -> bool:
        return not frames or self._dispatcher.send_frame(connection, make_batch(frames), now)

    def _note_use(self, connection: Connection, client: DialectClient, now: float) -> None:
        user = connection.identity.user
        self.usage.count_connection(client.path.pattern, client.agent)
        if self.usage.naming.is_due(user, now):
            (logger.warning if self._warns else logger.info)(
                "deprecated",
                user=user,
                path=client.path.pattern,
                agent=client.agent,
                hint=f"the unified connection takes its place: {self._dialect.guide}",
            )

    def _format_time(self, now: float) -> str:
        return format_unix_time(self._clock.to_unix(now))
