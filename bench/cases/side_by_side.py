"""Solowire beside what a user would take instead, under the same load in the same run."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

from bench import peers
from bench.cases.connections import until_merged
from bench.cases.fanout import AT_ONCE, single_round
from bench.floor import Floor
from bench.load import EVENT_BYTES, About
from bench.machine import SERVER_CORES, BenchError, merging, merging_cpu
from bench.measure import Length, Round, Stream, publishing, row
from bench.receiver import Receiver
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire

AHEAD = "Solowire's over it"
AHEAD_AT_ONCE = "Solowire's, all critical, over it"
AHEAD_MERGED = "Solowire's, same-page merging, over it"
STREAM_USERS = 1000
STREAM_WIRES = 16
"""As many as the receiver can tell apart on a connection: a server is offered more than it has answered."""
MEMORY_USERS = 2000
SETTLE_S = 2.0
OURS_AT_ONCE = "Solowire, all critical"
OURS_MERGED = "Solowire, same-page merging"
REPLACED = peers.Replaced.name
SINGLE_TARGETS = (REPLACED, peers.SocketIo.name, peers.Nchan.name)
"""Fixed, so that a peer that is left out does not take its target along."""


@dataclass
class _Side:
    """One server with its users connected."""

    name: str
    server: Server
    receiver: Receiver


def _connect(stack: ExitStack, case: Case, kinds: Sequence[type[Server]], users: int) -> list[_Side]:
    """All of them at once, each with its users; one that can't take so many is left out with a remark."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    sides = []
    for kind in kinds:
        if users * kind.sockets > most - 500:
            case.remarks.append(
                f"{kind.name} × {users:,} is left out: {kind.sockets} sockets per user are {users * kind.sockets:,} "
                f"in one process, which may have {most:,} open files at most here (`ulimit -Hn`)."
            )
            continue
        with ExitStack() as own:
            try:
                server = own.enter_context(kind())
                receiver = own.enter_context(Receiver(server.style))
                server.connect(receiver, users)
            except (BenchError, OSError) as error:
                _leave_out(case, kind, f"{kind.name} × {users:,}", error)
                continue
            stack.push(own.pop_all())
            sides.append(_Side(kind.name, server, receiver))
    return sides


def _leave_out(case: Case, kind: type[Server], name: str, error: Exception) -> None:
    """A peer that fails is told, with the first and the last of its words; without Solowire there is no comparison."""
    if kind is Solowire:
        raise error
    words = (str(error) or repr(error)).splitlines()
    case.remarks.append(f"{name}: could not run: {' … '.join(dict.fromkeys((words[0], words[-1])))}.")


def _rounds(case: Case, sides: list[_Side], once: Callable[[_Side], dict[str, Round]]) -> dict[str, Round]:
    """One round of each in turn. A side that fails is left out from then on."""
    found: dict[str, Round] = {}
    for side in list(sides):
        try:
            found |= once(side)
        except (BenchError, OSError) as error:
            _leave_out(case, type(side.server), side.name, error)
            sides.remove(side)
    return found


def _kinds(case: Case) -> list[type[Server]]:
    found, left_out = peers.available()
    case.remarks += left_out
    if found:
        case.remarks.append("; ".join(f"**{kind.name}**: {kind.about}" for kind in (Solowire, *found)) + ".")
    return [Solowire, *found]


def compare(
    case: Case, found: dict[str, list[Round]], what: str, columns: list[str], suffix: str, wanted_rounds: int
) -> None:
    """A row for each. Solowire's over it: round by round, since rounds take turns. Too few rounds are a fault."""
    leads = {
        AHEAD: found[Solowire.name],
        AHEAD_AT_ONCE: found.get(OURS_AT_ONCE, []),
        AHEAD_MERGED: found.get(OURS_MERGED, []),
    }
    for name, rounds in found.items():
        for lead, ours in leads.items():
            for our, its in zip(ours, rounds, strict=False):
                its.values[lead] = our.values[what] / max(its.values[what], 1e-9)
        if rounds:
            line = row(f"{name}{suffix}", rounds, [*columns, *leads])
            if len(rounds) < wanted_rounds:
                line.faults.append(f"it failed after {len(rounds)} of {wanted_rounds} rounds")
            case.rows.append(line)


