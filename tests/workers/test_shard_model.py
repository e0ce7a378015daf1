"""Whatever happens to a shard, nobody misses or sees too much.

A shard on sockets in memory goes through whatever Hypothesis can think of, and what its clients got is compared with
what a few plain functions say that they should have got.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import jwt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solowire.backplane.messages import LogBatch
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout import aggregation
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import ROLES
from solowire.model.events import Delivery, Priority, encode_event
from solowire.protocol import messages as c
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection, State
from tests.support.factories import event
from tests.support.shard_harness import ENCODE, SECRET, TOKENS, WALL, ShardHarness, codec_of

USERS = ["alice", "bob", "carol"]
RIGHTS: list[tuple[str, list[str] | None, dict[str, list[str]]]] = [
    ("admin", None, {}),
    ("operator", None, {}),
    ("viewer", None, {}),
    ("viewer", None, {"zones": ["example.com"]}),
    ("operator", None, {"zones": ["Example.org.", "a.example.com"]}),
    ("viewer", ["dns.read"], {}),
    ("admin", None, {"host": ["ns1"], "zone": []}),
    ("viewer", [], {}),
    ("admin", None, {}),
    ("admin", None, {}),
]
PATTERNS = ["*", "dns.*", "custom.*", "system.*", "record_created", "custom.a", "custom.b", "gateway_stats", "user.*"]
FILTERS: list[dict[str, list[str]]] = [
    {},
    {},
    {"zone": ["example.com"]},
    {"zone": ["a.example.com", "example.org"]},
    {"host": ["ns1"]},
    {"client_ip": ["10.0.0.1"]},
]
TYPES = [
    "record_created",
    "dns_query_log",
    "dns_query_log",
    "rpz_hit",
    "system_metrics",
    "gateway_stats",
    "user_login",
    "custom.a",
    "custom.b",
]
SECRETS = {  # what of these types is sensitive, and which permission shows it
    "record_created": {"client": "sensitive.client_ip", "tsig_key": "sensitive.tsig_key"},
    "dns_query_log": {"client_ip": "sensitive.client_ip", "tsig_key": "sensitive.tsig_key"},
    "rpz_hit": {"client_ip": "sensitive.client_ip"},
    "user_login": {"client_ip": "sensitive.client_ip", "session_id": "sensitive.session_id"},
}
PERMISSION = {
    "record_created": "dns.read",
    "dns_query_log": "dns.read",
    "rpz_hit": "security.read",
    "system_metrics": "system.read",
    "gateway_stats": "admin.read",
    "user_login": "users.read",
}
CATEGORY = {"record_created": "dns", "dns_query_log": "dns", "rpz_hit": "security", "user_login": "user"}
NORMAL = [Priority.critical, Priority.high, Priority.normal, Priority.low]


class Happened:
    """One event, as its publisher knows it."""

    def __init__(self, offset: int, name: str, data: dict[str, Any], user: str | None, key: str | None) -> None:
        self.offset = offset
        self.name = name
        self.data = data
        self.user = user
        self.key = key
        self.delivery = CATALOG[name].delivery
        self.category = CATEGORY.get(name) or ("custom" if name.startswith("custom.") else "system")

    def has(self, attribute: str) -> bool:
        """Whether events of this type declare the attribute at all."""
        return attribute in {
            "record_created": {"zone", "name"},
            "dns_query_log": {"zone", "client_ip", "query_domain"},
            "rpz_hit": {"zone", "client_ip", "query_domain"},
            "system_metrics": {"host"},
            "user_login": {"client_ip"},
        }.get(self.name, {"zone"} if self.category == "custom" else set())

    def matches(self, attribute: str, values: list[str]) -> bool:
        value = self.data.get(attribute, self.data.get("query_domain") if attribute == "zone" else None)
        if attribute != "zone":
            return value in values
        zones = [v.lower().removesuffix(".") for v in values]
        return value is not None and any(value == z or value.endswith("." + z) for z in zones)


class Reader:
    """One client: what it asked for and may see, and what it got."""

    def __init__(self, user: str, rights: int, connection: Connection) -> None:
        self.user = user
        self.connection = connection
        self.wanted: dict[str, dict[str, list[str]]] = {}
        self.read = 0
        self.welcome: c.Welcome | None = None
        self.cursor = 0
        self.start: int | None = None  # live events are those after it
        self.got: list[int] = []
        self.left_out: Counter[str] = Counter()
        self.summaries: list[str] = []
        self.snapshot: list[int] = []
        self.before: dict[str, dict[str, list[str]]] = {}
        self.answers: list[Any] = []
        self.asked: list[int] = []
        self.changed = False
        self.was_stuck = False
        self.become(rights)

    def become(self, rights: int) -> None:
        role, self.permissions, self.scopes = RIGHTS[rights]
        if self.permissions is None:
            self.permissions = list(ROLES[role].permissions)

    def may(self, permission: str) -> bool:
        kind = permission.split(".")[0]
        return any(p in ("*", permission, f"{kind}.*") for p in self.permissions or ())

    def shown(self, happened: Happened) -> dict[str, Any]:
        """What of an event's data this reader may see."""
        hidden = {f for f, p in SECRETS.get(happened.name, {}).items() if not self.may(p)}
        hidden |= {"undeclared"} if hidden else set()
        return {name: value for name, value in happened.data.items() if name not in hidden}

    def should_get(self, happened: Happened, *, at_hello: bool = False) -> bool:
        if happened.user not in (None, self.user):
            return False
        if not self.may(PERMISSION.get(happened.name, "custom.read")):
            return False
        for scope, values in self.scopes.items():
            attribute = "zone" if scope == "zones" else scope
            if happened.has(attribute) and not happened.matches(attribute, values):
                return False
        filter = self._filter_for(happened, self.before if at_hello else self.wanted)
        return filter is not None and all(happened.matches(a, v) for a, v in filter.items() if happened.has(a))

    def _filter_for(self, happened: Happened, wanted: dict[str, dict[str, list[str]]]) -> dict[str, list[str]] | None:
        """The filter of the last pattern that names the type and is granted."""
        last = None
        for pattern, filter in wanted.items():
            if "client_ip" in filter and happened.has("client_ip") and not self.may("sensitive.client_ip"):
                continue
            if pattern in ("*", f"{happened.category}.*", happened.name):
                last = filter
        return last


