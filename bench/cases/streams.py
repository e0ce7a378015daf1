"""Events by the clock: at several rates, with many feeds, to single users, beside slow readers, in other codecs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from random import Random

from bench.cases.fanout import single_round
from bench.machine import SERVER_CORES
from bench.measure import Round, Stream, make_row, publishing
from bench.publisher import EVENT_BYTES, About
from bench.receiver import Receiver
from bench.registry import Length, benchmark
from bench.report import Case
from bench.solowire_system import DEFLATE, MSGPACK, Solowire
from bench.ws_client import JSON

CONNECTIONS = 1000
COLUMNS = ["events/s", "deliveries per CPU-second", "p50", "p99", "max", "frames per event", "bytes per delivery"]
SHARES = ["server CPU", "shard CPU", "router CPU", "gateway CPU", "receiver CPU", "load core"]
WARM_UP_S = 1.0
MANY, SHARD_CORES, TWO_SHARDS = 10_000, 3, 1.8
OVER_ONE = "over one shard's"
FEEDS_PER_S, PER_SECOND, BATCH = 200, 1000, 10
SLOW_SHARE, SLOW_KB_PER_S = 5, 20

Hello = Callable[[int], Mapping[str, object]]
Streams = Callable[[int], tuple[int, int]]


def _rounds(
    length: Length,
    system: Solowire,
    stream: Stream,
    hello: Hello | None = None,
    streams: Streams | None = None,
    wires: int = 4,
) -> list[Round]:
    with system, Receiver(system.style) as receiver:
        system.connect(receiver, CONNECTIONS, hello=hello, streams=streams)
        found = []
        for seconds in (WARM_UP_S, *[length.seconds] * length.rounds):
            # Opened anew each time: the server cuts those that wait for long, for a round that it could not follow.
            with publishing(system, wires) as publisher:
                found.append(stream.run(system, receiver, publisher, seconds))
        return found[1:]


@benchmark()
def stream(case: Case, length: Length) -> None:
    """100, 1,000 and 5,000 events per second to 1,000 subscribers.

    {CONNECTIONS:,} connections of one feed, events of {EVENT_BYTES} bytes as published at a steady rate, at their
    type's default priority, ten to a hundred requests per second.
    """
    for per_second, batch in ((100, 1), (1000, 10), (5000, 50)):
        rounds = _rounds(length, Solowire(), Stream(per_second, batch, CONNECTIONS))
        case.rows.append(make_row(f"{per_second:,} events/s", rounds, [*COLUMNS, *SHARES]))
    case.hold(case.rows[1], "deliveries per CPU-second", at_least=2.5e6)
    case.hold(case.rows[1], "p99", at_most=150.0)


# ---------------------------------------------------------------- feeds and users


@benchmark()
def feeds(case: Case, length: Length) -> None:
    """1, 10, 100 and 1,000 feeds.

    What an event costs by how many feeds {CONNECTIONS:,} connections are divided into, at {FEEDS_PER_S} events per
    second. A feed is a filter: the zone that all share and one of its own. `all match` publishes to the shared zone;
    `one matches` to one feed after the other.
    """
    for count in (1, 10, 100, 1000):
        _add_feeds(case, length, count, all_match=True)
    for count in (10, 100, 1000):
        _add_feeds(case, length, count, all_match=False)


def _add_feeds(case: Case, length: Length, count: int, *, all_match: bool) -> None:
    columns = ["events/s", "CPU per event", "frames per event", "CPU per frame", "deliveries per CPU-second"]
    shared = ["shared.example"] if all_match else []

    def zone(n: int) -> str:
        return f"z{n % count}.example"

    def hello(n: int) -> Mapping[str, object]:
        return {"filter": {"zone": [*shared, zone(n)]}}

    def streams(n: int) -> tuple[int, int]:
        return (0, 0) if all_match else (n % count, n % count)

    def about(n: int) -> About:
        key = streams(n)[0]
        return About(key, data=f'"zone":"{shared[0] if all_match else zone(n)}",'.encode())

    load = Stream(FEEDS_PER_S, BATCH, CONNECTIONS if all_match else CONNECTIONS // count, all_match, about)
    found = _rounds(length, Solowire(), load, hello, streams, wires=1)
    name = f"{count:,} feed{'s' * (count > 1)}, {'all match' if all_match else 'one matches'}"
    case.rows.append(make_row(name, found, [*columns, "p50", "p99", *SHARES]))


@benchmark()
def users(case: Case, length: Length) -> None:
    """A thousand users, each with events of their own.

    {CONNECTIONS:,} users, {PER_SECOND:,} events per second, each for one user alone (`user`): nothing can be shared,
    every delivery is a frame.
    """

    def about(n: int) -> About:
        return About(n % CONNECTIONS, top=f'"user":"u{n % CONNECTIONS}",'.encode())

    load = Stream(PER_SECOND, BATCH, 1, is_even=False, about=about)
    found = _rounds(length, Solowire(), load, None, lambda n: (n, n), wires=1)
    case.rows.append(make_row(f"{CONNECTIONS:,} users", found, ["CPU per event", *COLUMNS, *SHARES]))


# ---------------------------------------------------------------- slow readers


@benchmark()
def slow(case: Case, length: Length) -> None:
    """A fifth of the readers is slow.

    {CONNECTIONS:,} connections of one feed, {PER_SECOND:,} events per second. In the second row every {SLOW_SHARE}th
    reads only {SLOW_KB_PER_S} KB/s of some 300, with a receive buffer of 16 KB: it falls behind. What the others get,
    when, and what it costs, should be what the first row says. Memory is the PSS of all processes at the end.
    """
    for slow_ones in (0, CONNECTIONS // SLOW_SHARE):
        with contextlib.ExitStack() as stack:
            system = stack.enter_context(Solowire())
            receiver = stack.enter_context(Receiver(system.style, SLOW_KB_PER_S * 1000.0))
            fast = CONNECTIONS - slow_ones
            system.connect(receiver, fast)
            system.connect(receiver, slow_ones, first=fast, slow=lambda _: True)
            load = Stream(PER_SECOND, BATCH, fast)
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
                if counts.slow != slow_ones:
                    rounds[-1].faults.append(f"{counts.slow} of {slow_ones} slow ones were still there")
        extra = ["PSS, MB", "slow ones cut off", "deliveries to each slow one"]
        case.rows.append(make_row(f"{fast:,} fast, {slow_ones:,} slow", rounds, [*COLUMNS, *extra, *SHARES]))


# ---------------------------------------------------------------- shards and codecs


@benchmark()
def shards(case: Case, length: Length) -> None:
    """The same load on 1, 2 and 4 shards.

    The same {CONNECTIONS:,} users and {PER_SECOND:,} events per second with one shard and with more, and how much more
    CPU a delivery then costs (`{OVER_ONE}`). Where the servers have {SHARD_CORES} cores or more, also how many events
    per second one shard and two can do at most: {MANY:,} users, one critical event at a time, the next when all have
    got the last, so that the shards have nearly all of the time.
    """
    for count in (1, 2, 4):
        rounds = _rounds(length, Solowire(shards=count), Stream(PER_SECOND, BATCH, CONNECTIONS))
        _add_beside_one(case, count, "", rounds, "CPU per delivery", ["CPU per delivery", *COLUMNS])
    if len(SERVER_CORES) < SHARD_CORES:
        why = f"not measurable: {len(SERVER_CORES)} server core{'s' * (len(SERVER_CORES) > 1)}"
        case.cannot_hold("2 shards at most", OVER_ONE, f"≥ {TWO_SHARDS:.2f}", why)
        return
    for count in (1, 2):
        _add_beside_one(case, count, " at most", _most_rounds(length, count), "events/s", COLUMNS)
    case.hold(case.rows[-1], OVER_ONE, at_least=TWO_SHARDS, over=case.row("1 shard at most"))


def _add_beside_one(case: Case, count: int, suffix: str, rounds: list[Round], measure: str, columns: list[str]) -> None:
    """A row with its `measure` over what the row of one shard, which came before or is this, says of it."""
    name = f"{count} shard{'s' * (count > 1)}{suffix}"
    base = (case.row(f"1 shard{suffix}") or make_row(name, rounds, [measure])).measures[measure].median
    for found in rounds:
        found.values[OVER_ONE] = found.values[measure] / base
    case.rows.append(make_row(name, rounds, [OVER_ONE, *columns, *SHARES]))


def _most_rounds(length: Length, count: int) -> list[Round]:
    """One event at a time, to so many that what the shards do is nearly all of the time."""
    events = max(10, length.events // 4)
    with Solowire(shards=count) as system, Receiver(system.style) as receiver:
        system.connect(receiver, MANY)
        with contextlib.closing(system.wires(1)[0]) as wire:
            single_round(system, receiver, wire, 5, MANY)  # warms up
            return [single_round(system, receiver, wire, events, MANY) for _ in range(length.rounds)]


@benchmark()
def codecs(case: Case, length: Length) -> None:
    """JSON, MessagePack and both compressed.

    {CONNECTIONS:,} connections of one feed, {PER_SECOND:,} events per second, by subprotocol. In this case an event is
    filled not with one letter but with what a query log has, and the rest with random digits, so that compression finds
    no more than it would in real ones.
    """
    for subprotocol in (JSON, MSGPACK, JSON + DEFLATE, MSGPACK + DEFLATE):
        with Solowire() as system:
            is_offered = system.offers(subprotocol)
        if not is_offered:
            case.remarks.append(f"`{subprotocol}`: not offered by this version.")
            continue
        load = Stream(PER_SECOND, BATCH, CONNECTIONS, about=_about_query)
        rounds = _rounds(length, Solowire(subprotocol=subprotocol), load)
        case.rows.append(make_row(f"`{subprotocol}`", rounds, ["CPU per delivery", *COLUMNS, *SHARES]))


def _about_query(number: int) -> About:
    """As in a query log: of each event something differs, and most is like in others."""
    chance = Random(number)
    host, zone, client = chance.choice(("www", "mail", "api", "cdn")), chance.randrange(500), chance.randbytes(3)
    name = f"{host}{chance.randrange(20)}.example{zone}.{chance.choice(('com', 'net', 'org'))}"
    data = (
        f'"ip":"10.{".".join(map(str, client))}","port":{chance.randrange(1024, 65536)},"name":"{name}",'
        f'"type":"{chance.choice(("A", "AAAA", "MX"))}","rcode":"NOERROR","ms":{chance.random() * 30:.2f},'
    )
    return About(None, data=data.encode(), pad=chance.randbytes(EVENT_BYTES // 2).hex().encode())
