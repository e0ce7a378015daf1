"""Solowire beside what a user would take instead: what users cost when they come, when they stay, and in memory."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack

from bench.cases.connections import BEFORE_S, FIRST_USERS, IDLE_S
from bench.comparison import (
    AHEAD_MERGED,
    OURS_MERGED,
    REPLACED,
    Side,
    compare_sides,
    connect_sides,
    find_servers,
    hold_lead,
    leave_out,
    run_in_turn,
    run_rounds,
)
from bench.machine import BenchError, merging, merging_cpu, wait_until_merged
from bench.measure import Round, Usage
from bench.receiver import Receiver, make_histogram, percentiles
from bench.registry import AHEAD, Length, benchmark
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire

STORM_USERS, IDLE_USERS, MEMORY_USERS = 1000, 2000, 2000
SETTLE_S = 2.0
FIRST_ASKED_S = 3.0
"""NATS asks a client for the first time after some 2 s."""
GONE_S = 1.0
QUICK_IDLE_S = 5.0
MEMORY_ROUNDS = 3


@benchmark()
def peers_storm(case: Case, length: Length) -> None:
    """Many users come at once, beside other servers.

    {STORM_USERS:,} users come at once, 64 handshakes under way at a time; then all are cut off, and come again. A user
    of Solowire is verified twice: it asks `POST /v1/connect` with a signed token for a ticket, over 8 kept connections,
    and opens its WebSocket with that. Tickets are in its users per second and in its CPU. Nobody has to show anything
    to the others, as they are set up here. CPU is that of all processes of a server until all users are there, with all
    their sockets; p50 and p99 are from `connect()` of a socket until it is there: subscribed, where the server says so,
    else upgraded. A server that takes users faster than the load's core can bring them, as nchan may, has a void row.
    `{AHEAD}`: how many times as much CPU a user costs Solowire.
    """
    users = STORM_USERS // 5 if length.is_quick else STORM_USERS
    servers = find_servers(case)
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, users, now=0)

        def once(side: Side) -> dict[str, Round]:
            side.receiver.reset()
            usage = Usage(side.server, side.receiver)
            opened = side.server.connect(side.receiver, users)
            usage.stop()
            faults = usage.faults() + side.receiver.counts().faults
            side.receiver.close_all()
            time.sleep(GONE_S)
            values = {
                "users/s": users / usage.seconds,
                "CPU per user": usage.total / users * 1e6,
                **percentiles(make_histogram(pair for part in opened for pair in part.latency_us)),
                "sockets per user": float(side.server.sockets),
                **usage.shares(),
            }
            return {side.name: Round(values, faults)}

        found = run_rounds(case, sides, once, length.bounded())
    columns = ["users/s", "CPU per user", "p50", "p99", "sockets per user", "server CPU", "load core"]
    compare_sides(case, found, "CPU per user", columns, f" × {users:,}", length.bounded())


@benchmark()
def peers_idle(case: Case, length: Length) -> None:
    """CPU of idle users, beside other servers.

    {IDLE_USERS:,} users who only listen, on each server, all servers up and looked at in the same {IDLE_S:g} s (quick:
    {QUICK_IDLE_S:g} s). CPU is that of all processes of a server, in percent of a core; `CPU of users` is that less
    what it took before they came, when there were {FIRST_USERS}. Each server asks whether its users are still there as
    often as it usually does: Solowire, Socket.IO and Centrifugo every 25 s by a message, nchan every 25 s (as
    configured here; it has no interval of its own) and uvicorn every 20 s on each of five sockets by a ping of the
    WebSocket protocol, NATS every two minutes by a message. `heartbeats per user` are those that came in that time; all
    are answered. One round.
    """
    users, seconds = (300, QUICK_IDLE_S) if length.is_quick else (IDLE_USERS, IDLE_S)
    servers = find_servers(case)
    found: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        sides = connect_sides(stack, case, servers, users + FIRST_USERS, now=FIRST_USERS)
        time.sleep(FIRST_ASKED_S)
        before = _idle_rounds(sides, min(seconds, BEFORE_S))

        def come(side: Side) -> dict[str, Round]:
            side.server.connect(side.receiver, users, FIRST_USERS)
            return {}

        run_in_turn(case, sides, come)
        time.sleep(FIRST_ASKED_S)
        for name, one in _idle_rounds(sides, seconds).items():
            one.values["CPU of users, %"] = one.values["CPU while idle, %"] - before[name].values["CPU while idle, %"]
            found[name] = [one]
    columns = ["CPU of users, %", "CPU while idle, %", "heartbeats per user", "load core"]
    compare_sides(case, found, "", columns, f" × {users:,}", 1)


def _idle_rounds(sides: list[Side], seconds: float) -> dict[str, Round]:
    """All of them in the same time."""
    expected = {side.name: side.receiver.counts().connections for side in sides}
    for side in sides:
        side.receiver.reset()
    usages = {side.name: Usage(side.server, side.receiver) for side in sides}
    time.sleep(seconds)
    found = {}
    for side in sides:
        usage = usages[side.name]
        usage.stop()
        counts = side.receiver.counts()
        faults = usage.faults() + counts.faults
        if counts.connections != expected[side.name]:
            faults.append(f"{counts.connections} of {expected[side.name]} connections were there at the end")
        values = {
            "CPU while idle, %": usage.total / usage.seconds * 100,
            "heartbeats per user": counts.pings / (expected[side.name] / side.server.sockets),
            **usage.shares(),
        }
        found[side.name] = Round(values, faults)
    return found


# ---------------------------------------------------------------- memory


class _Merged(Solowire):
    """Asks the host to merge pages that are the same, and is measured while the host does."""

    name = OURS_MERGED

    def __init__(self) -> None:
        super().__init__(settings={"SHARD__MERGE_MEMORY": "true"})


@benchmark()
def peers_memory(case: Case, length: Length) -> None:
    """Memory of idle users, beside other servers; Solowire's also with same-page merging.

    What {MEMORY_USERS:,} users who only listen add to the memory of all processes of a server (`smaps_rollup`), after
    the first ten. A user of the replaced pattern has five sockets. What the kernel holds for sockets is not in it. In
    the row `{OURS_MERGED}` the shard runs with `SOLOWIRE_SHARD__MERGE_MEMORY=true` and the host's merging is on, at the
    eager pace of `idle`, where it is also shown what heartbeats make of that; memory is read when it has been through
    three times, and `ksmd, s` is the CPU time of its thread in between. No other server asks for it. `{AHEAD}`: how
    many times as much Solowire takes. Each round has servers of its own.
    """
    users = MEMORY_USERS // 4 if length.is_quick else MEMORY_USERS
    ours, *others = find_servers(case)
    servers: list[type[Server]] = [ours, _Merged, *others]
    rounds = 1 if length.is_quick else MEMORY_ROUNDS
    found: dict[str, list[Round]] = {}
    for _ in range(rounds):
        for server in list(servers):
            try:
                with merging() if server is _Merged else contextlib.nullcontext():
                    found.setdefault(server.name, []).append(_memory_round(server, users))
            except (BenchError, OSError) as error:
                leave_out(case, server, server.name, error)
                servers.remove(server)
    columns = ["PSS per user", "RSS per user", "PSS before, MB", "PSS, MB", "merged, MB", "ksmd, s"]
    compare_sides(case, found, "PSS per user", columns, "", rounds)
    for lead in (AHEAD, AHEAD_MERGED):
        hold_lead(case, REPLACED, lead=lead, at_most=1 / 3)


def _memory_round(kind: type[Server], users: int) -> Round:
    is_merged = kind is _Merged
    with kind() as server, Receiver(server.style) as receiver:
        server.connect(receiver, FIRST_USERS)
        time.sleep(SETTLE_S)
        faults = wait_until_merged() if is_merged else []
        before, ksmd = server.memory(), merging_cpu()
        server.connect(receiver, users, first=FIRST_USERS)
        time.sleep(SETTLE_S)
        if is_merged:
            faults += wait_until_merged()
        after, ksmd_after = server.memory(), merging_cpu()
        faults += receiver.counts().faults
    values = {
        "PSS per user": (after.pss - before.pss) / users / 1000,
        "RSS per user": (after.rss - before.rss) / users / 1000,
        "PSS before, MB": before.pss / 1e6,
        "PSS, MB": after.pss / 1e6,
    }
    if is_merged:
        values |= {"merged, MB": after.merged / 1e6, "ksmd, s": ksmd_after - ksmd}
        if after.merged == before.merged:
            faults.append("same-page merging has merged nothing of the users' memory")
    return Round(values, faults)
