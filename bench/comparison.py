"""Several servers side by side: all up at once, each with its users, rounds in turn, and how far Solowire is ahead.

A peer that fails is told and left out from then on; without Solowire there is no comparison.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

from bench import peers
from bench.machine import SERVER_CORES, BenchError
from bench.measure import Round, Stream, make_row, publishing
from bench.peers.replaced import Replaced
from bench.publisher import About, AboutFunction
from bench.receiver import Receiver
from bench.registry import AHEAD
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire

OURS_AT_ONCE = "Solowire, all critical"
OURS_MERGED = "Solowire, same-page merging"
AHEAD_AT_ONCE = "Solowire's, all critical, over it"
AHEAD_MERGED = "Solowire's, same-page merging, over it"
LEADS = {AHEAD: Solowire.name, AHEAD_AT_ONCE: OURS_AT_ONCE, AHEAD_MERGED: OURS_MERGED}
"""Each column with the row of ours that it is about."""
REPLACED = Replaced.name
WIRES = 16
"""As many as the receiver can tell apart on a connection: a server is offered more than it has answered."""
WARM_UP_EVENTS = 100


@dataclass
class Side:
    """One server with its users connected."""

    name: str
    server: Server
    receiver: Receiver


def find_servers(case: Case, ours: type[Server] = Solowire) -> list[type[Server]]:
    """Solowire and the peers that are to be had here; the others are remarks, as is how each is set up."""
    found, left_out = peers.available()
    case.remarks += left_out
    if found:
        case.remarks.append("; ".join(f"**{kind.name}**: {kind.about}" for kind in (ours, *found)) + ".")
    return [ours, *found]


def connect_sides(
    stack: ExitStack,
    case: Case,
    kinds: Sequence[type[Server]],
    users: int,
    *,
    now: int | None = None,
    slow_bytes_per_s: float = 0.0,
) -> list[Side]:
    """All of them at once, each with its users; one that can't take so many is left out with a remark.

    now: how many of them come at once, if not all. slow_bytes_per_s: how fast those that are slow read.
    """
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
                receiver = own.enter_context(Receiver(server.style, slow_bytes_per_s))
                server.connect(receiver, users if now is None else now)
            except (BenchError, OSError) as error:
                leave_out(case, kind, f"{kind.name} × {users:,}", error)
                continue
            stack.push(own.pop_all())
            sides.append(Side(kind.name, server, receiver))
    return sides


def leave_out(case: Case, kind: type[Server], name: str, error: Exception) -> None:
    """A peer that fails is told, with the first and the last of its words; without Solowire there is no comparison."""
    if kind.name == Solowire.name:
        raise error
    words = (str(error) or repr(error)).splitlines()
    case.remarks.append(f"{name}: could not run: {' … '.join(dict.fromkeys((words[0], words[-1])))}.")


def run_in_turn(case: Case, sides: list[Side], once: Callable[[Side], dict[str, Round]]) -> dict[str, Round]:
    """One round of each in turn. A side that fails is left out from then on."""
    found: dict[str, Round] = {}
    for side in list(sides):
        try:
            found |= once(side)
        except (BenchError, OSError) as error:
            leave_out(case, type(side.server), side.name, error)
            sides.remove(side)
    return found


def run_rounds(
    case: Case, sides: list[Side], once: Callable[[Side], dict[str, Round]], rounds: int
) -> dict[str, list[Round]]:
    """So many of each after one that warms up."""
    found: dict[str, list[Round]] = {}
    for number in range(rounds + 1):
        for name, one in run_in_turn(case, sides, once).items():
            found.setdefault(name, []).extend([one] if number else [])
    return found


def stream_round(
    side: Side,
    name: str,
    addressed: Callable[[int], About | None],
    per_second: int,
    to: int,
    seconds: float,
    rates: dict[str, float],
) -> Round:
    """A round of events by the clock. rates: by row how many a second the server can do, as the last round showed."""
    about, keyed = about_of(addressed)
    load = Stream(per_second, max(1, per_second // 100), to, not keyed, about)
    with publishing(side.server, 1 if keyed else WIRES) as publisher:
        if name in rates:
            slower = rates[name] if rates[name] < per_second else 0.0
            one = load.run(side.server, side.receiver, publisher, seconds, slower)
        else:
            one = load.send(side.server, side.receiver, publisher, WARM_UP_EVENTS)
    rates[name] = len(SERVER_CORES) * 1e6 / one.values["CPU per event"]
    return one


def about_of(addressed: Callable[[int], About | None]) -> tuple[AboutFunction | None, bool]:
    """How events are addressed, if they are, and whether they have keys: then order is checked among those of one."""
    first = addressed(0)
    return None if first is None else cast(AboutFunction, addressed), first is not None and first.key is not None


def compare_sides(
    case: Case, found: dict[str, list[Round]], what: str, columns: list[str], suffix: str, wanted_rounds: int
) -> None:
    """A row for each. Too few rounds are a fault.

    what: the measure of which each has `Solowire's over it`, round by round, since rounds take turns; '': of none.
    """
    leads = {lead: found.get(ours, []) for lead, ours in LEADS.items() if what}
    for name, rounds in found.items():
        for lead, ours in leads.items():
            for our, its in zip(ours, rounds, strict=False):
                its.values[lead] = our.values[what] / max(its.values[what], 1e-9)
        if rounds:
            line = make_row(f"{name}{suffix}", rounds, [*columns, *leads])
            if len(rounds) < wanted_rounds:
                line.faults.append(f"it failed after {len(rounds)} of {wanted_rounds} rounds")
            case.rows.append(line)


def hold_lead(
    case: Case,
    peer: str,
    suffix: str = "",
    lead: str = AHEAD,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Holds Solowire's lead over one server; void if either row is. One that is missing is told all the same."""
    name = f"{peer}{suffix}"
    line = case.row(name)
    if line is not None and lead in line.measures:
        case.hold(line, lead, at_least=at_least, at_most=at_most, over=case.row(f"{LEADS[lead]}{suffix}"))
    else:
        wanted = f"≥ {at_least:.2f}" if at_least is not None else f"≤ {at_most:.2f}"
        case.cannot_hold(name, lead, wanted, "left out: its case says why")