def hold_lead(
    case: Case, name: str, lead: str = AHEAD, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Holds Solowire's lead over one server; a target for which one of the two is missing is told all the same."""
    line = case.row(name)
    if line is not None and lead in line.measures:
        case.hold(line, lead, at_least=at_least, at_most=at_most)
    else:
        wanted = f"≥ {at_least:.2f}" if at_least is not None else f"≤ {at_most:.2f}"
        case.cannot_hold(name, lead, wanted, "left out: its case says why")


# ---------------------------------------------------------------- one event at a time


def peers_single(length: Length) -> Case:
    """One event at a time, beside other servers and the floor."""
    case = Case(
        "peers_single",
        f"One event of {EVENT_BYTES} bytes at a time: the next is published when all have got it. CPU is that of all "
        f"processes of a server, publishing included. `{AHEAD}`: how many times as many deliveries per CPU-second "
        "Solowire does. The floor is the C loop of bare `write()`, which has no publisher, no router and no log; it "
        "sends the frame that Solowire sent, a hundred times a second at most.",
    )
    kinds = _kinds(case)
    columns = ["deliveries per CPU-second", "CPU per frame", "p50", "p99", "bytes per delivery", "load core"]
    for users in (100, 1000) if length.quick else (100, 1000, 5000):
        events = max(length.events * 100 // users, 4)
        found: dict[str, list[Round]] = {}
        with ExitStack() as stack:
            sides = _connect(stack, case, kinds, users)
            floor = stack.enter_context(Floor(users))

            def once(side: _Side, events: int = events, users: int = users) -> dict[str, Round]:
                with contextlib.closing(side.server.wires(1)[0]) as wire:
                    return {side.name: single_round(side.server, side.receiver, wire, events, users)}

            for number in range(length.rounds + 1):
                rounds = _rounds(case, sides, once)
                cost = floor.run(sides[0].receiver.last_frame(), events, 100.0)
                rounds["the floor"] = Round({"CPU per frame": cost * 1e6, "deliveries per CPU-second": 1 / cost})
                for name, one in rounds.items():
                    found.setdefault(name, []).extend([one] if number else [])  # the first warms up
        compare(case, found, "deliveries per CPU-second", columns, f" × {users:,}", length.rounds)
        for name in SINGLE_TARGETS:
            hold_lead(case, f"{name} × {users:,}", at_least=1.0)
    return case


# ---------------------------------------------------------------- by the clock


def peers_stream(length: Length) -> Case:
    """Events by the clock, beside other servers."""
    users = STREAM_USERS
    case = Case(
        "peers_stream",
        f"{users:,} users, events of {EVENT_BYTES} bytes at a steady rate, ten per request where a server takes "
        "several. Solowire gathers events of normal priority for up to 100 ms, which its latency shows; in the second "
        "row every event is critical, and none is held back, as the others hold none: see the last column. There are "
        f"{STREAM_WIRES} connections to publish on, with a request under way on each; to the replaced pattern one, "
        "since the order of its events is checked over all of them. A server that can't keep up lets its publisher "
        "wait, which is not the publisher's fault, and is given as many events as it can do in the time of a round.",
    )
    kinds = _kinds(case)
    columns = ["events/s", "deliveries per CPU-second", "p50", "p99", "max", "frames per event", "bytes per delivery"]
    with ExitStack() as stack:
        sides = _connect(stack, case, kinds, users)
        for per_second in (100, 1000):
            found: dict[str, list[Round]] = {}
            rates: dict[str, float] = {}

            def once(side: _Side, per_second: int = per_second, rates: dict[str, float] = rates) -> dict[str, Round]:
                runs: dict[str, Callable[[int], About | None]] = {side.name: side.server.addressed}
                if side.name == Solowire.name:
                    runs[OURS_AT_ONCE] = lambda _: AT_ONCE
                return {
                    name: _stream_round(side, addressed, per_second, length.seconds, rates.get(name))
                    for name, addressed in runs.items()
                }

            for number in range(length.rounds + 1):
                for name, one in _rounds(case, sides, once).items():
                    if number:
                        found.setdefault(name, []).append(one)
                    else:
                        rates[name] = len(SERVER_CORES) * 1e6 / one.values["CPU per event"]
            suffix = f" × {users:,}, {per_second:,} events/s"
            shares = ["server CPU", "load core"]
            compare(case, found, "deliveries per CPU-second", [*columns, *shares], suffix, length.rounds)
    for peer in peers.PEERS:
        hold_lead(case, f"{peer.name}{suffix}", at_least=20.0 if peer.name == REPLACED else 2.0)
    return case


def _stream_round(
    side: _Side, addressed: Callable[[int], About | None], per_second: int, seconds: float, rate: float | None
) -> Round:
    """rate: None for the warm-up, by whose CPU time it is known how many events a second the server can do at most."""
    first = addressed(0)
    keyed = first is not None and first.key is not None
    batch = 10 if per_second >= 1000 else 1
    about = None if first is None else cast(Callable[[int], About], addressed)
    each = (lambda _: 0) if keyed else (lambda events: events)
    load = Stream(per_second, batch, STREAM_USERS, each, about)
    with publishing(side.server, 1 if keyed else STREAM_WIRES) as publisher:
        if rate is None:
            return load.events(side.server, side.receiver, publisher, 100)
        slower = rate if rate < per_second else 0.0
        return load.run(side.server, side.receiver, publisher, seconds, slower)


# ---------------------------------------------------------------- memory


class _Merged(Solowire):
    """Asks the host to merge pages that are the same, and is measured while the host does."""

    name = OURS_MERGED

    def __init__(self) -> None:
        super().__init__(settings={"MERGE_MEMORY": "true"})


def peers_memory(length: Length) -> Case:
    """Memory of idle users, beside other servers; Solowire's also with same-page merging."""
    users = MEMORY_USERS // 4 if length.quick else MEMORY_USERS
    case = Case(
        "peers_memory",
        f"What {users:,} users who only listen add to the memory of all processes of a server (`smaps_rollup`), after "
        "the first ten. A user of the replaced pattern has five sockets. What the kernel holds for sockets is not in "
        f"it. In the row `{OURS_MERGED}` the shard runs with `SOLOWIRE_MERGE_MEMORY=true` and the host's merging is "
        "on, at the eager pace of `idle`, where it is also shown what heartbeats make of that; memory is read when it "
        "has been through three times, and `ksmd, s` is the CPU time of its thread in between. No other server asks "
        f"for it. `{AHEAD}`: how many times as much Solowire takes. Each round has servers of its own.",
    )
    kinds = _kinds(case)
    kinds.insert(1, _Merged)
    rounds = 1 if length.quick else 3
    found: dict[str, list[Round]] = {}
    for _ in range(rounds):
        for kind in list(kinds):
            try:
                with merging() if kind is _Merged else contextlib.nullcontext():
                    found.setdefault(kind.name, []).append(_memory(kind, users))
            except (BenchError, OSError) as error:
                _leave_out(case, kind, kind.name, error)
                kinds.remove(kind)
    columns = ["PSS per user", "RSS per user", "PSS before, MB", "PSS, MB", "merged, MB", "ksmd, s"]
    compare(case, found, "PSS per user", columns, "", rounds)
    for lead in (AHEAD, AHEAD_MERGED):
        hold_lead(case, REPLACED, lead, at_most=1 / 3)
    return case


def _memory(kind: type[Server], users: int) -> Round:
    merged = kind is _Merged
    with kind() as server, Receiver(server.style) as receiver:
        server.connect(receiver, 10)
        time.sleep(SETTLE_S)
        faults = until_merged() if merged else []
        before, ksmd = server.memory(), merging_cpu()
        server.connect(receiver, users, first=10)
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
