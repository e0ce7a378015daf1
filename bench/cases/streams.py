"""Events by the clock: at several rates, with many feeds, to single users, beside slow readers, in other codecs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from random import Random

from bench.cases.fanout import single_round
from bench.load import EVENT_BYTES, About
from bench.machine import SERVER_CORES
from bench.measure import Length, Round, Stream, publishing, row
from bench.receiver import Receiver
from bench.report import Case
from bench.solowire_system import DEFLATE, JSON, MSGPACK, Solowire

CONNECTIONS = 1000
COLUMNS = ["events/s", "deliveries per CPU-second", "p50", "p99", "max", "frames per event", "bytes per delivery"]
SHARES = ["server CPU", "shard CPU", "router CPU", "gateway CPU", "receiver CPU", "load core"]
WARM_UP_S = 1.0
MANY, SHARD_CORES, TWO_SHARDS = 10_000, 3, 1.8
OVER_ONE = "over one shard's"

Hello = Callable[[int], Mapping[str, object]]
Streams = Callable[[int], tuple[int, int]]


def _rounds(
    length: Length,
    system: Solowire,
    stream: Stream,
    connections: int,
    hello: Hello | None = None,
    streams: Streams | None = None,
    wires: int = 4,
) -> list[Round]:
    with system, Receiver(system.style) as receiver:
        system.connect(receiver, connections, hello=hello, streams=streams)
        found = []
        for seconds in (WARM_UP_S, *[length.seconds] * length.rounds):
            # Opened anew each time: the server cuts those that wait for long, for a round that it could not follow.
            with publishing(system, wires) as publisher:
                found.append(stream.run(system, receiver, publisher, seconds))
        return found[1:]


def stream(length: Length) -> Case:
    """100, 1,000 and 5,000 events per second to 1,000 subscribers."""
    case = Case(
        "stream",
        f"{CONNECTIONS:,} connections of one feed, events of {EVENT_BYTES} bytes as published at a steady rate, at "
        "their type's default priority, ten to a hundred requests per second.",
    )
    for per_second, batch in ((100, 1), (1000, 10), (5000, 50)):
        rounds = _rounds(length, Solowire(), Stream(per_second, batch, CONNECTIONS), CONNECTIONS)
        case.rows.append(row(f"{per_second:,} events/s", rounds, [*COLUMNS, *SHARES]))
    case.hold(case.rows[1], "deliveries per CPU-second", at_least=2.5e6)
    case.hold(case.rows[1], "p99", at_most=150.0)
    return case


def shards(length: Length) -> Case:
    """The same load on 1, 2 and 4 shards."""
    case = Case(
        "shards",
        f"The same {CONNECTIONS:,} users and 1,000 events per second with one shard and with more, and how much more "
        f"CPU a delivery then costs (`{OVER_ONE}`). Where the servers have {SHARD_CORES} cores or more, also how many "
        f"events per second one shard and two can do at most: {MANY:,} users, one critical event at a time, the next "
        "when all have got the last, so that the shards have nearly all of the time.",
    )
    for count in (1, 2, 4):
        rounds = _rounds(length, Solowire(shards=count), Stream(1000, 10, CONNECTIONS), CONNECTIONS)
        _beside_one(case, _shards(count), rounds, "CPU per delivery", _shards(1), ["CPU per delivery", *COLUMNS])
    if len(SERVER_CORES) < SHARD_CORES:
        why = f"not measurable: {len(SERVER_CORES)} server core{'s' * (len(SERVER_CORES) > 1)}"
        case.cannot_hold(f"{_shards(2)} at most", OVER_ONE, f"≥ {TWO_SHARDS:.2f}", why)
        return case
    for count in (1, 2):
        rounds = _most(length, count)
        _beside_one(case, f"{_shards(count)} at most", rounds, "events/s", f"{_shards(1)} at most", COLUMNS)
    case.hold(case.rows[-1], OVER_ONE, at_least=TWO_SHARDS, over=case.row(f"{_shards(1)} at most"))
    return case


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count > 1)}"


def _beside_one(case: Case, name: str, rounds: list[Round], what: str, one: str, columns: list[str]) -> None:
    """A row with `what` over what the row `one`, which came before or is this, says of it."""
    base = (case.row(one) or row(name, rounds, [what])).measures[what].median
    for found in rounds:
        found.values[OVER_ONE] = found.values[what] / base
    case.rows.append(row(name, rounds, [OVER_ONE, *columns, *SHARES]))


def _most(length: Length, count: int) -> list[Round]:
    """One event at a time, to so many that what the shards do is nearly all of the time."""
    events = max(10, length.events // 4)
    with Solowire(shards=count) as system, Receiver(system.style) as receiver:
        system.connect(receiver, MANY)
        with contextlib.closing(system.wires(1)[0]) as wire:
            single_round(system, receiver, wire, 5, MANY)  # warms up
            return [single_round(system, receiver, wire, events, MANY) for _ in range(length.rounds)]


def codecs(length: Length) -> Case:
    """JSON, MessagePack and both compressed."""
    case = Case(
        "codecs",
        f"{CONNECTIONS:,} connections of one feed, 1,000 events per second, by subprotocol. In this case an event is "
        "filled not with one letter but with what a query log has, and the rest with random digits, so that "
        "compression finds no more than it would in real ones.",
    )
    columns = ["CPU per delivery", *COLUMNS, *SHARES]
    for subprotocol in (JSON, MSGPACK, JSON + DEFLATE, MSGPACK + DEFLATE):
        with Solowire() as system:
            offered = system.offers(subprotocol)
        if not offered:
            case.remarks.append(f"`{subprotocol}`: not offered by this version.")
            continue
        load = Stream(1000, 10, CONNECTIONS, about=_query)
        rounds = _rounds(length, Solowire(subprotocol=subprotocol), load, CONNECTIONS)
        case.rows.append(row(f"`{subprotocol}`", rounds, columns))
    return case


def _query(number: int) -> About:
    """As in a query log: of each event something differs, and most is like in others."""
    chance = Random(number)
    host, zone, client = chance.choice(("www", "mail", "api", "cdn")), chance.randrange(500), chance.randbytes(3)
    name = f"{host}{chance.randrange(20)}.example{zone}.{chance.choice(('com', 'net', 'org'))}"
    data = (
        f'"ip":"10.{".".join(map(str, client))}","port":{chance.randrange(1024, 65536)},"name":"{name}",'
        f'"type":"{chance.choice(("A", "AAAA", "MX"))}","rcode":"NOERROR","ms":{chance.random() * 30:.2f},'
    )
    return About(None, data=data.encode(), pad=chance.randbytes(EVENT_BYTES // 2).hex().encode())


# ---------------------------------------------------------------- feeds and users


def _zone(number: int) -> str:
    return f"z{number}.example"


def _about(zone: str, key: int) -> About:
    return About(key, data=f'"zone":"{zone}",'.encode())


SHARED = "shared.example"


def feeds(length: Length) -> Case:
    """1, 10, 100 and 1,000 feeds."""
    per_second, batch = 200, 10
    case = Case(
        "feeds",
        f"What an event costs by how many feeds {CONNECTIONS:,} connections are divided into, at {per_second} events "
        "per second. A feed is a filter: the zone that all share and one of its own. `all match` publishes to the "
        "shared zone; `one matches` to one feed after the other.",
    )
    columns = ["events/s", "CPU per event", "frames per event", "CPU per frame", "deliveries per CPU-second"]
    for count in (1, 10, 100, 1000):

        def hello(n: int, count: int = count) -> Mapping[str, object]:
            return {"filter": {"zone": [SHARED, _zone(n % count)]}}

        everyone = Stream(per_second, batch, CONNECTIONS, about=lambda _: _about(SHARED, 0))
        found = _rounds(length, Solowire(), everyone, CONNECTIONS, hello, wires=1)
        case.rows.append(row(f"{count:,} feed{'s' * (count > 1)}, all match", found, [*columns, "p50", "p99", *SHARES]))
    for count in (10, 100, 1000):

        def hello(n: int, count: int = count) -> Mapping[str, object]:
            return {"filter": {"zone": [_zone(n % count)]}}

        def streams(n: int, count: int = count) -> tuple[int, int]:
            return n % count, n % count

        def about(n: int, count: int = count) -> About:
            return _about(_zone(n % count), n % count)

        one = Stream(per_second, batch, CONNECTIONS // count, each=lambda _: 0, about=about)
        found = _rounds(length, Solowire(), one, CONNECTIONS, hello, streams, wires=1)
        case.rows.append(row(f"{count:,} feeds, one matches", found, [*columns, "p50", "p99", *SHARES]))
    return case


def users(length: Length) -> Case:
    """A thousand users, each with events of their own."""
    per_second, batch = 1000, 10
    case = Case(
        "users",
        f"{CONNECTIONS:,} users, {per_second:,} events per second, each for one user alone (`user`): nothing can be "
        "shared, every delivery is a frame.",
    )

    def own(n: int) -> tuple[int, int]:
        return n, n

    def about(n: int) -> About:
        return About(n % CONNECTIONS, top=f'"user":"u{n % CONNECTIONS}",'.encode())

    stream = Stream(per_second, batch, 1, each=lambda _: 0, about=about)
    found = _rounds(length, Solowire(), stream, CONNECTIONS, None, own, wires=1)
    case.rows.append(row(f"{CONNECTIONS:,} users", found, ["CPU per event", *COLUMNS, *SHARES]))
    return case


# ---------------------------------------------------------------- slow readers


def slow(length: Length) -> Case:
    """A fifth of the readers is slow."""
    share, bytes_per_s = 5, 20_000.0
    case = Case(
        "slow",
        f"{CONNECTIONS:,} connections of one feed, 1,000 events per second. In the second row every {share}th reads "
        f"only {bytes_per_s / 1000:.0f} KB/s of some 300, with a receive buffer of 16 KB: it falls behind. What the "
        "others get, when, and what it costs, should be what the first row says. Memory is the PSS of all processes at "
        "the end.",
    )
    for slow_ones in (False, True):
        with contextlib.ExitStack() as stack:
            system = stack.enter_context(Solowire())
            receiver = stack.enter_context(Receiver(system.style, bytes_per_s))
            fast = CONNECTIONS - CONNECTIONS // share * slow_ones
            system.connect(receiver, fast)
            system.connect(receiver, CONNECTIONS - fast, first=fast, slow=lambda _: True)
            load = Stream(1000, 10, fast)
            publisher = stack.enter_context(publishing(system))
            load.run(system, receiver, publisher, WARM_UP_S)
            rounds = []
            for _ in range(length.rounds):
                rounds.append(load.run(system, receiver, publisher, length.seconds))
                counts = receiver.counts()
                rounds[-1].values |= {
                    "PSS, MB": system.memory().pss / 1e6,
                    "slow ones cut off": float(counts.slow_ended),
                    "deliveries to each slow one": counts.slow_events / max(1, counts.slow),
                }
                if counts.slow != CONNECTIONS - fast:
                    rounds[-1].faults.append(f"{counts.slow} of {CONNECTIONS - fast} slow ones were still there")
        name = f"{fast:,} fast, {CONNECTIONS - fast:,} slow"
        extra = ["PSS, MB", "slow ones cut off", "deliveries to each slow one"]
        case.rows.append(row(name, rounds, [*COLUMNS, *extra, *SHARES]))
    return case
