"""Solowire beside what a user would take instead, under the same load in the same run: events.

What users cost is in `side_by_side_users`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack

from bench import peers
from bench.cases.fanout import AT_ONCE, single_round
from bench.comparison import (
    OURS_AT_ONCE,
    REPLACED,
    WARM_UP_EVENTS,
    WIRES,
    Side,
    about_of,
    compare_sides,
    connect_sides,
    find_servers,
    hold_lead,
    run_in_turn,
    run_rounds,
    stream_round,
)
from bench.measure import SHORTEST_S, Round, measure, publishing
from bench.peers.nchan import Nchan
from bench.peers.socketio import SocketIo
from bench.publisher import About
from bench.receiver import percentiles_of
from bench.registry import Length, benchmark
from bench.report import Case
from bench.server import Server
from bench.solowire_system import NO_PUBLISH_LIMIT, Solowire
from bench.write_baseline import WriteBaseline

USERS = 1000
TARGET_RATE = 1000
MOST_PER_SECOND = 200_000
"""So that the core of publisher and receivers has room."""
FLOOD_TIMEOUT_S = 5.0
"""For what was acknowledged to arrive."""
LEAST_EVENTS = 20
SHORT_S = 2.0
"""Of rounds of all servers, where there is much else to do between them."""
GONE_S = 1.0
ROUND_S = 2 * SHORTEST_S
"""Long enough for the kernel to say how busy the load's core was."""
SLOW_SHARE, SLOW_KB_PER_S, SLOW_ROUNDS = 5, 20, 2
INGEST_USERS, INGEST_BATCH = 5, 10
SINGLE_TARGETS = (REPLACED, SocketIo.name, Nchan.name)
"""Fixed, so that a peer that is left out does not take its target along."""


@benchmark()
def peers_single(case: Case, length: Length) -> None:
    """One event at a time, beside other servers and the floor.

    One event of {EVENT_BYTES} bytes at a time: the next is published when all have got it. CPU is that of all processes
    of a server, publishing included. `{AHEAD}`: how many times as many deliveries per CPU-second Solowire does. A round
    is {LEAST_EVENTS} events at least, and as many as a server does in {ROUND_S:g} s. The floor is the C loop of bare
    `write()`, which has no publisher, no router and no log; it sends the frame that Solowire sent, a hundred times a
    second at most.
    """
    servers = find_servers(case)
    columns = ["deliveries per CPU-second", "CPU per frame", "p50", "p99", "bytes per delivery", "load core"]
    for users in (100, 1000) if length.is_quick else (100, 1000, 5000):
        found = _single_rounds(case, servers, users, max(length.events * 100 // users, LEAST_EVENTS), length.rounds)
        compare_sides(case, found, "deliveries per CPU-second", columns, f" × {users:,}", length.rounds)
        for name in SINGLE_TARGETS:
            hold_lead(case, name, f" × {users:,}", at_least=1.0)


def _single_rounds(
    case: Case, servers: list[type[Server]], users: int, events: int, rounds: int
) -> dict[str, list[Round]]:
    rates: dict[str, float] = {}
    found: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, users)
        floor = stack.enter_context(WriteBaseline(users))

        def once(side: Side) -> dict[str, Round]:
            count = max(events, int(rates.get(side.name, 0.0) * ROUND_S))
            with contextlib.closing(side.server.wires(1)[0]) as wire:
                one = single_round(side.server, side.receiver, wire, count, users)
            rates[side.name] = one.values["events/s"]
            return {side.name: one}

        for number in range(rounds + 1):
            turn = run_in_turn(case, sides, once)
            cost = floor.run(sides[0].receiver.last_frame(), events, 100.0)
            turn["the floor"] = Round({"CPU per frame": cost * 1e6, "deliveries per CPU-second": 1 / cost})
            for name, one in turn.items():
                found.setdefault(name, []).extend([one] if number else [])  # the first warms up
    return found


# ---------------------------------------------------------------- by the clock


@benchmark()
def peers_stream(case: Case, length: Length) -> None:
    """Events by the clock, beside other servers.

    {USERS:,} users, events of {EVENT_BYTES} bytes at a steady rate, at 1,000 per second ten and at 5,000 fifty to a
    request where a server takes several. Solowire gathers events of normal priority for up to 100 ms, which its latency
    shows; in the second row every event is critical, and none is held back, as the others hold none: see the last
    column. There are {WIRES} connections to publish on, with a request under way on each; to the replaced pattern one,
    since the order of its events is checked over all of them. A server that can't keep up lets its publisher wait,
    which is not the publisher's fault, and is given as many events as it can do in the time of a round.
    """
    servers = find_servers(case)
    columns = ["events/s", "deliveries per CPU-second", "p50", "p99", "max", "frames per event", "bytes per delivery"]
    columns += ["server CPU", "load core"]
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, USERS)
        for per_second in (100, TARGET_RATE, 5000):

            def once(side: Side, per_second: int = per_second) -> dict[str, Round]:
                runs: dict[str, Callable[[int], About | None]] = {side.name: side.server.addressed}
                if side.name == Solowire.name:
                    runs[OURS_AT_ONCE] = lambda _: AT_ONCE
                return {
                    name: stream_round(side, name, addressed, per_second, USERS, length.seconds, rates)
                    for name, addressed in runs.items()
                }

            rounds = length.rounds if per_second <= TARGET_RATE else length.bounded()
            found = run_rounds(case, sides, once, rounds)
            compare_sides(case, found, "deliveries per CPU-second", columns, _at(per_second), rounds)
    for peer in peers.PEERS:
        least = 20.0 if peer.name == REPLACED else 2.0
        hold_lead(case, peer.name, _at(TARGET_RATE), at_least=least)


