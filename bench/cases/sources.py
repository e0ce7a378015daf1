"""What a name server's queries cost on their way to a user: the agent of BIND 9, and all that stands behind it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec

from bench.machine import LOAD_CORES, BenchError, cpu_seconds, end_tree, place_on
from bench.measure import SETTLE_S, Round, Usage, make_row
from bench.name_server import NameServer, find_missing
from bench.receiver import percentiles_of
from bench.registry import Length, benchmark
from bench.report import ROOT, Case
from bench.server import start_program, wait_until_ready
from bench.solowire_system import NO_PUBLISH_LIMIT, Solowire, make_environment
from bench.ws_client import FrameReader, Session, User, run_beside

RATES = (5_000, 10_000, 20_000)
SECONDS, QUICK_SECONDS = 5.0, 2.0
TARGET_RATE, TARGET_P99_MS = 10_000, 500.0
NAMED_RATE = 5_000
CONNECT_S = 3.0
"""Of queries, until `named` has connected to the agent: it looks every second."""
FLUSH_S = 3.0
"""Until it has told of those: it may keep some back for a second."""
ARRIVE_TIMEOUT_S = 15.0
SETTINGS = {**NO_PUBLISH_LIMIT, "SHARD__AGGREGATION__EVENTS_PER_S": 1_000_000}
ROLES = ("gateway", "router", "shard")

Send = Callable[[str], Awaitable[tuple[int, list[str]]]]
"""Sends the queries of one round, told its label; gives their number, and faults."""


@benchmark()
def sources(case: Case, length: Length) -> None:
    """5,000, 10,000 and 20,000 queries per second by dnstap, to one subscriber who gets them all.

    A process sends prepared dnstap frames, a query and its answer each, by the clock ({SECONDS:g} s a round) to
    `solowire source bind9 --dnstap`, which publishes to `solowire up`. One user is subscribed to `dns_query_log`;
    summing up is turned off for it, so that each event is delivered, where by default it would get figures and a
    sample. Latency is from the moment of the answer to the user's reading the event, to the ms. The agent, the sender
    and the user share a core, the servers have the other; in the last row a real `named`, which dnsperf asks, takes the
    sender's place: there `lost` is also what `named` itself drops where nobody reads in time, and the names of a round
    are its own, so that nothing that comes late counts in the next. The system runs with {NO_PUBLISH_LIMIT}.
    """
    seconds = QUICK_SECONDS if length.is_quick else SECONDS
    units = {"agent, CPU per query": "µs"}
    with Solowire(settings=SETTINGS) as system, _Agent(system) as agent:

        def run(send: Send, label: str = "") -> list[Round]:
            labels = [f"{label}{number}" if label else "" for number in range(length.bounded())]
            return [asyncio.run(_run(system, agent, seconds, send, label)) for label in labels]

        asyncio.run(_run(system, agent, 1.0, lambda _: _send_frames(agent, RATES[0], 1.0)))  # warms up
        for rate in RATES:
            case.rows.append(
                make_row(f"{rate:,} queries/s", run(lambda _: _send_frames(agent, rate, seconds)), units=units)  # noqa: B023
            )
            case.hold(case.rows[-1], "lost", at_most=0)
            if rate == TARGET_RATE:
                case.hold(case.rows[-1], "p99", at_most=TARGET_P99_MS)
        if missing := find_missing():
            case.remarks.append(f"No row with a real name server: {' and '.join(missing)} can't be installed.")
            return
        with NameServer(system.data / "named", agent.path, LOAD_CORES) as named:
            asyncio.run(named.ask(100, CONNECT_S))
            time.sleep(FLUSH_S)
            case.rows.append(
                make_row(
                    f"named, {NAMED_RATE:,} queries/s",
                    run(lambda label: _ask(named, NAMED_RATE, seconds, label), "round-"),
                    units=units,
                )
            )


class _Agent:
    """`solowire source bind9 --dnstap`, on the load's core."""

    def __init__(self, system: Solowire) -> None:
        self.path = system.data / "dnstap.sock"
        self._log = system.data / "agent.log"
        command = [sys.executable, "-m", "solowire", "source", "bind9", "--dnstap", str(self.path), "--server", "ns1"]
        environment = make_environment({"URL": f"http://127.0.0.1:{system.port}", "TOKEN": system.sign("ns1")})
        self._process = start_program(command, system.data, self._log, environment, LOAD_CORES)

    def __enter__(self) -> _Agent:
        wait_until_ready(self.path.exists, self._process, self._log, "the agent")
        return self

    def __exit__(self, *_: object) -> None:
        end_tree(self._process)

    def cpu(self) -> float:
        return cpu_seconds(self._process.pid)


