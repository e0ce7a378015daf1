"""What a refusal costs a gateway and a shard, beside the floor: the server beneath, which does nothing but refuse."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from bench.connect_load import LATE_MS, Answers, ConnectLoad, percentile
from bench.http_client import bearer, format_request
from bench.machine import HOST, SERVER_CORES, BenchError, cpu_seconds, end_tree, free_ports, place_on
from bench.measure import MAX_BUSY, Round, make_row
from bench.publisher import HttpWire
from bench.receiver import Receiver
from bench.registry import Length, benchmark
from bench.report import Case, Row
from bench.server import START_TIMEOUT_S, is_listening
from bench.solowire_system import Solowire, sign
from bench.ws_client import JSON, Ticket, format_upgrade
from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.model.access import ROLES

PER_SECOND = 2000
FULL_AT = 50
USERS = 5000
ROLE = "viewer"
TARGET_PERCENT = 25.0
TARGET_US = f"{TARGET_PERCENT * 1e4 / PER_SECOND:.0f}"
REFUSAL = (503, "over_limit")
PROBES = 0.03
"""The share of attempts that may be sent on to the shard: ten users a second, each up to three times."""


@dataclass
class Target:
    """The processes that refuse, with their ports. secret: what signs their tokens and tickets."""

    gateway: tuple[int, int]
    shard: tuple[int, int]
    secret: str

    def sign(self, user: str) -> str:
        return sign(self.secret, user, ROLE)


@benchmark()
def refusals(case: Case, length: Length) -> None:
    """What a refusal costs a full system.

    The system has as many connections as it may have, and {USERS:,} other users ask for a place, {PER_SECOND:,} times
    per second, again and again, each with its own valid token (at the shard: with a new ticket each time). CPU is that
    of the refusing process, all threads, as a share of one core. The floor is the server beneath alone
    (`bench/rejecting_app.py`), asked in turn with the same requests: what is built on it comes on top, but that a shard
    ends the connections of those it refuses, which the floor leaves to their clients. The target, {TARGET_PERCENT:g} %
    of a core, is {TARGET_US} µs per attempt; where each has a TCP connection of its own, on loopback, most of it is the
    kernel's work, which the floor has, too. A row is **void** if the load fell behind, or if an answer was anything but
    a refusal with `Retry-After`, but for the few whom a gateway sends on to their shard, though their group is full.
    """
    with Solowire(settings={"LIMITS__MAX_CONNECTIONS": FULL_AT}) as system, Receiver(system.style) as receiver:
        _fill(system, receiver)
        roles = system.roles()
        target = Target((roles["gateway"], system.port), (roles["shard 0"], system.port + 1), system.secret)
        _add_rows(case, length, target)


def _fill(system: Solowire, receiver: Receiver) -> None:
    """Connects users until shard and gateway refuse them: how many that takes is the coordinator's to say."""
    deadline = time.monotonic() + START_TIMEOUT_S
    for index in range(10 * FULL_AT):
        ticket = _ask_ticket(system, f"in{index}")
        if ticket is None:
            return
        receiver.reset()
        before = receiver.counts().connections
        with contextlib.suppress(BenchError):  # of one that the shard refused, and of all after it
            receiver.open([system.plan_of(ticket, {"subscriptions": []})])
        counts = receiver.counts()
        if counts.connections > before:
            continue
        if not any("over_limit" in fault for fault in counts.faults) or time.monotonic() > deadline:
            raise BenchError(f"connecting: {counts.faults}")
        # The shard is full. A gateway that knows it still lets one through now and then, but not two at once.
        if _ask_ticket(system, f"in{index}-again") is None:
            return
        time.sleep(0.2)
    raise BenchError("the system takes more connections than it may have")


def _ask_ticket(system: Solowire, user: str) -> Ticket | None:
    """None if the gateway says that the system is full."""
    with contextlib.closing(HttpWire(system.port)) as http:
        reply = http.request("POST", "/v1/connect", bearer(system.sign(user, ROLE)))
    if (reply.status, reply.code) == (503, "over_limit"):
        return None
    if reply.status != 200:
        raise BenchError(f"/v1/connect answered {reply}")
    return msgspec.json.decode(reply.body, type=Ticket)