def _at(per_second: int) -> str:
    return f" × {USERS:,}, {per_second:,} events/s"


@benchmark()
def peers_users(case: Case, length: Length) -> None:
    """A thousand users, each with events of its own, beside other servers.

    {USERS:,} users, {TARGET_RATE:,} events of {EVENT_BYTES} bytes per second, each for one user alone, ten to a request
    where a server takes several, over one connection, since the order of a user's events is checked. With Solowire an
    event names its user; with Socket.IO each has a room, with nchan and Centrifugo a channel, with NATS a subject, and
    in the replaced pattern an entry in a dictionary. Nothing can be shared: every delivery is a frame. Solowire gathers
    events for up to 100 ms. `{AHEAD}`: how many times as much CPU an event costs Solowire.
    """
    servers = [type(server.__name__, (server,), {"has_own": True}) for server in find_servers(case)]
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, USERS)

        def once(side: Side) -> dict[str, Round]:
            def addressed(n: int) -> About:
                return side.server.addressed_to(n % USERS)

            seconds = min(length.seconds, SHORT_S)
            return {side.name: stream_round(side, side.name, addressed, TARGET_RATE, 1, seconds, rates)}

        found = run_rounds(case, sides, once, length.bounded())
    columns = ["events/s", "CPU per event", "p50", "p99", "frames per event", "bytes per delivery"]
    columns += ["server CPU", "load core"]
    compare_sides(case, found, "CPU per event", columns, f" × {USERS:,}", length.bounded())


