"""Solowire beside what a user would take instead, under the same load in the same run: events.

What users cost is in `side_by_side_users`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

from bench import peers
from bench.cases.fanout import AT_ONCE, single_round
from bench.cases.ingest import NO_LIMIT
from bench.cases.sides import (
    AHEAD,
    OURS_AT_ONCE,
    REPLACED,
    Side,
    compare,
    connect,
    hold_lead,
    in_turn,
    kinds_of,
    rounds_in_turn,
    rounds_of,
)
from bench.floor import Floor
from bench.load import EVENT_BYTES, About
from bench.machine import SERVER_CORES
from bench.measure import SHORTEST_S, Length, Round, Stream, measure, publishing
from bench.receiver import histogram, percentiles
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire

USERS = 1000
WIRES = 16
"""As many as the receiver can tell apart on a connection: a server is offered more than it has answered."""
TARGET_RATE = 1000
MOST_PER_SECOND = 200_000
"""So that the core of publisher and receivers has room."""
WARM_UP_EVENTS = 100
FLOOD_TIMEOUT_S = 5.0
"""For what was acknowledged to arrive."""
LEAST_EVENTS = 20
SHORT_S = 2.0
"""Of rounds of all servers, where there is much else to do between them."""
GONE_S = 1.0
ROUND_S = 2 * SHORTEST_S
"""Long enough for the kernel to say how busy the load's core was."""
SINGLE_TARGETS = (REPLACED, peers.SocketIo.name, peers.Nchan.name)
"""Fixed, so that a peer that is left out does not take its target along."""


# ---------------------------------------------------------------- one event at a time


def peers_single(length: Length) -> Case:
    """One event at a time, beside other servers and the floor."""
    case = Case(
        "peers_single",
        f"One event of {EVENT_BYTES} bytes at a time: the next is published when all have got it. CPU is that of all "
        f"processes of a server, publishing included. `{AHEAD}`: how many times as many deliveries per CPU-second "
        f"Solowire does. A round is {LEAST_EVENTS} events at least, and as many as a server does in {ROUND_S:g} s. The "
        "floor is the C loop of bare `write()`, which has no publisher, no router and no log; it sends the frame that "
        "Solowire sent, a hundred times a second at most.",
    )
    kinds = kinds_of(case)
    columns = ["deliveries per CPU-second", "CPU per frame", "p50", "p99", "bytes per delivery", "load core"]
    for users in (100, 1000) if length.quick else (100, 1000, 5000):
        events = max(length.events * 100 // users, LEAST_EVENTS)
        rates: dict[str, float] = {}
        found: dict[str, list[Round]] = {}
        with ExitStack() as stack:
            sides = connect(stack, case, kinds, users)
            floor = stack.enter_context(Floor(users))

            def once(
                side: Side, events: int = events, users: int = users, rates: dict[str, float] = rates
            ) -> dict[str, Round]:
                count = max(events, int(rates.get(side.name, 0.0) * ROUND_S))
                with contextlib.closing(side.server.wires(1)[0]) as wire:
                    one = single_round(side.server, side.receiver, wire, count, users)
                rates[side.name] = one.values["events/s"]
                return {side.name: one}

            for number in range(length.rounds + 1):
                rounds = in_turn(case, sides, once)
                cost = floor.run(sides[0].receiver.last_frame(), events, 100.0)
                rounds["the floor"] = Round({"CPU per frame": cost * 1e6, "deliveries per CPU-second": 1 / cost})
                for name, one in rounds.items():
                    found.setdefault(name, []).extend([one] if number else [])  # the first warms up
        compare(case, found, "deliveries per CPU-second", columns, f" × {users:,}", length.rounds)
        for name in SINGLE_TARGETS:
            hold_lead(case, name, f" × {users:,}", at_least=1.0)
    return case


# ---------------------------------------------------------------- by the clock


def peers_stream(length: Length) -> Case:
    """Events by the clock, beside other servers."""
    users = USERS
    case = Case(
        "peers_stream",
        f"{users:,} users, events of {EVENT_BYTES} bytes at a steady rate, at 1,000 per second ten and at 5,000 fifty "
        "to a request where a server takes several. Solowire gathers events of normal priority for up to 100 ms, which "
        "its latency shows; in the second "
        "row every event is critical, and none is held back, as the others hold none: see the last column. There are "
        f"{WIRES} connections to publish on, with a request under way on each; to the replaced pattern one, "
        "since the order of its events is checked over all of them. A server that can't keep up lets its publisher "
        "wait, which is not the publisher's fault, and is given as many events as it can do in the time of a round.",
    )
    kinds = kinds_of(case)
    columns = ["events/s", "deliveries per CPU-second", "p50", "p99", "max", "frames per event", "bytes per delivery"]
    columns += ["server CPU", "load core"]
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, users)
        for per_second in (100, TARGET_RATE, 5000):

            def once(side: Side, per_second: int = per_second) -> dict[str, Round]:
                runs: dict[str, Callable[[int], About | None]] = {side.name: side.server.addressed}
                if side.name == Solowire.name:
                    runs[OURS_AT_ONCE] = lambda _: AT_ONCE
                return {
                    name: _stream_round(side, name, addressed, per_second, users, length.seconds, rates)
                    for name, addressed in runs.items()
                }

            rounds = length.rounds if per_second <= TARGET_RATE else rounds_of(length)
            found = rounds_in_turn(case, sides, once, rounds)
            compare(case, found, "deliveries per CPU-second", columns, _at(users, per_second), rounds)
    for peer in peers.PEERS:
        least = 20.0 if peer.name == REPLACED else 2.0
        hold_lead(case, peer.name, _at(users, TARGET_RATE), at_least=least)
    return case