@contextlib.contextmanager
def _floor() -> Iterator[tuple[int, int]]:
    """The floor's process and port."""
    port = free_ports(1)
    command = [sys.executable, "-m", "bench.rejecting_app", str(port)]
    process = subprocess.Popen(command, preexec_fn=place_on(SERVER_CORES))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("the floor does not start")
            time.sleep(0.1)
        yield process.pid, port
    finally:
        end_tree(process)


# ---------------------------------------------------------------- the load


def _make_connects(target: Target, users: int) -> list[bytes]:
    tokens = [target.sign(f"out{n}") for n in range(users)]
    return [format_request("POST", "/v1/connect", target.gateway[1], bearer(token)) for token in tokens]


def _make_routes(target: Target, users: int) -> list[bytes]:
    headers = [f"X-Original-URI: /ws?token={target.sign(f'out{n}')}\r\n" for n in range(users)]
    return [format_request("GET", "/v1/route", target.gateway[1], line) for line in headers]


def _make_handshakes(target: Target, users: int) -> list[bytes]:
    """With tickets of now: they live 30 s, and one that was refused may be shown again."""
    tokens, now, requests = Tokens(target.secret, ROLES, domain=DNS), time.time(), []
    for n in range(users):
        identity = tokens.identify(target.sign(f"out{n}"), now)
        ticket = tokens.issue_ticket(identity, 0, f"bench-{n}", now, HOST)
        requests.append(format_upgrade(target.shard[1], f"/ws?ticket={ticket}", JSON))
    return requests


LOADS: dict[str, tuple[str, Callable[[Target, int], list[bytes]], bool, bool]] = {
    "/v1/connect, connections kept": ("gateway", _make_connects, False, False),
    "/v1/connect, connections kept, each token for the first time": ("gateway", _make_connects, False, True),
    "/v1/connect, each its own connection": ("gateway", _make_connects, True, False),
    "/v1/route, connections kept": ("gateway", _make_routes, False, False),
    "handshake at the shard, each its own connection": ("shard", _make_handshakes, True, True),
}
"""Which process refuses, what it is asked, on a connection each or not, and whether with tokens that are new to it."""


def _add_rows(case: Case, length: Length, target: Target) -> None:
    with _floor() as floor:
        for name in LOADS:
            row = _refusals_row(name, target, floor, *((2, 2.0) if length.is_quick else (3, 10.0)))
            case.rows.append(row)
            case.hold(row, "CPU", at_most=TARGET_PERCENT)


def _refusals_row(name: str, target: Target, floor: tuple[int, int], rounds: int, seconds: float) -> Row:
    role, make, fresh, anew = LOADS[name]
    process: tuple[int, int] = getattr(target, role)
    kept = make(target, USERS)

    def once(process: tuple[int, int], seconds: float) -> tuple[Answers, float]:
        requests = make(target, int(PER_SECOND * seconds)) if anew else kept
        cpu = cpu_seconds(process[0])
        answers = ConnectLoad(process[1], requests, fresh=fresh).run(PER_SECOND, seconds)
        return answers, cpu_seconds(process[0]) - cpu

    once(process, 1.2 * USERS / PER_SECOND)  # until each has been there once
    once(floor, min(2.0, seconds))
    found = []
    for _ in range(rounds):
        answers, cpu = once(process, seconds)
        beneath, floor_cpu = once(floor, seconds)
        values = {
            "attempts/s": answers.attempts / answers.wall_s,
            "CPU": cpu / answers.wall_s * 100,
            "CPU per attempt": cpu / answers.attempts * 1e6,
            "floor per attempt": floor_cpu / beneath.attempts * 1e6,
            "p50": percentile(answers.took, 0.5),
            "p99": percentile(answers.took, 0.99),
            "load CPU": answers.busy * 100,
        }
        found.append(Round(values, list(_faults(answers))))
    return make_row(name, found)


def _faults(answers: Answers) -> Iterator[str]:
    probes = 0
    for (status, code), count in answers.answers.items():
        if status in (200, 204):
            probes += count
        elif (status, code) != REFUSAL:
            yield f"{count:,} of {answers.attempts:,} answers were {status} {code}"
    if probes > answers.attempts * PROBES:
        yield f"{probes:,} of {answers.attempts:,} were let through"
    if answers.without_retry > probes:
        yield f"{answers.without_retry - probes:,} answers did not say when to try again"
    if (late_ms := percentile(answers.late, 0.99)) > LATE_MS:
        yield f"the load was late by {late_ms:.0f} ms"
    if answers.busy > MAX_BUSY:
        yield f"the load took {answers.busy:.0%} of its core"
