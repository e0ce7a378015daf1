"""One event at a time: to many, beside the floor; and to one on an idle system."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict

from bench.measure import Busy, Load, Round, join_slices, make_row, measure
from bench.publisher import About, Refused, Wire, make_event
from bench.receiver import Receiver
from bench.registry import Length, benchmark
from bench.report import Case
from bench.server import Server
from bench.solowire_system import Solowire
from bench.write_baseline import WriteBaseline

AT_ONCE = About(None, top=b'"priority":"critical",')
"""No server holds such an event back to send it with others."""
SLICES = 10
SINGLE_TIMEOUT_S = 20.0
SINGLE_COLUMNS = ["CPU per frame", "CPU per frame, shard", "floor per frame", "ratio", "ratio, all processes"]
SINGLE_COLUMNS += ["events/s", "p50", "p99", "bytes per delivery", "load core"]
PAUSE_MS = 50


def one_by_one(server: Server, wire: Wire, receiver: Receiver, events: int, users: int) -> Load:
    """A load: the next event is published when all have got the last."""

    def load() -> tuple[float, list[str]]:
        numbers: dict[int, int] = defaultdict(int)
        for sent in range(events):
            about = server.addressed(sent) or AT_ONCE
            stream = about.key or 0
            try:
                wire.ask([make_event(stream, numbers[stream], time.time_ns(), about)])
            except Refused as refused:
                return 0.0, [f"a publish request was refused with {refused}"]
            numbers[stream] += 1
            if not receiver.until((sent + 1) * users, SINGLE_TIMEOUT_S):
                return 0.0, [f"event {sent} did not reach everyone within {SINGLE_TIMEOUT_S:.0f} s"]
        return 0.0, []

    return load


def single_round(server: Server, receiver: Receiver, wire: Wire, events: int, users: int) -> Round:
    """Each event goes to every user once, on one of the user's sockets."""
    load = one_by_one(server, wire, receiver, events, users)
    return measure(server, receiver, events, events * users, events if server.sockets == 1 else 0, load)


@benchmark()
def single(case: Case, length: Length) -> None:
    """One event at a time to 100, 1,000 and 5,000 subscribers, beside a C loop of bare write().

    One feed; one event of {EVENT_BYTES} bytes at a time: the next is published when all have got it. The floor is a
    bare `write()` loop in C (`bench/write_baseline.c`) that sends the same frame bytes to as many sockets of a receiver
    of the same kind at the same pace. A round is {SLICES} slices of each in turn, so that whatever else the machine
    does meets both. `ratio` is the shard's CPU over the floor's; beside it the same with the gateway and the router,
    which an event costs once however many it goes to.
    """
    for connections in (100, 1000) if length.is_quick else (100, 1000, 5000):
        row = make_row(f"1 feed × {connections:,}", _single_rounds(length, connections), SINGLE_COLUMNS)
        case.rows.append(row)
        case.hold(row, "ratio", at_most=1.6, called=f"{row.name}, over the floor, the shard alone")
        case.hold(row, "ratio, all processes", at_most=1.6, called=f"{row.name}, over the floor, all processes")


def _single_rounds(length: Length, connections: int) -> list[Round]:
    events = max(length.events * 100 // connections // SLICES, 2)
    rounds = []
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(Solowire())
        receiver = stack.enter_context(Receiver(system.style))
        wire = stack.enter_context(contextlib.closing(system.wires(1)[0]))
        floor = stack.enter_context(WriteBaseline(connections))
        system.connect(receiver, connections)

        def slice_of_both() -> Round:
            found = single_round(system, receiver, wire, events, connections)
            cost = floor.run(receiver.last_frame(), events, found.values["events/s"])
            found.values["floor per frame"] = cost * 1e6
            return found

        slice_of_both()
        for _ in range(length.rounds):
            busy = Busy()
            found = join_slices([slice_of_both() for _ in range(SLICES)])
            found.values["ratio"] = found.values["CPU per frame, shard"] / found.values["floor per frame"]
            found.values["ratio, all processes"] = found.values["CPU per frame"] / found.values["floor per frame"]
            found.faults += busy.faults()
            rounds.append(found)
    return rounds


@benchmark()
def idle_latency(case: Case, length: Length) -> None:
    """One client on an idle system: how soon it has an event.

    One client, an idle system, one event every {PAUSE_MS} ms over one keep-alive connection.
    """
    events = length.events // 2
    with Solowire() as system, Receiver(system.style) as receiver, contextlib.closing(system.wires(1)[0]) as wire:
        system.connect(receiver, 1)

        def load() -> tuple[float, list[str]]:
            due = time.monotonic()
            for number in range(events):
                wire.ask([make_event(0, number, time.time_ns(), AT_ONCE)])
                due += PAUSE_MS / 1000
                time.sleep(max(0.0, due - time.monotonic()))
            return 0.0, []

        rounds = [measure(system, receiver, events, events, events, load) for _ in range(length.rounds + 1)]
    case.rows.append(make_row("1 feed × 1", rounds[1:], ["p50", "p99", "max", "CPU per event"]))
    case.hold(case.rows[0], "p50", at_most=10.0)
