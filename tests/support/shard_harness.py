"""A shard with its router, its clients and its clock, for the tests of all that is decided in it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec

from solowire.algorithms.hash_ring import Ring
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import (
    HistoryCancel,
    HistoryRequest,
    HistoryResponse,
    Lease,
    LogBatch,
    ReplayRequest,
    ReplayResponse,
    RingState,
    ShardAddress,
)
from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.event_types import CATALOG
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import ROLES, Identity
from solowire.model.events import encode_event
from solowire.observability.tracer import Tracer
from solowire.protocol import messages as c
from solowire.protocol.dialect_codec import TextBatch
from solowire.protocol.messages import Codec
from solowire.runtime.settings import Settings
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.shard import Shard
from tests.support.factories import change, event
from tests.support.memory_sockets import MemorySockets

SECRET = "a secret that is long enough for HS256, really"
WALL = 1_800_000_000.0  # unix seconds at monotonic 0
TOKENS = Tokens(SECRET, ROLES, domain=DNS)
ENCODE: dict[Codec, Any] = {codec: msgspec.json.encode if codec.is_json else msgspec.msgpack.encode for codec in Codec}
DIALECT = LegacyDialect(DNS.catalog, datetime(2027, 12, 31, tzinfo=UTC), "/guide")
OLD_PATH = "/api/websocket/ws/admin"
QUERY = {"client_ip": "10.0.0.1", "query_domain": "www.example.com", "query_type": "A", "zone": "example.com"}

DEFAULTS = change(
    Settings(),
    shard__flush__per_connection_ms=1000.0,
    shard__aggregation__events_per_s=1e12,
    shard__conflation__interval_s=0.0,
)
"""Nothing is summed up or held back, and events wait as long as they may, as in a shard with many connections."""


def codec_of(connection: Connection) -> Codec:
    """Of a connection that speaks solowire.v1."""
    assert isinstance(connection.codec, Codec)
    return connection.codec


class ShardHarness:
    """A shard with its router, its clients and its clock, all in this process and none of them running."""

    def __init__(
        self,
        shards: tuple[int, ...] = (0,),
        recent: RecentLog | None = None,
        *,
        leased_for: float = 1e9,
        tracer: Tracer | None = None,
        **settings: Any,
    ) -> None:
        self.now = 1000.0
        self.sockets = MemorySockets()
        ids = count(1)
        self.shard = Shard(
            0,
            sockets=self.sockets,
            tokens=TOKENS,
            roles=ROLES,
            new_id=lambda: f"session-{next(ids)}",
            clock=Clock(WALL),
            settings=change(DEFAULTS, **settings),
            recent_log=recent if recent is not None else RecentLog(catalog=CATALOG),
            audit=lambda event, **fields: self.audit_lines.append({"event": event, **fields}),
            dialect=DIALECT,
            tracer=tracer,
        )
        self.sockets.on_probe_answered = lambda connection: self.shard.show_alive(connection, self.now)
        self.audit_lines: list[dict[str, Any]] = []  # what the audit log has
        self._connected_users: list[tuple[str, int]] = []
        self.fence = 0
        self.grant_lease(spare=1_000_000, seconds=leased_for)
        self.epoch = "epoch-1"
        self.journal: list[tuple[int, str | None, bytes]] = []  # the router's
        self.journal_floor = 0
        self._replay_requests: list[ReplayRequest] = []
        self._history_requests: list[HistoryRequest] = []
        self.address = ""  # of who connects
        self.version = 0
        self.offset = 0
        self._tickets = count(1)
        self._read: dict[Connection, int] = {}
        self.change_ring(*shards)

    # the router

    def change_ring(self, *shards: int, since: int = 0) -> None:
        """since: from which ring on the shard gets its users' own events; by default none is forgotten."""
        self.version += 1
        self.send_ring(*shards, since=since)

    def send_ring(self, *shards: int, since: int) -> None:
        """As the router answers a hello, with the ring in force."""
        addresses = [ShardAddress(s, "localhost", 9000 + s, f"boot-{s}") for s in shards]
        self.shard.on_ring(RingState(self.epoch, self.version, self.offset, addresses, since), self.now)

    def forget_users(self, *shards: int) -> None:
        """As a router tells it that has taken the shard for dead."""
        self.change_ring(*shards, since=self.version + 1)

    def grant_lease(self, spare: int = 0, seconds: float = 1e9, **slots: int) -> None:
        """What the router grants from now on, in answer to what the shard says."""
        self.fence += 1
        asked = self.shard.lease_usage_report(self.now).seq
        self.shard.on_lease(Lease(self.fence, asked, seconds, slots, spare), self.now)

    @property
    def connected_users(self) -> list[tuple[str, int]]:
        """Users whom the router has been told of, each with how many connections."""
        self._connected_users += self.shard.take_arrivals()
        return self._connected_users

    @property
    def replay_requests(self) -> list[ReplayRequest]:
        """What the router was asked, and has not answered."""
        self._take_questions()
        return self._replay_requests

    @property
    def history_requests(self) -> list[HistoryRequest]:
        """The same about history."""
        self._take_questions()
        return self._history_requests

    def _take_questions(self) -> None:
        for question in self.shard.take_questions():
            match question:
                case ReplayRequest():
                    self._replay_requests.append(question)
                case HistoryRequest():
                    self._history_requests.append(question)
                case HistoryCancel(number):
                    self._history_requests[:] = [q for q in self._history_requests if q.request != number]
                case _:
                    self._replay_requests[:] = [q for q in self._replay_requests if q.request != question.request]

    def answer_requests(self, at_a_time: int = 3) -> int:
        """Answers the shard's questions as the router does, in small parts; how many answers that took."""
        answers = 0
        self.wait(0)
        while self.replay_requests:
            answers += 1
            self.shard.on_replay_response(self._make_response(self.replay_requests.pop(0), at_a_time), self.now)
            self.wait(0)
        return answers

    def _make_response(self, q: ReplayRequest, at_a_time: int) -> ReplayResponse:
        if q.prev_offset > self.offset or q.prev_offset < self.journal_floor:
            return ReplayResponse(
                q.request, q.prev_offset, [], "future" if q.prev_offset > self.offset else "retention"
            )
        found = [
            r for r in self.journal if q.prev_offset < r[0] <= q.end_offset and (r[1] == q.user or not q.is_user_only)
        ]
        part = found[:at_a_time]
        upto = part[-1][0] if part and (len(part) < len(found) or not q.is_user_only) else q.end_offset
        return ReplayResponse(q.request, upto, [(o, body) for o, user, body in part if user in (None, q.user)])

    def answer_history(self, at_a_time: int = 3) -> int:
        """The same for questions about history, whatever clauses they have; how many answers that took."""
        answers = 0
        self.wait(0)
        while self.history_requests:
            answers += 1
            self.shard.on_history_response(self.make_history_part(self.history_requests.pop(0), at_a_time), self.now)
            self.wait(0)
        return answers

    def make_history_part(self, q: HistoryRequest, at_a_time: int) -> HistoryResponse:
        """Bounds are offsets here, or none."""
        start = self.journal_floor if q.since is None or q.since.offset is None else q.since.offset
        end = self.offset if q.until is None or q.until.offset is None else q.until.offset
        if start < self.journal_floor:
            return HistoryResponse(q.request, self.epoch, self.journal_floor, self.offset, 0, [], "retention", 1.5)
        found = [r for r in self.journal if start < r[0] <= end]
        part = (found[::-1] if q.is_descending else found)[: min(at_a_time, q.limit)]
        whole = len(part) == len(found)
        reached = (start if q.is_descending else end) if whole else part[-1][0] - q.is_descending
        mine = [(offset, body) for offset, user, body in part if user in (None, q.user)]
        return HistoryResponse(q.request, self.epoch, start, end, reached, mine)

    def make_event(self, name: str, data: dict[str, Any] | None = None, **more: Any) -> tuple[int, bytes]:
        self.offset += 1
        made = event(name, data, id=f"event-{self.offset}", **more)
        self.journal.append((self.offset, made.user, encode_event(made)))
        return self.offset, encode_event(made)

    def deliver(self, *events: tuple[int, bytes], traces: Sequence[tuple[int, str]] = ()) -> None:
        after = events[0][0] - 1 if events else self.offset
        self.shard.on_batch(LogBatch(self.epoch, after, self.offset, list(events), list(traces)), self.now)

    def publish(self, name: str, data: dict[str, Any] | None = None, **more: Any) -> int:
        self.deliver(self.make_event(name, data, **more))
        return self.offset

    # the clients

    def issue_ticket(self, user: str, role: str = "viewer", shard: int = 0, **scopes: Any) -> str:
        token = self.sign_token(user, role, **scopes)
        identity = TOKENS.identify(token, self.now + WALL)
        return TOKENS.issue_ticket(identity, shard, f"ticket-{next(self._tickets)}", self.now + WALL, self.address)

    def sign_token(self, user: str, role: str = "viewer", ttl: float = 36_000, **scopes: tuple[str, ...]) -> str:
        return TOKENS.sign_token(user, role, now=self.now + WALL, ttl=ttl, scopes=scopes)

    def open_connection(
        self, user: str = "alice", role: str = "viewer", codec: Codec = Codec.json, **scopes: Any
    ) -> Connection:
        admitted = self.shard.admit(self.issue_ticket(user, role, **scopes), self.now)
        return self.shard.open_connection(admitted.identity, codec, None, self.now, address=admitted.address)

    def connect_old(self, user: str = "alice", role: str = "viewer", path: str = OLD_PATH, **scopes: Any) -> Connection:
        """A client of the old frontend, accepted and begun."""
        admitted = self.shard.admit(self.issue_ticket(user, role, **scopes), self.now, is_dialect=True)
        found = DIALECT.find_path(path)
        assert found is not None
        session = DIALECT.open_session(found, is_admin=role == "admin")
        client = DialectClient("legacy", found, session, "firefox")
        return self.shard.open_connection(
            admitted.identity, Codec.json, None, self.now, address=admitted.address, dialect=client
        )

    def read_frames(self, connection: Connection) -> list[dict[str, Any]]:
        """What has come for such a client since the last look, as its page reads it."""
        batches = self.sockets.sent.get(connection, [])
        new = batches[self._read.get(connection, 0) :]
        self._read[connection] = len(batches)
        assert all(isinstance(batch, TextBatch) for batch in new)
        return [msgspec.json.decode(text) for batch in new for text in batch.split(b"\n") if text]  # type: ignore[arg-type]

    def open_as(self, identity: Identity, codec: Codec = Codec.json) -> Connection:
        """Opens for an identity that no ticket has carried."""
        assert self.shard._slot_manager.acquire(identity, "", self.now)
        return self.shard.open_connection(identity, codec, None, self.now)

    def connect(self, user: str = "alice", role: str = "viewer", codec: Codec = Codec.json, **hello: Any) -> Connection:
        """Opens, says hello and takes the welcome."""
        connection = self.open_connection(user, role, codec, **hello.pop("scopes", {}))
        self.say(connection, c.Hello(**hello))
        assert isinstance(codec.decode_server(self.sockets.sent[connection][0]), c.Welcome)
        self._read[connection] = 1
        return connection

    def say(self, connection: Connection, message: Any) -> None:
        self.send_raw(connection, ENCODE[codec_of(connection)](message))

    def send_raw(self, connection: Connection, raw: str | bytes) -> None:
        self.shard.receive(connection, raw, self.now)

    def read_messages(self, connection: Connection) -> list[Any]:
        """What has come since the last look, pings apart."""
        frames = self.sockets.sent.get(connection, [])
        new = frames[self._read.get(connection, 0) :]
        self._read[connection] = len(frames)
        messages = [codec_of(connection).decode_server(frame) for frame in new]
        return [m for m in messages if not isinstance(m, c.Ping)]

    def read_events(self, connection: Connection) -> list[c.ReceivedEvent]:
        """The events that have come since the last look."""
        return [e for m in self.read_messages(connection) if isinstance(m, c.Events) for e in m.events]

    def close_code(self, connection: Connection) -> int | None:
        code, _ = self.sockets.closed.get(connection, (None, ""))
        return code

    # the clock

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.shard.next_due()) <= end:
            self.now = max(self.now, due)
            self.shard.run(self.now)
        self.now = end
        self.shard.run(self.now)