class _Query(msgspec.Struct):
    query_domain: str = ""


class _Arrival(msgspec.Struct):
    type: str
    id: str
    timestamp: str
    data: _Query


class _Arrivals(msgspec.Struct):
    events: list[_Arrival]


class _Subscriber(User):
    """Counts queries, and takes the time of each.

    label: in the names of those that count; what `named` tells late of others, or of before, does not. twice: how many
    came again.
    """

    subscriptions = ("dns_query_log",)

    def __init__(self, system: Solowire, label: str) -> None:
        super().__init__(system.port, "subscriber", system.sign("subscriber"), FrameReader())
        self.took: list[float] = []
        self.twice = 0
        self._label = label
        self._ids: set[str] = set()
        self._decode = msgspec.json.Decoder(_Arrivals).decode

    def on_events(self, session: Session, payload: bytes) -> None:
        now = time.time() % 60
        for event in self._decode(payload).events:
            if event.type != "dns_query_log" or self._label not in event.data.query_domain:
                continue
            if event.id in self._ids:
                self.twice += 1
                continue
            self._ids.add(event.id)
            self.took.append((now - float(event.timestamp[17:23])) % 60)


async def _send_frames(agent: _Agent, rate: int, seconds: float) -> tuple[int, list[str]]:
    sender = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.dnstap_load", str(agent.path), str(rate), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=place_on(LOAD_CORES),
    )
    output, _ = await sender.communicate()
    if sender.returncode:
        raise BenchError(f"the sender ended with {sender.returncode}")
    sent, late_ms = (float(word) for word in output.split())
    return int(sent), [f"the agent held the sender up by {late_ms:.0f} ms"] if late_ms > 100 else []


async def _ask(named: NameServer, rate: int, seconds: float, label: str) -> tuple[int, list[str]]:
    sent = await named.ask(rate, seconds, label)
    return sent, [f"dnsperf asked {sent / seconds:,.0f} a second"] if sent < 0.95 * rate * seconds else []


async def _run(system: Solowire, agent: _Agent, seconds: float, send: Send, label: str = "") -> Round:
    user = _Subscriber(system, label)
    async with run_beside(user.run()):
        while user.session is None or not user.session.welcomed.done():
            await asyncio.sleep(0.02)
        usage, cpu = Usage(system, None), agent.cpu()
        sent, faults = await send(label)
        deadline = time.monotonic() + ARRIVE_TIMEOUT_S
        while len(user.took) < sent and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        usage.stop()
        cpu = agent.cpu() - cpu
        await asyncio.sleep(SETTLE_S)  # for what should not come
    if user.twice or len(user.took) > sent:
        faults.append(f"{len(user.took)} queries arrived of {sent}, and {user.twice} again")
    values = {
        "sent/s": sent / seconds,
        "lost": sent - len(user.took),
        "agent, CPU per query": cpu / sent * 1e6,
        "agent CPU": cpu / seconds * 100,
        **percentiles_of(user.took or [600.0]),
        **{f"{role} CPU per event": usage.cpu.get(role, 0.0) / sent * 1e6 for role in ROLES},
    }
    return Round(values, faults)