def _at(users: int, per_second: int) -> str:
    return f" × {users:,}, {per_second:,} events/s"


def _stream_round(
    side: Side,
    name: str,
    addressed: Callable[[int], About | None],
    per_second: int,
    to: int,
    seconds: float,
    rates: dict[str, float],
) -> Round:
    """rates: by row how many events a second the server can do at most, by the CPU time of the round before."""
    first = addressed(0)
    keyed = first is not None and first.key is not None
    about = None if first is None else cast(Callable[[int], About], addressed)
    each = (lambda _: 0) if keyed else (lambda events: events)
    load = Stream(per_second, max(1, per_second // 100), to, each, about)
    with publishing(side.server, 1 if keyed else WIRES) as publisher:
        if name in rates:
            slower = rates[name] if rates[name] < per_second else 0.0
            one = load.run(side.server, side.receiver, publisher, seconds, slower)
        else:
            one = load.events(side.server, side.receiver, publisher, WARM_UP_EVENTS)
    rates[name] = len(SERVER_CORES) * 1e6 / one.values["CPU per event"]
    return one


def peers_users(length: Length) -> Case:
    """A thousand users, each with events of its own, beside other servers."""
    rounds = rounds_of(length)
    case = Case(
        "peers_users",
        f"{USERS:,} users, {TARGET_RATE:,} events of {EVENT_BYTES} bytes per second, each for one user alone, ten to a "
        "request where a server takes several, over one connection, since the order of a user's events is checked. "
        "With Solowire an event names its user; with Socket.IO each has a room, with nchan and Centrifugo a channel, "
        "with NATS a subject, and in the replaced pattern an entry in a dictionary. Nothing can be shared: every "
        "delivery is a frame. Solowire gathers events for up to 100 ms. "
        f"`{AHEAD}`: how many times as much CPU an event costs Solowire.",
    )
    kinds = [_own(kind) for kind in kinds_of(case)]
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, USERS)

        def once(side: Side) -> dict[str, Round]:
            def addressed(n: int) -> About:
                return side.server.addressed_to(n % USERS)

            seconds = min(length.seconds, SHORT_S)
            return {side.name: _stream_round(side, side.name, addressed, TARGET_RATE, 1, seconds, rates)}

        found = rounds_in_turn(case, sides, once, rounds)
    columns = ["events/s", "CPU per event", "p50", "p99", "frames per event", "bytes per delivery"]
    columns += ["server CPU", "load core"]
    compare(case, found, "CPU per event", columns, f" × {USERS:,}", rounds)
    return case


def _own(kind: type[Server]) -> type[Server]:
    return type(kind.__name__, (kind,), {"own": True})


# ---------------------------------------------------------------- slow readers


def peers_slow(length: Length) -> Case:
    """A fifth of the readers is slow, beside other servers."""
    share, bytes_per_s, slow_ones = 5, 20_000.0, "slow ones cut off"
    fast, rounds = USERS - USERS // share, min(length.rounds, 2)
    seconds = 2 * length.seconds  # so that there is more than a server may hold for one who reads slowly
    case = Case(
        "peers_slow",
        f"{USERS:,} users, {TARGET_RATE:,} events of {EVENT_BYTES} bytes per second, ten to a request where a server "
        f"takes several, and every {share}th user reads only {bytes_per_s / 1000:.0f} KB/s on each connection, with a "
        "receive buffer of 16 KB. Only what the others get is counted. A server that can't keep up is given as many "
        "events as it can do in the time of a round, which its slow readers may follow after all. `PSS growth` is that "
        f"of all processes in a round of {seconds:g} s; what the kernel holds is not in it. "
        "Solowire keeps nothing for such a reader: it reads on from the log when it can, and is told and cut off when "
        "the log has that no more; what grows is the log, with or without slow readers (see `slow`). The replaced "
        "pattern waits for it with everybody else. Socket.IO keeps all that it has yet to get, and cuts it off when it "
        "has not answered a ping for 20 s. nchan leaves it in its shared memory, and cuts it off when nothing could be "
        "written for 60 s. NATS cuts it off at 64 MB, or when a write has waited for 10 s; Centrifugo at 1 MB. All "
        "users come anew for each round, and leave after it, so that none has to catch up in another server's.",
    )
    kinds = kinds_of(case)
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, USERS, now=0, slow_bytes_per_s=bytes_per_s)

        def once(side: Side) -> dict[str, Round]:
            server, receiver = side.server, side.receiver
            server.connect(receiver, USERS, slow=lambda n: n % share == 0)
            before = server.memory().pss
            one = _stream_round(side, side.name, server.addressed, TARGET_RATE, fast, seconds, rates)
            one.values["PSS growth, MB"] = (server.memory().pss - before) / 1e6
            one.values[slow_ones] = float(USERS - fast - receiver.counts().slow // server.sockets)
            receiver.close_all()
            time.sleep(GONE_S)
            return {side.name: one}

        found = rounds_in_turn(case, sides, once, rounds)
    columns = ["events/s", "deliveries per CPU-second", "p50", "p99", slow_ones, "PSS growth, MB"]
    columns += ["server CPU", "load core"]
    compare(case, found, "deliveries per CPU-second", columns, f", {fast:,} fast, {USERS - fast:,} slow", rounds)
    return case


# ---------------------------------------------------------------- as fast as they are taken


class _Unlimited(Solowire):
    """Takes as much from one publisher as it can."""

    def __init__(self) -> None:
        super().__init__(settings=NO_LIMIT)


def peers_ingest(length: Length) -> Case:
    """Events as fast as each server takes them, beside other servers."""
    users, batch, rounds = 5, 10, rounds_of(length)
    case = Case(
        "peers_ingest",
        f"Events of {EVENT_BYTES} bytes as fast as a server takes them, {batch} to a request where it takes several, "
        f"over {WIRES} connections with a request under way on each (one to the replaced pattern), to {users} users "
        f"who must get all of them; {MOST_PER_SECOND:,} per second at most, since the load has no room for more: who "
        "reaches that could take more, and `CPU per event` says how much. `events/s` are those acknowledged: by "
        "Solowire when they are on disk, by Socket.IO and the replaced pattern when they were handed to every socket, "
        "by nchan and Centrifugo when they are in memory, by NATS when they were read. nchan holds 10,000 messages, as "
        "it is set up here: a user who is further behind loses some, and its row is void. CPU is that of all processes "
        "of a server until all have arrived. Solowire runs with "
        f"{' and '.join(f'`SOLOWIRE_{name}={value}`' for name, value in NO_LIMIT.items())}. "
        f"`{AHEAD}`: how many times as many events per second it takes.",
    )
    kinds = kinds_of(case, _Unlimited)
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, users)

        def once(side: Side) -> dict[str, Round]:
            seconds = min(length.seconds, SHORT_S)
            count = int(rates[side.name] * seconds) if side.name in rates else WARM_UP_EVENTS * 2
            count = max(batch, count - count % batch)
            one = _ingest_round(side, count, batch, users)
            rates[side.name] = one.values["events/s"]
            return {side.name: one}

        found = rounds_in_turn(case, sides, once, rounds)
    columns = ["events/s", "CPU per event", "request p50", "request p99", "server CPU", "load core"]
    compare(case, found, "events/s", columns, "", rounds)
    return case


def _ingest_round(side: Side, count: int, batch: int, users: int) -> Round:
    addressed = side.server.addressed(0)
    about = None if addressed is None else cast(Callable[[int], About], side.server.addressed)
    keyed = addressed is not None and addressed.key is not None
    seconds = 0.0
    with publishing(side.server, 1 if keyed else WIRES) as publisher:
        shares = publisher.made(count, batch, about)

        def load() -> tuple[float, list[str]]:
            nonlocal seconds
            start = time.monotonic()
            faults = publisher.flood(shares, MOST_PER_SECOND)
            seconds = time.monotonic() - start
            return 0.0, faults

        one = measure(side.server, side.receiver, count, count * users, 0 if keyed else count, load, FLOOD_TIMEOUT_S)
        took = percentiles(histogram([(int(s * 1e6), 1) for s in publisher.took]))
    one.values |= {"events/s": count / seconds, "request p50": took["p50"], "request p99": took["p99"]}
    return one