def find_user(ring: tuple[int, ...], owner: int, other: tuple[int, ...] = (0,)) -> str:
    """A user who is shard 0's on `other`, and `owner`'s on `ring`."""
    before, after = Ring(other), Ring(ring)
    return next(u for u in (f"user-{n}" for n in count()) if before.owner(u) == 0 and after.owner(u) == owner)


def connect_stuck(b: ShardHarness, *, user: str = "alice", **hello: Any) -> Connection:
    """A live connection whose socket takes nothing any more."""
    connection = b.connect(user, **hello)
    b.sockets.stuck.add(connection)
    b.say(connection, c.Ping())
    b.read_messages(connection)
    return connection


def reconnect_client(b: ShardHarness, cursor: int, epoch: str = "epoch-1", user: str = "alice") -> Connection:
    """A client that says hello with a cursor; what it has missed may have to be asked for."""
    connection = b.open_connection(user)
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume(epoch, cursor)))
    return connection


def resume_client(
    b: ShardHarness, cursor: int, epoch: str = "epoch-1", user: str = "alice"
) -> tuple[c.Welcome, list[int]]:
    """What such a client is welcomed with, and the offsets that it then gets."""
    connection = reconnect_client(b, cursor, epoch, user)
    b.answer_requests()
    b.wait(1)
    welcome, *rest = b.read_messages(connection)
    return welcome, [e.offset for m in rest for e in m.events]
