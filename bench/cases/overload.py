"""Three times too much of everything, and every promise judged (`bench.verdicts`) by what clients saw."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import msgspec
import uvloop

from bench import verdicts
from bench.http_client import HttpClient, Rejected
from bench.machine import CORES, BenchError
from bench.measure import Round, make_row
from bench.overload_clients import Client, Journal
from bench.overload_publishers import LoadProcess, RetryingPublisher, Tally, publish_load
from bench.process_monitor import MemoryMonitor
from bench.registry import Length, benchmark
from bench.report import Case, Measure, Row, Target
from bench.resume_clients import wait_until
from bench.solowire_system import Settings, Solowire
from bench.ws_client import FrameReader, run_beside

SHARDS, TIMES, LIMIT = 2, 3, 300
ADMIN_SHARE, RESERVED_SHARE = 20, 15
"""One of how many slots administrators take, and one of how many is reserved for them."""
ADMIN_PERCENT, RESERVED_PERCENT = f"{1 / ADMIN_SHARE:.0%}", f"{1 / RESERVED_SHARE:.0%}"
WEIGHTS = {"operator": 2.0, "viewer": 1.0}
SLEEPER_EVERY, DOZER_EVERY, QUERIES_EVERY = 5, 20, 10
WRITE_TIMEOUT_S = 8.0
SLEEP_S = 2 * WRITE_TIMEOUT_S + 4.0
DOZE_S, AWAKE_S = 5.0, 6.0
"""At such rates a shard's log is two and a half to four seconds long."""
PUBLISHERS, BATCH, CALIBRATE_S = 16, 100, 8.0
CHANGES_PER_S, STATES_PER_S, ALERT_EVERY_S = 40, 10, 5.0
CHANGES_BATCH, CHANGE_PUBLISHERS = 10, 4
PADDING = "as it was requested, " * 40
"""So that what a dozer misses of changes is more than a frame."""
SECONDS, QUICK_SECONDS = 120.0, 60.0
RAMP_S, SETTLED_S, AFTER_KILL_S, CATCH_UP_S, HEALTHY_S = 5.0, 20.0, 20.0, 20.0, 1.0
KILLED = f"shard {SHARDS - 1}"
GROUPS = {"admin": {"weight": 1, "reserved": LIMIT // RESERVED_SHARE}} | {n: {"weight": w} for n, w in WEIGHTS.items()}
SETTINGS: Settings = {
    "LIMITS__MAX_CONNECTIONS": LIMIT,
    "LIMITS__GROUPS": msgspec.json.encode(GROUPS).decode(),
    "LIMITS__LEASE_S": 10,
    "LISTEN__WRITE_TIMEOUT_S": WRITE_TIMEOUT_S,
    "LISTEN__SEND_BUFFER_BYTES": 16384,
    "SESSION__HEARTBEAT_INTERVAL_S": 10,
    "SESSION__RECONNECT_MIN_MS": 200,
    "SESSION__RECONNECT_MAX_MS": 2000,
    "JOURNAL__DUPLICATE_WINDOW_S": 20,
}


def make_queries(phase: str, name: str, number: int) -> bytes:
    """The body of a publisher's nth request, as BIND's agent would send it."""

    def event(n: int) -> dict[str, object]:
        data = {
            "client_ip": f"192.0.2.{n % 50}",
            "query_domain": f"host{number * BATCH + n:07d}.example.com",
            "query_type": ("A", "AAAA", "MX", "TXT")[n % 4],
            "rcode": "NOERROR" if n % 7 else "NXDOMAIN",
            "zone": "example.com",
        }
        return {"type": "dns_query_log", "id": f"q{phase}{name}-{number}-{n}", "data": data}

    return msgspec.json.encode([event(n) for n in range(BATCH)])


def make_changes(publisher: int, number: int) -> bytes:
    """Record changes, so many to a request."""

    def event(n: int) -> dict[str, object]:
        data = {"zone": "example.com", "name": f"host{n}", "type": "A", "value": "192.0.2.1", "message": PADDING}
        return {"type": "record_updated", "id": f"change-{publisher}-{number}-{n}", "data": data}

    return msgspec.json.encode([event(n) for n in range(CHANGES_BATCH)])


def make_state(number: int) -> bytes:
    data = {"cpu_usage": number % 100, "host": f"ns{number % 5}"}
    return msgspec.json.encode([{"type": "system_metrics", "id": f"state-{number}", "data": data}])


@dataclass
class Run:
    """What a run is made of. samples: (time, connections by the system's count, by group as the clients have it).

    alerts: id → when it was made. tallies: of record changes and alerts, of states.
    """

    system: Solowire
    begun_at: float = field(default_factory=time.monotonic)
    clients: list[Client] = field(default_factory=list)
    samples: list[tuple[float, int, dict[str, int]]] = field(default_factory=list)
    alerts: dict[str, float] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=lambda: [Tally(), Tally()])
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        frames = FrameReader(frozenset({"record_updated", "security_alert"}), "security_alert")
        self.journal = Journal(self.clock, frames)

    def clock(self) -> float:
        return time.monotonic() - self.begun_at

    def populate(self) -> None:
        """Three times as many clients as there are slots."""
        admins = LIMIT // ADMIN_SHARE
        for n in range(admins):
            self._add("admin", n, ["dns.*", "security.*", "system.*", "system_alert", "gateway_stats"])
        for n in range(LIMIT * TIMES - admins):
            wanted = ["record_updated", "security_alert", "system_metrics"]
            if n % QUERIES_EVERY == 3:
                wanted += ["dns_query_log", "dns_query_stats"]
            sleep_s = SLEEP_S if n // 2 % SLEEPER_EVERY == 0 else DOZE_S if n // 2 % DOZER_EVERY == 1 else 0.0
            self._add(("operator", "viewer")[n % 2], n, wanted, sleep_s, AWAKE_S if sleep_s == DOZE_S else 0.0)

    def _add(self, group: str, number: int, wanted: list[str], sleep_s: float = 0.0, pause_s: float = 0.0) -> None:
        token = self.system.sign(f"{group}-{number}", group)
        client = Client(self.system.port, token, group, wanted, self.journal, sleep_s=sleep_s, pause_s=pause_s)
        self.clients.append(client)

    @property
    def readers(self) -> list[Client]:
        return [client for client in self.clients if client.is_reader]

    def by_group(self) -> dict[str, int]:
        counts = Counter(client.group for client in self.clients if client.is_present)
        return {group: counts[group] for group in ("admin", *WEIGHTS)}

    def make_alert(self, number: int) -> bytes:
        id = f"alert-{number}"
        self.alerts[id] = self.clock()
        event = {"type": "security_alert", "id": id, "data": {"severity": "critical", "message": id}}
        return msgspec.json.encode([event | {"priority": "critical"}])

    async def publish(self, stop: asyncio.Event) -> None:
        """Record changes, states and alerts at their own pace; ends when all are acknowledged."""
        token, (durable, states) = self.system.sign("changes", "publisher"), self.tallies
        post = partial(RetryingPublisher, self.system.port, token, drains=True)
        each = CHANGES_PER_S / CHANGE_PUBLISHERS
        await asyncio.gather(
            *(
                post(partial(make_changes, n), durable, batch=CHANGES_BATCH, rate=each).run(stop)
                for n in range(CHANGE_PUBLISHERS)
            ),
            post(make_state, states, rate=STATES_PER_S).run(stop),
            post(self.make_alert, durable, rate=1 / ALERT_EVERY_S).run(stop),
        )

    async def sample(self) -> None:
        """Once a second what the system says of itself, and what the clients have; until cancelled."""
        http, token = HttpClient(self.system.port), self.system.sign("sampler")
        while True:
            with contextlib.suppress(OSError):
                reply = await http.ask("GET", "/v1/stats", token)
                if reply.status == 200:
                    connections = msgspec.json.decode(reply.body)["connections"]
                    self.samples.append((self.clock(), connections, self.by_group()))
            await asyncio.sleep(1.0)


@benchmark(shares_cores=True)
def overload(case: Case, length: Length) -> None:
    """Three times too many clients and events, and a shard is killed: was every promise kept?

    `solowire up` with {SHARDS} shards. {TIMES} × as many clients as the limit on connections allows want one, all the
    time: administrators ({ADMIN_PERCENT} of the limit; {RESERVED_PERCENT} is reserved for them), and as many operators
    (weight 2) as viewers (weight 1). Every fifth reads nothing after its welcome, for longer than a socket may take
    nothing ({WRITE_TIMEOUT_S:g} s); every twentieth stops reading for {DOZE_S:g} s now and then, in which the queries
    turn a shard's log over (100,000 events or 128 MiB); all others read all they get. Query logs are offered at {TIMES}
    × the rate at which publishers that wait for their acknowledgements get through before it begins: so much falls due
    at {PUBLISHERS} publishers, each of which has one request under way and keeps {HELD_BATCHES} more. What they can't
    get rid of, since they are answered late, is `held back`: backpressure has reached the source, and as long as that
    is enough nothing is refused. Beside them {CHANGES_PER_S} record changes and {STATES_PER_S} states a second, and an
    alert every {ALERT_EVERY_S:g} s. In the midst of it a shard is killed. All of that shares the machine's cores.
    """
    seconds = QUICK_SECONDS if length.is_quick else SECONDS
    with Solowire(SHARDS, settings=SETTINGS, limits={}, cores=CORES) as system:
        uvloop.run(_overload(case, system, seconds))


async def _overload(case: Case, system: Solowire, seconds: float) -> None:
    tokens = [system.sign(f"publisher-{n}", "publisher") for n in range(PUBLISHERS)]
    calm = await publish_load(system.port, tokens, partial(make_queries, "c"), BATCH, CALIBRATE_S, None)
    run, stop, memory = Run(system), asyncio.Event(), MemoryMonitor(system.roles)
    run.populate()
    rate, kill_at = calm.acked / CALIBRATE_S * TIMES, seconds / 2
    flood = LoadProcess(system.port, tokens, partial(make_queries, ""), BATCH, seconds - RAMP_S, rate)
    with contextlib.closing(flood):
        async with run_beside(run.sample(), memory.run(), *(client.run() for client in run.clients)):
            changes = asyncio.create_task(run.publish(stop))
            await asyncio.sleep(kill_at - run.clock())
            os.kill(system.roles()[KILLED], signal.SIGKILL)
            await asyncio.sleep(seconds - run.clock())
            tally = await flood.result()
            stop.set()
            try:
                await asyncio.wait_for(changes, CATCH_UP_S)
            except TimeoutError:
                run.faults.append("the record changes were not all acknowledged")
            until, acknowledged = run.clock(), sorted(run.tallies[0].offsets)
            level = await _judge_level(run, acknowledged[-1] if acknowledged else 0)
        after = await _judge_health(system)
    _judge(case, run, until, kill_at, acknowledged)
    _judge_memory(case, memory, seconds)
    case.targets += [level, after]
    _show_figures(case, run, calm, tally, until)


async def _judge_level(run: Run, last: int) -> Target:
    """Waits until every reader that is there has everything, but no longer than CATCH_UP_S."""
    begun_at = run.clock()

    def behind() -> list[Client]:
        return [client for client in run.readers if client.is_present and client.visits[-1].cursor < last]

    await wait_until(lambda: not behind(), CATCH_UP_S)
    there = sum(client.is_present for client in run.readers)
    found = f"{len(behind())} of {there} behind after {run.clock() - begun_at:.1f} s"
    return Target("readers are level when it is over", f"within {CATCH_UP_S:g} s", found, not behind())


async def _judge_health(system: Solowire) -> Target:
    """A new client is welcomed, and gets an event, each within a moment."""
    clock, wanted = asyncio.get_running_loop().time, f"≤ {HEALTHY_S:g} s each"
    what = "healthy again afterwards: a welcome, an event"
    client = Client(system.port, system.sign("after"), "", ["custom.*"], Journal(clock, FrameReader()))
    begun_at = clock()
    try:
        await client.connect()
        welcomed_at = clock()
        body = msgspec.json.encode([{"type": "custom.after", "data": {}}])
        reply = await HttpClient(system.port, keep=False).ask("POST", "/v1/events", system.token, body)
        if reply.status != 200 or not await wait_until(lambda: client.visits[-1].is_settled, HEALTHY_S * 10):
            return Target(what, wanted, f"not at all: {reply}", False)
    except (Rejected, OSError) as error:
        return Target(what, wanted, f"not at all: {error!r:.200}", False)
    finally:
        client.cut()
    welcome_s, event_s = welcomed_at - begun_at, client.visits[-1].heard_at - welcomed_at
    return Target(
        what, wanted, f"welcome {welcome_s:.2f} s, event {event_s:.2f} s", max(welcome_s, event_s) <= HEALTHY_S
    )


def _judge(case: Case, run: Run, until: float, kill_at: float, acknowledged: list[int]) -> None:
    killing = (kill_at - 1, kill_at + AFTER_KILL_S)
    calm = [s for s in run.samples if SETTLED_S < s[0] < until and not killing[0] < s[0] < killing[1]]
    visits = [visit for client in run.readers for visit in client.visits]
    sleepers = [client for client in run.clients if client.sleep_s and not client.pause_s]
    dozers = [client for client in run.clients if client.sleep_s and client.pause_s]
    faults = run.journal.faults + run.faults + [fault for tally in run.tallies for fault in tally.faults]
    refused = sum(run.journal.refusals.values())
    said = Target(
        "refusals say why, and when to come back", "0 faults", f"{len(faults)} faults; {refused:,} refusals", not faults
    )
    case.targets += [
        verdicts.judge_limit(LIMIT, [count for _, count, _ in run.samples], verdicts.most_at_once(visits)),
        verdicts.judge_use(LIMIT, [count for _, count, _ in calm]),
        verdicts.judge_admins([c for c in run.clients if c.group == "admin"], SETTLED_S / 2, until),
        verdicts.judge_fairness([groups for _, _, groups in calm], WEIGHTS),
        verdicts.judge_durable(run.readers, acknowledged),
        verdicts.judge_kept("who reads", run.readers),
        verdicts.judge_kept(f"who stops for {DOZE_S:g} s and reads on", dozers),
        verdicts.judge_cut(sleepers),
        verdicts.judge_notices(sleepers + dozers),
        said,
        verdicts.judge_type("a flood is summed up", "dns_query_stats", run.journal.types),
        verdicts.judge_type("administrators are alerted", "system_alert", run.journal.types),
    ]
    case.remarks += [f"Fault: {fault}." for fault in faults[:10]]


def _judge_memory(case: Case, memory: MemoryMonitor, seconds: float) -> None:
    for name in memory.samples:
        parts = memory.windows(name, seconds)
        case.rows.append(Row(name, {f"memory, part {n}": Measure.over(p, "MiB") for n, p in enumerate(parts, 1)}))
        if name != KILLED and len(parts) == 5:
            middle = [statistics.median(part) for part in parts]
            case.targets.append(verdicts.judge_memory(name, middle[1], middle[-1], max(max(part) for part in parts)))


def _show_figures(case: Case, run: Run, calm: Tally, flood: Tally, until: float) -> None:
    seconds = until - RAMP_S
    values = {
        "sustainable events/s": calm.acked / CALIBRATE_S,
        "offered/s": flood.offered / seconds,
        "held back/s": flood.unmade / seconds,
        "acknowledged/s": flood.stored / seconds,
        "publish refusals/s": sum(flood.refused.values()) / seconds,
        "connections allowed": LIMIT,
        "connection attempts/s": run.journal.attempts / until,
    }
    arrivals = [(run.alerts[id], times) for id, times in run.journal.alerts.items() if id in run.alerts]
    if arrivals:
        values["alert to its first reader"] = statistics.median(min(t) - made for made, t in arrivals) * 1e3
        values["alert to its last reader"] = statistics.median(max(t) - made for made, t in arrivals) * 1e3
    case.rows.insert(0, make_row("the run", [Round(values)]))
    table = "".join(f"| {what} | {count:,} |\n" for what, count in sorted(run.journal.refusals.items()))
    codes = Counter(visit.code or 0 for client in run.clients for visit in client.visits)
    ends = ", ".join(f"{code or 'none'}: {count:,}" for code, count in sorted(codes.items()))
    case.remarks += [
        f"| refused connections | times |\n| --- | --- |\n{table}",
        f"Close codes of all {codes.total():,} connections: {ends}.",
        f"Refused publish requests: {dict(flood.refused)}; without an answer: {flood.lost}.",
    ]
    if flood.faults:
        raise BenchError(f"publishing: {flood.faults[0]}")
