"""What a connection costs: to open it, many at once; and to hold it while nothing happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from bench.load import Http
from bench.machine import EAGER, USUAL, LeftOut, merge_by, merging, merging_cpu, scans
from bench.measure import Length, Round, Spent, row
from bench.receiver import Receiver, histogram, percentiles
from bench.report import Case
from bench.solowire_system import Solowire

STORM, IDLE = 2000, 10_000
LATER = "PSS per connection, after a heartbeat"
HEARTBEATS = "CPU of heartbeats, %"
ROWS: dict[str, Mapping[str, str]] = {
    "as it is": {},
    "same-page merging, the kernel's pace": USUAL,
    "same-page merging, eager": EAGER,
}
"""With the pace of merging while there are heartbeats; {}: none."""
AT_ONCE = 128
WIRES = 8
IDLE_S = 27.0
BEFORE_S = 15.0
SETTLE_S = 3.0
MERGE_TIMEOUT_S = 120.0
MERGE_SCANS = 4
"""So many ends of a scan are three whole scans at least."""
QUICK_HEARTBEAT_S = "4"


def storm(length: Length) -> Case:
    """Many users come at once: connects per second, and CPU for each."""
    count = STORM // 4 if length.quick else STORM
    case = Case(
        "storm",
        f"{count:,} users come at once: each asks `POST /v1/connect` for a ticket, opens its WebSocket and says hello; "
        f"{AT_ONCE} handshakes are under way at a time. Tickets are fetched first, so that the two can be told apart, "
        f"over {WIRES} kept HTTP connections, where real users would each open one. Then all are cut off, and come "
        "again.",
    )
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(Solowire())
        receiver = stack.enter_context(Receiver(system.style))
        wires = [stack.enter_context(contextlib.closing(Http(system.port))) for _ in range(WIRES)]

        def once() -> Round:
            receiver.reset()
            asking = Spent(system, receiver)
            tickets = system.tickets([f"u{n}" for n in range(count)], wires)
            asking.stop()
            opening = Spent(system, receiver)
            opened = receiver.open([system.plan_of(ticket) for ticket in tickets], AT_ONCE)
            opening.stop()
            faults = asking.faults() + opening.faults() + receiver.counts().faults
            receiver.close_all()
            time.sleep(SETTLE_S / 3)
            values = {
                "tickets/s": count / asking.seconds,
                "connects/s": count / opened.seconds,
                "CPU per connect": (asking.total + opening.total) / count * 1e6,
                "of it for the ticket, µs": asking.total / count * 1e6,
                **percentiles(histogram(opened.latency_us)),
                **opening.shares(),
            }
            return Round(values, faults)

        once()
        rounds = [once() for _ in range(length.rounds)]
    columns = ["tickets/s", "connects/s", "CPU per connect", "of it for the ticket, µs", "p50", "p99", "max"]
    case.rows.append(row(f"{count:,} users", rounds, [*columns, "server CPU", "shard CPU", "load core"]))
    return case


def idle(length: Length) -> Case:
    """Ten thousand idle connections: memory and CPU, with and without same-page merging."""
    count, seconds, heartbeat = (2000, 5.0, QUICK_HEARTBEAT_S) if length.quick else (IDLE, IDLE_S, "25")
    case = Case(
        "idle",
        f"{count:,} connections of one feed to one shard, to which nothing happens but heartbeats ({heartbeat} s). "
        "Memory is what all processes of the server grew by, from smaps_rollup; what the kernel holds for the sockets "
        f"is not in it. CPU is that of all processes of the server over {seconds:g} s, in which each connection has a "
        f"heartbeat, in percent of a core; `{HEARTBEATS}` is what that is more than before they came, when there were "
        f"ten; `{LATER}` is read at the end. With same-page merging the shard runs "
        "with `SOLOWIRE_SHARD__MERGE_MEMORY=true` and the host's merging is on with `use_zero_pages`. The memory "
        f"before and after connecting is read when it has been through three times, eagerly ({_pace(EAGER)}), before "
        "most connections have had a heartbeat. The heartbeats come "
        f"while it goes on at the pace of the row, the kernel's own ({_pace(USUAL)}) or that one. Its thread, `ksmd`, "
        "belongs to no process, so its CPU has columns of its own. One round each, on a server of its own.",
    )
    columns = ["PSS per connection", LATER, "RSS per connection", "PSS before, MB", "PSS, MB", "merged, MB"]
    columns += [HEARTBEATS, "CPU while idle, %", "CPU before, %", "ksmd while idle, %", "ksmd until then, s"]
    for name, pace in ROWS.items():
        try:
            with merging() if pace else contextlib.nullcontext():
                found = _idle(count, seconds, pace, quick=length.quick)
        except LeftOut as left_out:
            case.remarks.append(f"{name}: left out: {left_out}.")
            continue
        case.rows.append(row(name, [found], columns))
    if not length.quick:
        for name, pace in ROWS.items():
            _hold(case, name, HEARTBEATS, 0.5)
            if pace:
                _hold(case, name, "PSS per connection", 30.0)
                _hold(case, name, LATER, 30.0)
    return case


def _pace(pace: Mapping[str, str]) -> str:
    return f"{int(pace['pages_to_scan']):,} pages every {pace['sleep_millisecs']} ms"


def _hold(case: Case, name: str, measure: str, at_most: float) -> None:
    if line := case.row(name):
        case.hold(line, measure, at_most=at_most)
    else:
        case.cannot_hold(name, measure, f"≤ {at_most:g}", "left out")


def _idle(count: int, seconds: float, pace: Mapping[str, str], *, quick: bool) -> Round:
    """pace: of same-page merging; {}: without."""
    settings = {"SHARD__MERGE_MEMORY": "true"} if pace else {}
    if quick:
        settings["HEARTBEAT_S"] = QUICK_HEARTBEAT_S
    with Solowire(settings=settings) as system, Receiver(system.style) as receiver:
        system.connect(receiver, 10)  # what the first connection brings is not theirs
        time.sleep(SETTLE_S)
        faults = until_merged() if pace else []
        alone = Spent(system, receiver)
        time.sleep(min(seconds, BEFORE_S))
        alone.stop()
        before, ksmd = system.memory(), merging_cpu()
        system.connect(receiver, count, first=10)
        if pace:
            faults += until_merged()
            merge_by(pace)
        time.sleep(SETTLE_S)
        after, ksmd_then = system.memory(), merging_cpu()
        if pace and after.merged == before.merged:
            faults.append("same-page merging has merged nothing of the connections")
        receiver.reset()
        spent = Spent(system, receiver)
        time.sleep(seconds)
        spent.stop()
        ksmd_idle = merging_cpu() - ksmd_then
        later = system.memory()
        counts = receiver.counts()
        faults += alone.faults() + spent.faults() + counts.faults
        if counts.connections != count + 10:
            faults.append(f"{counts.connections} of {count + 10} connections were there at the end")
        if counts.pings < count + 10:
            faults.append(f"{counts.pings} heartbeats came on {count + 10} connections")
    values = {
        "PSS per connection": (after.pss - before.pss) / count / 1000,
        LATER: (later.pss - before.pss) / count / 1000,
        "RSS per connection": (after.rss - before.rss) / count / 1000,
        "PSS before, MB": before.pss / 1e6,
        "PSS, MB": after.pss / 1e6,
        HEARTBEATS: (spent.total / spent.seconds - alone.total / alone.seconds) * 100,
        "CPU while idle, %": spent.total / spent.seconds * 100,
        "CPU before, %": alone.total / alone.seconds * 100,
    }
    if pace:
        values |= {
            "merged, MB": after.merged / 1e6,
            "ksmd while idle, %": ksmd_idle / spent.seconds * 100,
            "ksmd until then, s": ksmd_then - ksmd,
        }
    return Round(values, faults)


def until_merged() -> list[str]:
    """Waits until same-page merging has been through everything three times; a fault if it doesn't get there."""
    start, deadline = scans(), time.monotonic() + MERGE_TIMEOUT_S
    while (passed := scans() - start) < MERGE_SCANS:
        if time.monotonic() > deadline:
            return [f"same-page merging was through {passed} times only within {MERGE_TIMEOUT_S:.0f} s"]
        time.sleep(0.2)
    return []