@benchmark()
def peers_slow(case: Case, length: Length) -> None:
    """A fifth of the readers is slow, beside other servers.

    {USERS:,} users, {TARGET_RATE:,} events of {EVENT_BYTES} bytes per second, ten to a request where a server takes
    several, and every {SLOW_SHARE}th user reads only {SLOW_KB_PER_S} KB/s on each connection, with a receive buffer of
    16 KB. Only what the others get is counted. A server that can't keep up is given as many events as it can do in the
    time of a round, which its slow readers may follow after all. `PSS growth` is that of all processes in a round,
    twice as long as others; what the kernel holds is not in it. Solowire keeps nothing for such a reader: it reads on
    from the log when it can, and is told and cut off when the log has that no more; what grows is the log, with or
    without slow readers (see `slow`). The replaced pattern waits for it with everybody else. Socket.IO keeps all that
    it has yet to get, and cuts it off when it has not answered a ping for 20 s. nchan leaves it in its shared memory,
    and cuts it off when nothing could be written for 60 s. NATS cuts it off at 64 MB, or when a write has waited for 10
    s; Centrifugo at 1 MB. All users come anew for each round, and leave after it, so that none has to catch up in
    another server's.
    """
    fast, rounds, slow_ones = USERS - USERS // SLOW_SHARE, length.bounded(SLOW_ROUNDS), "slow ones cut off"
    seconds = 2 * length.seconds  # so that there is more than a server may hold for one who reads slowly
    servers = find_servers(case)
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, USERS, now=0, slow_bytes_per_s=SLOW_KB_PER_S * 1000.0)

        def once(side: Side) -> dict[str, Round]:
            server, receiver = side.server, side.receiver
            server.connect(receiver, USERS, slow=lambda n: n % SLOW_SHARE == 0)
            before = server.memory().pss
            one = stream_round(side, side.name, server.addressed, TARGET_RATE, fast, seconds, rates)
            one.values["PSS growth, MB"] = (server.memory().pss - before) / 1e6
            one.values[slow_ones] = float(USERS - fast - receiver.counts().slow // server.sockets)
            receiver.close_all()
            time.sleep(GONE_S)
            return {side.name: one}

        found = run_rounds(case, sides, once, rounds)
    columns = ["events/s", "deliveries per CPU-second", "p50", "p99", slow_ones, "PSS growth, MB"]
    columns += ["server CPU", "load core"]
    compare_sides(case, found, "deliveries per CPU-second", columns, f", {fast:,} fast, {USERS - fast:,} slow", rounds)


# ---------------------------------------------------------------- as fast as they are taken


class _Unlimited(Solowire):
    """Takes as much from one publisher as it can."""

    def __init__(self) -> None:
        super().__init__(settings=NO_PUBLISH_LIMIT)


@benchmark()
def peers_ingest(case: Case, length: Length) -> None:
    """Events as fast as each server takes them, beside other servers.

    Events of {EVENT_BYTES} bytes as fast as a server takes them, {INGEST_BATCH} to a request where it takes several,
    over {WIRES} connections with a request under way on each (one to the replaced pattern), to {INGEST_USERS} users who
    must get all of them; {MOST_PER_SECOND:,} per second at most, since the load has no room for more: who reaches that
    could take more, and `CPU per event` says how much. `events/s` are those acknowledged: by Solowire when they are on
    disk, by Socket.IO and the replaced pattern when they were handed to every socket, by nchan and Centrifugo when they
    are in memory, by NATS when they were read. nchan holds 10,000 messages, as it is set up here: a user who is further
    behind loses some, and its row is void. CPU is that of all processes of a server until all have arrived. Solowire
    runs with {NO_PUBLISH_LIMIT}. `{AHEAD}`: how many times as many events per second it takes.
    """
    servers = find_servers(case, _Unlimited)
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, INGEST_USERS)

        def once(side: Side) -> dict[str, Round]:
            seconds = min(length.seconds, SHORT_S)
            count = int(rates[side.name] * seconds) if side.name in rates else WARM_UP_EVENTS * 2
            one = _ingest_round(side, max(INGEST_BATCH, count - count % INGEST_BATCH))
            rates[side.name] = one.values["events/s"]
            return {side.name: one}

        found = run_rounds(case, sides, once, length.bounded())
    columns = ["events/s", "CPU per event", "request p50", "request p99", "server CPU", "load core"]
    compare_sides(case, found, "events/s", columns, "", length.bounded())


def _ingest_round(side: Side, count: int) -> Round:
    about, keyed = about_of(side.server.addressed)
    seconds = 0.0
    with publishing(side.server, 1 if keyed else WIRES) as publisher:
        shares = publisher.make(count, INGEST_BATCH, about)

        def load() -> tuple[float, list[str]]:
            nonlocal seconds
            start = time.monotonic()
            faults = publisher.flood(shares, MOST_PER_SECOND)
            seconds = time.monotonic() - start
            return 0.0, faults

        deliveries, each = count * INGEST_USERS, 0 if keyed else count
        one = measure(side.server, side.receiver, count, deliveries, each, load, FLOOD_TIMEOUT_S)
        took = percentiles_of(publisher.took)
    one.values |= {"events/s": count / seconds, "request p50": took["p50"], "request p99": took["p99"]}
    return one
