"""Solowire beside what a user would take instead: what users cost when they come, when they stay, and in memory."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack

from bench.cases.connections import BEFORE_S, IDLE_S, until_merged
from bench.cases.sides import (
    AHEAD,
    AHEAD_MERGED,
    OURS_MERGED,
    REPLACED,
    Side,
    compare,
    connect,
    hold_lead,
    in_turn,
    kinds_of,
    leave_out,
    rounds_in_turn,
    rounds_of,
)
from bench.machine import BenchError, merging, merging_cpu
from bench.measure import Length, Round, Spent
from bench.receiver import Receiver, histogram, percentiles
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire

STORM_USERS, IDLE_USERS, MEMORY_USERS = 1000, 2000, 2000
FIRST_USERS = 10
"""What the first of them bring is not theirs."""
SETTLE_S = 2.0
FIRST_ASKED_S = 3.0
"""NATS asks a client for the first time after some 2 s."""
GONE_S = 1.0
QUICK_IDLE_S = 5.0


# ---------------------------------------------------------------- coming


def peers_storm(length: Length) -> Case:
    """Many users come at once, beside other servers."""
    users, rounds = STORM_USERS // 5 if length.quick else STORM_USERS, rounds_of(length)
    case = Case(
        "peers_storm",
        f"{users:,} users come at once, 64 handshakes under way at a time; then all are cut off, and come again. A "
        "user of Solowire is verified twice: it asks `POST /v1/connect` with a signed token for a ticket, over 8 kept "
        "connections, and opens its WebSocket with that. Tickets are in its users per second and in its CPU. Nobody "
        "has to show anything to the others, as they are set up here. CPU is that of all processes of a server until "
        "all users are there, with all their sockets; p50 and p99 are from `connect()` of a socket until it is there: "
        "subscribed, where the server says so, else upgraded. A server that takes users faster than the load's core "
        "can bring them, as nchan may, has a void row. "
        f"`{AHEAD}`: how many times as much CPU a user costs Solowire.",
    )
    kinds = kinds_of(case)
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, users, now=0)

        def once(side: Side) -> dict[str, Round]:
            side.receiver.reset()
            spent = Spent(side.server, side.receiver)
            opened = side.server.connect(side.receiver, users)
            spent.stop()
            faults = spent.faults() + side.receiver.counts().faults
            side.receiver.close_all()
            time.sleep(GONE_S)
            values = {
                "users/s": users / spent.seconds,
                "CPU per user": spent.total / users * 1e6,
                **percentiles(histogram([pair for part in opened for pair in part.latency_us])),
                "sockets per user": float(side.server.sockets),
                **spent.shares(),
            }
            return {side.name: Round(values, faults)}

        found = rounds_in_turn(case, sides, once, rounds)
    columns = ["users/s", "CPU per user", "p50", "p99", "sockets per user", "server CPU", "load core"]
    compare(case, found, "CPU per user", columns, f" × {users:,}", rounds)
    return case


# ---------------------------------------------------------------- staying


def peers_idle(length: Length) -> Case:
    """CPU of idle users, beside other servers."""
    users, seconds = (300, QUICK_IDLE_S) if length.quick else (IDLE_USERS, IDLE_S)
    case = Case(
        "peers_idle",
        f"{users:,} users who only listen, on each server, all servers up and looked at in the same {seconds:g} s. CPU "
        "is that of all processes of a server, in percent of a core; `CPU of users` is that less what it took before "
        f"they came, when there were {FIRST_USERS}. Each server asks whether its users are still there as often as it "
        "usually does: Solowire, Socket.IO and Centrifugo every 25 s by a message, nchan every 25 s (as configured "
        "here; it has no interval of its own) and uvicorn every 20 s on each of five sockets by a ping of the "
        "WebSocket protocol, NATS every two minutes by a message. `heartbeats per user` are those that came in that "
        "time; all are answered. One round.",
    )
    kinds = kinds_of(case)
    found: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        sides = connect(stack, case, kinds, users + FIRST_USERS, now=FIRST_USERS)
        time.sleep(FIRST_ASKED_S)
        before = _idle(sides, min(seconds, BEFORE_S))

        def come(side: Side) -> dict[str, Round]:
            side.server.connect(side.receiver, users, FIRST_USERS)
            return {}

        in_turn(case, sides, come)
        time.sleep(FIRST_ASKED_S)
        for name, one in _idle(sides, seconds).items():
            one.values["CPU of users, %"] = one.values["CPU while idle, %"] - before[name].values["CPU while idle, %"]
            found[name] = [one]
    columns = ["CPU of users, %", "CPU while idle, %", "heartbeats per user", "load core"]
    compare(case, found, "", columns, f" × {users:,}", 1)
    return case


def _idle(sides: list[Side], seconds: float) -> dict[str, Round]:
    """All of them in the same time."""
    expected = {side.name: side.receiver.counts().connections for side in sides}
    for side in sides:
        side.receiver.reset()
    spent = {side.name: Spent(side.server, side.receiver) for side in sides}
    time.sleep(seconds)
    found = {}
    for side in sides:
        took = spent[side.name]
        took.stop()
        counts = side.receiver.counts()
        faults = took.faults() + counts.faults
        if counts.connections != expected[side.name]:
            faults.append(f"{counts.connections} of {expected[side.name]} connections were there at the end")
        values = {
            "CPU while idle, %": took.total / took.seconds * 100,
            "heartbeats per user": counts.pings / (expected[side.name] / side.server.sockets),
            **took.shares(),
        }
        found[side.name] = Round(values, faults)
    return found


# ---------------------------------------------------------------- memory


class _Merged(Solowire):
    """Asks the host to merge pages that are the same, and is measured while the host does."""

    name = OURS_MERGED

    def __init__(self) -> None:
        super().__init__(settings={"SHARD__MERGE_MEMORY": "true"})


def peers_memory(length: Length) -> Case:
    """Memory of idle users, beside other servers; Solowire's also with same-page merging."""
    users = MEMORY_USERS // 4 if length.quick else MEMORY_USERS
    case = Case(
        "peers_memory",
        f"What {users:,} users who only listen add to the memory of all processes of a server (`smaps_rollup`), after "
        "the first ten. A user of the replaced pattern has five sockets. What the kernel holds for sockets is not in "
        f"it. In the row `{OURS_MERGED}` the shard runs with `SOLOWIRE_SHARD__MERGE_MEMORY=true` and the host's "
        "merging is on, at the eager pace of `idle`, where it is also shown what heartbeats make "
        "of that; memory is read "
        "when it has been through three times, and `ksmd, s` is the CPU time of its thread in "
        "between. No other server asks "
        f"for it. `{AHEAD}`: how many times as much Solowire takes. Each round has servers of its own.",
    )
    kinds = kinds_of(case)
    kinds.insert(1, _Merged)
    rounds = 1 if length.quick else 3
    found: dict[str, list[Round]] = {}
    for _ in range(rounds):
        for kind in list(kinds):
            try:
                with merging() if kind is _Merged else contextlib.nullcontext():
                    found.setdefault(kind.name, []).append(_memory(kind, users))
            except (BenchError, OSError) as error:
                leave_out(case, kind, kind.name, error)
                kinds.remove(kind)
    columns = ["PSS per user", "RSS per user", "PSS before, MB", "PSS, MB", "merged, MB", "ksmd, s"]
    compare(case, found, "PSS per user", columns, "", rounds)
    for lead in (AHEAD, AHEAD_MERGED):
        hold_lead(case, REPLACED, lead=lead, at_most=1 / 3)
    return case


def _memory(kind: type[Server], users: int) -> Round:
    merged = kind is _Merged
    with kind() as server, Receiver(server.style) as receiver:
        server.connect(receiver, FIRST_USERS)
        time.sleep(SETTLE_S)
        faults = until_merged() if merged else []
        before, ksmd = server.memory(), merging_cpu()
        server.connect(receiver, users, first=FIRST_USERS)
        time.sleep(SETTLE_S)
        if merged:
            faults += until_merged()
        after, ksmd_after = server.memory(), merging_cpu()
        faults += receiver.counts().faults
    values = {
        "PSS per user": (after.pss - before.pss) / users / 1000,
        "RSS per user": (after.rss - before.rss) / users / 1000,
        "PSS before, MB": before.pss / 1e6,
        "PSS, MB": after.pss / 1e6,
    }
    if merged:
        values |= {"merged, MB": after.merged / 1e6, "ksmd, s": ksmd_after - ksmd}
        if after.merged == before.merged:
            faults.append("same-page merging has merged nothing of the users' memory")
    return Round(values, faults)
