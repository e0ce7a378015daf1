"""What a connection costs: to open it, many at once; and to hold it while nothing happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from bench.machine import EAGER, USUAL, LeftOut, merging, merging_cpu, set_merging, wait_until_merged
from bench.measure import Round, Usage, make_row
from bench.receiver import Receiver, make_histogram, percentiles
from bench.registry import Length, benchmark
from bench.report import Case
from bench.solowire_system import Solowire

STORM, IDLE = 2000, 10_000
AT_ONCE = 128
FIRST_USERS = 10
"""What the first of them bring is not theirs."""
LATER = "PSS per connection, after a heartbeat"
HEARTBEATS = "CPU of heartbeats, %"
ROWS: dict[str, Mapping[str, str]] = {
    "as it is": {},
    "same-page merging, the kernel's pace": USUAL,
    "same-page merging, eager": EAGER,
}
"""With the pace of merging while there are heartbeats; {}: none."""
EAGER_PACE, USUAL_PACE = (
    f"{int(pace['pages_to_scan']):,} pages every {pace['sleep_millisecs']} ms" for pace in (EAGER, USUAL)
)
IDLE_S, BEFORE_S, SETTLE_S = 27.0, 15.0, 3.0
QUICK_HEARTBEAT_S = 4


@benchmark()
def storm(case: Case, length: Length) -> None:
    """Many users come at once: connects per second, and CPU for each.

    {STORM:,} users come at once: each asks `POST /v1/connect` for a ticket, opens its WebSocket and says hello;
    {AT_ONCE} handshakes are under way at a time. Tickets are fetched first, so that the two can be told apart, over 8
    kept HTTP connections, where real users would each open one. Then all are cut off, and come again.
    """
    count = STORM // 4 if length.is_quick else STORM
    with Solowire() as system, Receiver(system.style) as receiver:

        def once() -> Round:
            receiver.reset()
            asking = Usage(system, receiver)
            tickets = system.tickets([f"u{n}" for n in range(count)])
            asking.stop()
            opening = Usage(system, receiver)
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
                **percentiles(make_histogram(opened.latency_us)),
                **opening.shares(),
            }
            return Round(values, faults)

        rounds = [once() for _ in range(length.rounds + 1)][1:]
    columns = ["tickets/s", "connects/s", "CPU per connect", "of it for the ticket, µs", "p50", "p99", "max"]
    case.rows.append(make_row(f"{count:,} users", rounds, [*columns, "server CPU", "shard CPU", "load core"]))


@benchmark()
def idle(case: Case, length: Length) -> None:
    """Ten thousand idle connections: memory and CPU, with and without same-page merging.

    {IDLE:,} connections of one feed to one shard, to which nothing happens but heartbeats (every 25 s). Memory is what
    all processes of the server grew by, from smaps_rollup; what the kernel holds for the sockets is not in it. CPU is
    that of all processes of the server over {IDLE_S:g} s, in which each connection has a heartbeat, in percent of a
    core (quick: {QUICK_HEARTBEAT_S} s and 5 s); `{HEARTBEATS}` is what that is more than before they came, when there
    were ten; `{LATER}` is read at the end. With same-page merging the shard runs with
    `SOLOWIRE_SHARD__MERGE_MEMORY=true` and the host's merging is on with `use_zero_pages`. The memory before and after
    connecting is read when it has been through three times, eagerly ({EAGER_PACE}), before most connections have had a
    heartbeat. The heartbeats come while it goes on at the pace of the row, the kernel's own ({USUAL_PACE}) or that one.
    Its thread, `ksmd`, belongs to no process, so its CPU has columns of its own. One round each, on a server of its
    own."""
    for name, pace in ROWS.items():
        try:
            with merging() if pace else contextlib.nullcontext():
                case.rows.append(make_row(name, [_idle_round(pace, quick=length.is_quick)]))
        except LeftOut as left_out:
            case.remarks.append(f"{name}: left out: {left_out}.")
    for name, pace in ROWS.items() if not length.is_quick else ():
        for measure, at_most in [(HEARTBEATS, 0.5), *([("PSS per connection", 30.0), (LATER, 30.0)] if pace else [])]:
            if row := case.row(name):
                case.hold(row, measure, at_most=at_most)
            else:
                case.cannot_hold(name, measure, f"≤ {at_most:g}", "left out")


def _idle_round(pace: Mapping[str, str], *, quick: bool) -> Round:
    """pace: of same-page merging; {}: without."""
    count, seconds = (2000, 5.0) if quick else (IDLE, IDLE_S)
    settings: dict[str, object] = {"SHARD__MERGE_MEMORY": "true"} if pace else {}
    settings |= {"SESSION__HEARTBEAT_INTERVAL_S": QUICK_HEARTBEAT_S} if quick else {}
    with Solowire(settings=settings) as system, Receiver(system.style) as receiver:
        system.connect(receiver, FIRST_USERS)
        time.sleep(SETTLE_S)
        faults = wait_until_merged() if pace else []
        alone = Usage(system, receiver)
        time.sleep(min(seconds, BEFORE_S))
        alone.stop()
        before, ksmd = system.memory(), merging_cpu()
        system.connect(receiver, count, first=FIRST_USERS)
        if pace:
            faults += wait_until_merged()
            set_merging(pace)
        time.sleep(SETTLE_S)
        after, ksmd_then = system.memory(), merging_cpu()
        if pace and after.merged == before.merged:
            faults.append("same-page merging has merged nothing of the connections")
        receiver.reset()
        usage = Usage(system, receiver)
        time.sleep(seconds)
        usage.stop()
        ksmd_idle, later = merging_cpu() - ksmd_then, system.memory()
        counts = receiver.counts()
        faults += alone.faults() + usage.faults() + counts.faults
        if counts.connections != count + FIRST_USERS:
            faults.append(f"{counts.connections} of {count + FIRST_USERS} connections were there at the end")
        if counts.pings < count + FIRST_USERS:
            faults.append(f"{counts.pings} heartbeats came on {count + FIRST_USERS} connections")
    values = {
        "PSS per connection": (after.pss - before.pss) / count / 1000,
        LATER: (later.pss - before.pss) / count / 1000,
        "RSS per connection": (after.rss - before.rss) / count / 1000,
        "PSS before, MB": before.pss / 1e6,
        "PSS, MB": after.pss / 1e6,
    }
    if pace:
        values["merged, MB"] = after.merged / 1e6
    values |= {
        HEARTBEATS: (usage.total / usage.seconds - alone.total / alone.seconds) * 100,
        "CPU while idle, %": usage.total / usage.seconds * 100,
        "CPU before, %": alone.total / alone.seconds * 100,
    }
    if pace:
        values |= {"ksmd while idle, %": ksmd_idle / usage.seconds * 100, "ksmd until then, s": ksmd_then - ksmd}
    return Round(values, faults)