class ShardMachine(RuleBasedStateMachine):
    """A shard with a handful of users who come, go, stall and change their minds while events pour in."""

    @initialize(
        max_events=st.sampled_from([60, 100_000]),
        rate=st.sampled_from([float("inf"), 3.0]),
        interval=st.sampled_from([0.0, 2.0]),
    )
    def start(self, max_events: int, rate: float, interval: float) -> None:
        self.sampled, aggregation.SAMPLE_EVENTS = aggregation.SAMPLE_EVENTS, 2
        self.interval = interval
        self.offset = 0
        self.log: list[Happened] = []
        self.happened: dict[int, Happened] = {}
        self.readers: list[Reader] = []
        self.ids = count(1)
        self.bench = ShardHarness(
            recent_log=RecentLog(catalog=CATALOG, max_events=max_events),
            session__message_rate=1000.0,
            session__message_burst=1000.0,
            shard__aggregation__events_per_s=rate,
            shard__conflation__interval_s=interval,
        )
        self.shard, self.sockets = self.bench.shard, self.bench.sockets

    # what may happen

    @rule(
        user=st.sampled_from(USERS),
        rights=st.integers(0, len(RIGHTS) - 1),
        codec=st.sampled_from(Codec),
        patterns=st.just(["*"]) | st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
        filter=st.sampled_from(FILTERS),
        says_hello=st.integers(0, 4),
        resumes=st.booleans(),
        replaces=st.integers(0, 4),
    )
    def connect(
        self,
        user: str,
        rights: int,
        codec: Codec,
        patterns: list[str],
        filter: dict[str, list[str]],
        says_hello: int,
        resumes: bool,
        replaces: int,
    ) -> None:
        if replaces and any(r.user == user for r in self.live()):
            return
        identity = TOKENS.identify(self.token(user, rights), self.bench.now + WALL)
        last = next((r for r in reversed(self.readers) if r.user == user and r.welcome is not None), None)
        reader = Reader(user, rights, self.bench.open_as(identity, codec))
        self.readers.append(reader)
        self.look()
        if not says_hello:
            reader.wanted = {p: {} for p in ROLES[identity.role].defaults}
            return
        reader.wanted = dict.fromkeys(patterns, filter)
        may = last is not None and last.cursor >= self.shard.log.start_offset  # no router is here to ask for more
        resume = c.Resume(self.bench.epoch, last.cursor) if resumes and may and last is not None else None
        self.say(reader, c.Hello(None, patterns, filter or None, resume))
        self.pass_time(0.06)

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), politely=st.booleans(), really=st.integers(0, 2))
    def disconnect(self, which: int, politely: bool, really: int) -> None:
        if really:
            return  # most stay longer
        reader = self.pick(which)
        self.shard.on_closed(reader.connection)
        if politely:
            self.shard.on_closed(reader.connection)

    @precondition(lambda self: self.live())
    @rule(
        which=st.integers(0, 9),
        patterns=st.lists(st.sampled_from(PATTERNS), max_size=2),
        filter=st.sampled_from(FILTERS),
    )
    def subscribe(self, which: int, patterns: list[str], filter: dict[str, list[str]]) -> None:
        reader = self.pick(which)
        if reader.connection.state is State.live:
            kept = {p: f for p, f in reader.wanted.items() if p not in patterns}
            reader.wanted = {**kept, **dict.fromkeys(patterns, filter)}
            reader.changed = True
            self.ask(reader, c.Subscribe(patterns, next(self.ids), filter or None))

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), pattern=st.integers(0, 9))
    def unsubscribe(self, which: int, pattern: int) -> None:
        reader = self.pick(which)
        if reader.connection.state is State.live and reader.wanted:
            # Only what was asked for in the same words, and everything that it names: the rest is `test_subscriptions`.
            leaving = list(reader.wanted)[pattern % len(reader.wanted)]
            if leaving in ("custom.a", "custom.b") and {"*", "custom.*"} & set(reader.wanted):
                return
            if leaving == "*" or (leaving.endswith(".*") and "*" not in reader.wanted):
                kind = leaving.removesuffix("*")
                gone = {p for p in reader.wanted if leaving == "*" or p == leaving or p.startswith(kind)}
                gone |= {p for p in reader.wanted if CATEGORY.get(p) and f"{CATEGORY[p]}.*" == leaving}
                gone |= {"gateway_stats"} if leaving == "system.*" else set()
            elif leaving in ("custom.a", "custom.b"):
                gone = {leaving}
            else:
                return
            reader.wanted = {p: f for p, f in reader.wanted.items() if p not in gone}
            reader.changed = True
            self.ask(reader, c.Unsubscribe([leaving], next(self.ids)))

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), rights=st.integers(0, len(RIGHTS) - 1))
    def refresh(self, which: int, rights: int) -> None:
        reader = self.pick(which)
        waiting = reader.connection.state is State.awaiting_hello
        reader.become(rights)
        reader.changed = reader.changed or not waiting
        if waiting:
            reader.wanted = {p: {} for p in ROLES[RIGHTS[rights][0]].defaults}
        self.say(reader, c.Refresh(self.token(reader.user, rights)))

    @rule(
        events=st.lists(
            st.tuples(
                st.sampled_from(TYPES),
                st.sampled_from(["example.com", "a.example.com", "example.org", "org"]),
                st.sampled_from([None, None, None, *USERS]),
                st.sampled_from(NORMAL),
                st.sampled_from([0, 0, 3_000, 40_000, 40_000]),
            ),
            min_size=1,
            max_size=8,
        ),
        passed_over=st.integers(0, 2),
    )
    def deliver(self, events: list[tuple[str, str, str | None, Priority, int]], passed_over: int) -> None:
        self.pass_time(0.03)
        after = self.offset
        batch = []
        for name, zone, user, priority, size in events:
            self.offset += 1
            if user is not None:  # one that waits for a second could fall out of so small a log
                priority = min(priority, Priority.high, key=NORMAL.index)
            happened = Happened(self.offset, name, data_of(name, zone, self.offset, size), user, None)
            if CATALOG[name].delivery is Delivery.state:
                happened.key = zone
            self.log.append(happened)
            self.happened[happened.offset] = happened
            made = event(name, happened.data, user=user, key=happened.key, priority=priority, id=f"e{self.offset}")
            batch.append((self.offset, encode_event(made)))
        self.offset += passed_over  # other users' own events
        self.shard.on_batch(LogBatch(self.bench.epoch, after, self.offset, batch), self.bench.now)
        self.look()

    @rule(
        name=st.sampled_from(["dns_query_log", "rpz_hit", "system_metrics", "custom.a"]),
        zones=st.lists(st.sampled_from(["example.com", "a.example.com", "org"]), min_size=1, max_size=3),
        user=st.sampled_from([None, None, None, *USERS]),
        events=st.integers(4, 25),
        size=st.sampled_from([0, 0, 3_000]),
    )
    def flood(self, name: str, zones: list[str], user: str | None, events: int, size: int) -> None:
        self.deliver([(name, zones[n % len(zones)], user, Priority.high, size) for n in range(events)], 0)

    @precondition(lambda self: len(self.live()) > 1)
    @rule(which=st.integers(0, 9), name=st.sampled_from(["dns_query_log", "rpz_hit"]), goes=st.booleans())
    def change_in_a_flood(self, which: int, name: str, goes: bool) -> None:
        """One leaves its feed while events are being collected for it and for others, and the flood goes on."""
        self.flood(name, ["example.com", "org"], None, 12, 0)
        reader = self.pick(which)
        if goes:
            self.shard.on_closed(reader.connection)
        elif reader.connection.state is State.live:
            reader.changed = True
            reader.wanted["custom.b"] = {}
            self.ask(reader, c.Subscribe(["custom.b"], next(self.ids)))
        self.flood(name, ["example.com", "org"], None, 12, 0)

    @precondition(lambda self: self.live())
    @rule(
        which=st.integers(0, 9),
        names=st.lists(st.sampled_from(["dns_query_log", "rpz_hit", "system_metrics", "custom.a"]), max_size=4),
    )
    def stall(self, which: int, names: list[str]) -> None:
        """A reader that stops for a while, so long that the log may forget what it lacks, and reads on."""
        reader = self.pick(which)
        self.stick(which, True)
        for name in names:
            self.flood(name, ["example.com", "org"], None, 25, 3_000)
        self.sockets.unstick(reader.connection)

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9), is_asked=st.booleans())
    def stick(self, which: int, is_asked: bool) -> None:
        reader = self.pick(which)
        reader.was_stuck = True
        self.sockets.stuck.add(reader.connection)
        if is_asked:
            self.say(reader, c.Ping())  # the answer is what it is busy with from now on

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 9))
    def unstick(self, which: int) -> None:
        self.sockets.unstick(self.pick(which).connection)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.1, 1.0, 3.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        end = self.bench.now + seconds
        while (due := self.shard.next_due()) <= end:
            self.bench.now = max(self.bench.now, due)
            self.shard.run(self.bench.now)
            assert self.shard.next_due() > self.bench.now, "it would spin"
            self.look()
        self.bench.now = end

    # what must hold

    @invariant()
    def keeps_its_promises(self) -> None:  # Hypothesis has a `check_invariants` of its own, which calls this
        if not hasattr(self, "shard"):
            return
        self.look()
        shard = self.shard
        live = {c for c in shard.connections if c.state is State.live}
        members = [m for feed in shard.feeds for m in (*feed.current, *feed.behind)]
        assert len(members) == len(live)
        assert set(members) == live
        assert all(len(feed) for feed in shard.feeds)
        assert len({c.identity.user for c in shard.connections}) == len(shard.connections)
        assert len(shard.dispatcher.blocked) <= len(shard.connections)
        for feed in shard.feeds:
            assert feed.position <= shard.log.position
            assert feed.flush_at is not None or not feed._has_pending, "it would never be flushed"
            assert not any(connection.reader.pending_replies for connection in feed.current)
            assert not any(connection.reader.pending_replies for connection in feed.unparked)
            assert all(feed.behind[connection] is lag for connection, lag in feed.unparked.items())
            assert feed.behind.keys() - feed.unparked.keys() <= shard.dispatcher.blocked.keys()
        for reader in self.readers:
            code, _ = self.sockets.closed.get(reader.connection, (None, ""))
            assert code in ((None, 4409, 4413, 4408) if reader.was_stuck else (None, 4409))

    def teardown(self) -> None:
        if not hasattr(self, "shard"):
            return
        try:
            self.check_end()
        finally:
            aggregation.SAMPLE_EVENTS = self.sampled

    def check_end(self) -> None:
        for name in ("system_metrics", "dns_query_log"):  # so that something is held back, and something collected
            self.flood(name, ["example.com", "org"], None, 6, 0)
        self.pass_time(2.5)
        for reader in self.live():
            self.sockets.unstick(reader.connection)
        self.pass_time(4.0)
        self.keeps_its_promises()
        for reader in self.live():
            assert reader.welcome is not None
            assert reader.answers == reader.asked
            assert reader.start is not None
            if not reader.changed:
                expected = [h for h in self.log if h.offset > reader.start and reader.should_get(h)]
                self.check_all(reader, expected)
                assert reader.snapshot == ([] if reader.welcome.resumed else self.newest_states(reader))

    def check_all(self, reader: Reader, expected: list[Happened]) -> None:
        """Durable events once each, telemetry got or counted, of each state the newest, and last."""
        happened = self.happened
        got = Counter(happened[offset].name for offset in reader.got if offset > (reader.start or 0))
        durable = [h.offset for h in expected if h.delivery is Delivery.durable]
        assert [o for o in reader.got if happened[o].delivery is Delivery.durable] == durable
        for name in ("dns_query_log", "rpz_hit"):
            assert got[name] + reader.left_out[name] == sum(h.name == name for h in expected)
        if not reader.was_stuck and not self.interval:
            assert sorted(o for o in reader.got if happened[o].delivery is Delivery.state) == [
                h.offset for h in expected if h.delivery is Delivery.state
            ]
        newest = {(h.name, h.key, h.user): h for h in self.log if h.key}
        for key, last in newest.items():
            if last in expected:
                of_key = [o for o in reader.got if (happened[o].name, happened[o].key, happened[o].user) == key]
                assert of_key[-1:] == [last.offset]

    # how it is looked at

    def live(self) -> list[Reader]:
        return [r for r in getattr(self, "readers", []) if r.connection in self.shard.connections]

    def pick(self, which: int) -> Reader:
        live = self.live()
        return live[which % len(live)]

    def token(self, user: str, rights: int) -> str:
        role, permissions, scopes = RIGHTS[rights]
        claims: dict[str, Any] = {"sub": user, "role": role, "scopes": scopes, "exp": self.bench.now + WALL + 36_000}
        if permissions is not None:
            claims["permissions"] = permissions
        return jwt.encode(claims, SECRET, "HS256")

    def say(self, reader: Reader, message: Any) -> None:
        self.shard.receive(reader.connection, ENCODE[codec_of(reader.connection)](message), self.bench.now)
        self.look()

    def ask(self, reader: Reader, message: Any) -> None:
        reader.asked.append(message.id)
        self.say(reader, message)

    def look(self) -> None:
        """Takes what every client has got since the last look, and judges it by what holds now."""
        for reader in self.readers:
            connection = reader.connection
            frames = self.sockets.sent.get(connection, [])
            new, reader.read = frames[reader.read :], len(frames)
            if reader.start is None and connection.state is State.live:
                reader.start, reader.before = self.offset, reader.wanted
            for frame in new:
                self.judge(reader, codec_of(connection).decode_server(frame))
            if connection.state is State.closing:
                self.shard.on_closed(connection)

    def judge(self, reader: Reader, message: Any) -> None:
        match message:
            case c.Ping() if reader.connection not in self.sockets.stuck:
                self.shard.receive(reader.connection, ENCODE[codec_of(reader.connection)](c.Pong()), self.bench.now)
            case c.Welcome():
                assert reader.welcome is None
                assert reader.answers == reader.got == []
                reader.welcome = message
                reader.cursor = message.cursor
                if message.resumed:
                    reader.start = message.cursor
            case c.Subscriptions():
                assert reader.welcome is not None
                reader.answers += [message.id] if message.id is not None else []
            case c.Error():
                raise AssertionError(message)
            case c.Events():
                self.judge_events(reader, message)

    def judge_events(self, reader: Reader, message: c.Events) -> None:
        assert reader.welcome is not None
        happened = self.happened
        assert reader.start is not None
        assert reader.cursor <= message.cursor <= self.offset
        events = [e for e in message.events if e.source != "solowire"]
        offsets = [e.offset for e in events]
        is_snapshot = (
            not reader.got and not reader.welcome.resumed and not message.compacted and offsets[-1] <= reader.start
        )
        if is_snapshot:
            reader.snapshot += offsets
            assert reader.snapshot == sorted(set(reader.snapshot))
            assert reader.welcome.cursor == reader.snapshot[0] - 1
            # Until the last of it has come, who is cut off must come back for the rest of it.
            whole = reader.snapshot == self.newest_states(reader)
            assert message.cursor == (reader.start if whole else offsets[-1])
        elif message.compacted:
            assert message.events or sum(message.compacted.values())
            reader.left_out.update(message.compacted)
            for received in events:
                known = happened[received.offset]
                assert received.offset <= message.cursor
                assert received.offset > reader.cursor or known.delivery is Delivery.state
            reader.got += sorted(offsets)
        else:
            assert offsets == sorted(set(offsets))
            assert len(events) == len(message.events)
            assert reader.cursor < offsets[0]
            assert offsets[-1] <= message.cursor
            reader.got += offsets
        reader.cursor = message.cursor
        for received in events:
            known = happened[received.offset]
            assert reader.should_get(known, at_hello=is_snapshot), f"{reader.user} got {known.name} at {known.offset}"
            assert received.data == reader.shown(known)
        for summary in (e for e in message.events if e.source == "solowire"):
            assert summary.type == "dns_query_stats"
            assert ("top_clients" in summary.data) == reader.may("sensitive.client_ip")
            assert "dns_query_log" in message.compacted
            assert reader.was_stuck or reader.changed or summary.id not in reader.summaries
            reader.summaries.append(summary.id)

    def newest_states(self, reader: Reader) -> list[int]:
        """What was the newest of each state that this reader had asked for when it began."""
        assert reader.start is not None
        newest = {(h.name, h.key, h.user): h for h in self.log if h.key and h.offset <= reader.start}
        return sorted(h.offset for h in newest.values() if reader.should_get(h, at_hello=True))


def data_of(name: str, zone: str, offset: int, size: int) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {
        "record_created": {"zone": zone, "name": f"www.{zone}", "type": "A", "client": "10.0.0.1", "tsig_key": "k"},
        "dns_query_log": {
            "query_domain": zone,
            "query_type": "A",
            "client_ip": f"10.0.0.{offset % 3}",
            "tsig_key": "k",
        },
        "rpz_hit": {"query_domain": zone, "zone": zone, "action": "NXDOMAIN", "client_ip": f"10.0.0.{offset % 3}"},
        "system_metrics": {"cpu_usage": 1, "host": "ns1" if offset % 2 else "ns2"},
        "gateway_stats": {"connections": offset},
        "user_login": {"user": "someone", "client_ip": "10.0.0.1", "session_id": "s"},
    }
    data = known.get(name, {"zone": zone} if offset % 3 else {"n": offset})
    return {**data, "undeclared": "x" * size}


TestShard = ShardMachine.TestCase
TestShard.settings = settings(deadline=None, max_examples=150, stateful_step_count=50)
TestShard.__doc__ = "Whatever happens to a shard, clients get what they may and want, in order and once."
