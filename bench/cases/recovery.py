"""How fast users are back: a thousand at once to a shard that ran on, and those of a shard that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence

import msgspec
import uvloop

from bench.machine import BenchError
from bench.measure import Busy, Round, make_row
from bench.overload_publishers import Accepted, RetryingPublisher, Tally
from bench.publisher import About, HttpWire, make_event
from bench.registry import Length, benchmark
from bench.report import Case
from bench.resume_clients import (
    AT_ONCE,
    TIMEOUT_S,
    ReturningUser,
    cut_all,
    judge_users,
    make_users,
    open_all,
    wait_until,
)
from bench.solowire_system import Solowire
from bench.ws_client import Ticket, User, run_beside

CLIENTS, EVENTS, BATCH = 1000, 1000, 100
USERS, PER_SECOND = 2000, 50
FAILOVER_ROUNDS = 2
TARGET_RESUME_S = 5.0
BEFORE_KILL_S, AFTER_KILL_S = 3.0, 1.0
AFTER_ALL_S = 8.0
"""How long a round goes on when all are back: the shard returns and takes its users back."""
BACKOFF = "–".join(f"{seconds:g}" for seconds in User.backoff_s)


@benchmark()
def resume(case: Case, length: Length) -> None:
    """A thousand clients come back at once and get what they missed.

    One shard; {CLIENTS:,} clients are cut off, {EVENTS:,} events of {EVENT_BYTES} bytes that all of them want are
    published, and all come back with their cursor, their tickets in hand. The time runs from the first WebSocket being
    opened to the last client having all it missed. `all at once` opens every WebSocket without waiting; in the other
    row {AT_ONCE} handshakes are under way at a time. The clients are this process's, in Python; every client's offsets
    are compared with the publisher's.
    """
    with Solowire() as system:
        for name, at_once in ((f"{AT_ONCE} handshakes at a time", AT_ONCE), ("all at once", CLIENTS)):
            rounds = [uvloop.run(_resume_round(system, at_once)) for _ in range(length.rounds + 1)][1:]
            case.rows.append(make_row(name, rounds, units={"shard CPU": "s", "load CPU": "s"}))
            case.hold(case.rows[-1], "seconds", at_most=TARGET_RESUME_S)


async def _resume_round(system: Solowire, at_once: int) -> Round:
    users = make_users(system, CLIENTS)
    if failed := await open_all(users, _tickets(system, users), AT_ONCE):
        raise BenchError(failed[0])
    await cut_all(users)
    await asyncio.sleep(0.5)  # the shard has seen them go
    published = _publish(system)
    tickets = _tickets(system, users)
    left, all_reached = CLIENTS, asyncio.Event()

    def on_reached() -> None:
        nonlocal left
        left -= 1
        if not left:
            all_reached.set()

    for user in users:
        user.target, user.on_reached = published[-1], on_reached
    busy, cpu, own, start = Busy(), system.cpu()["shard"], time.process_time(), time.perf_counter()
    faults = await open_all(users, tickets, at_once)
    welcomed = time.perf_counter() - start
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_reached.wait(), TIMEOUT_S)
    seconds, own = time.perf_counter() - start, time.process_time() - own
    cpu = system.cpu()["shard"] - cpu
    faults += busy.faults()
    await asyncio.sleep(0.25)  # for what should not come
    values, more = judge_users(users, published)
    await cut_all(users)
    if any(user.first >= published[0] or user.session_count != 2 for user in users):
        faults.append("a client was not there before, or did not come back exactly once")
    if system.processes() != system.started:
        faults.append("a process of the system was restarted")
    rate = CLIENTS * EVENTS / cpu
    times = {"seconds": seconds, "welcomed": welcomed, "shard CPU": cpu, "deliveries per CPU-second": rate}
    return Round(times | {"load CPU": own} | values, faults + more)


def _tickets(system: Solowire, users: Sequence[ReturningUser]) -> list[Ticket]:
    return system.tickets([user.name for user in users])


def _publish(system: Solowire) -> Sequence[int]:
    """The offsets of EVENTS events, as the gateway acknowledged them: they follow each other, as nobody else publishes.

    Raises BenchError.
    """
    answers = []
    with contextlib.closing(HttpWire(system.port)) as http:
        for first in range(0, EVENTS, BATCH):
            body = b"[" + b",".join(make_event(0, n, time.time_ns()) for n in range(first, first + BATCH)) + b"]"
            reply = http.request("POST", "/v1/events", system.bearer, body)
            if reply.status >= 300:
                raise BenchError(f"/v1/events answered {reply}")
            answers.append(msgspec.json.decode(reply.body, type=Accepted))
    published = range(answers[0].first_offset, answers[-1].last_offset + 1)
    if len(published) != EVENTS:
        raise BenchError(f"{len(published)} offsets for {EVENTS} events")
    return published


# ---------------------------------------------------------------- failover


@benchmark()
def failover(case: Case, length: Length) -> None:
    """A shard is killed under load.

    Two shards, {USERS:,} users spread by the ring, {PER_SECOND} events of {EVENT_BYTES} bytes per second that all of
    them want; one shard is killed (SIGKILL). `up` restarts it; in the second row `up` is stopped (SIGSTOP) until all
    are back, so that the other shard has to take them. Users come back through `/v1/connect`: full jitter of {BACKOFF}
    s, and `Retry-After` is obeyed. A user is back when it was resumed and has the last event that was acknowledged
    within {AFTER_KILL_S:g} s after the kill, so no time can be below that. The load goes on until the shard has
    returned and has got its users back, and what every user got in all that time is compared with what was published.
    `on the other`: users who caught up on the shard that was left; `handed back`: those that the killed one has again
    in the end; `others cut`: users of the other shard whose connection ended. Each round has a system of its own, and
    kills another shard than the one before.
    """
    for name, restarts in (("restarted at once", True), ("restarted when all are back", False)):
        found = []
        for number in range(1 if length.is_quick else FAILOVER_ROUNDS):
            with Solowire(shards=2) as system:
                found.append(uvloop.run(_failover_round(system, number % 2, restarts)))
        case.rows.append(make_row(name, found))


@contextlib.contextmanager
def _stopped(system: Solowire) -> Iterator[None]:
    """`up` itself is, and restarts nothing."""
    assert system.process is not None
    system.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        system.process.send_signal(signal.SIGCONT)


async def _failover_round(system: Solowire, index: int, restarts: bool) -> Round:
    users = make_users(system, USERS)
    async with run_beside(*(user.run() for user in users)) as staying:
        if not await wait_until(lambda: all(user.session_count for user in users), TIMEOUT_S):
            raise BenchError(f"{sum(not user.session_count for user in users)} users did not get in")
        tally, stop = Tally(), asyncio.Event()
        publisher = RetryingPublisher(system.port, system.token, _event, tally, rate=PER_SECOND, drains=True)
        publishing = asyncio.create_task(publisher.run(stop))
        begin = time.perf_counter()
        await asyncio.sleep(BEFORE_KILL_S)
        killed = [user for user in users if user.shard == index]
        others = [user for user in users if user.shard != index]
        last_before = tally.last
        before = {user: user.session_count for user in others}
        with contextlib.nullcontext() if restarts else _stopped(system):
            os.kill(system.roles()[f"shard {index}"], signal.SIGKILL)
            busy, start = Busy(), time.perf_counter()
            await asyncio.sleep(AFTER_KILL_S)
            target = tally.last
            for user in killed:
                user.target = target
                user.check_target()
            in_time = await wait_until(lambda: all(user.reached_at for user in killed), TIMEOUT_S)
            faults = busy.faults()
        await asyncio.sleep(AFTER_ALL_S)
        cut = sum(user.session_count != before[user] for user in others)
        handed_back = sum(user.shard == index for user in killed)
        stop.set()
        await publishing
        published = tally.offsets
        if len(published) < 0.95 * PER_SECOND * (time.perf_counter() - begin):
            faults.append(f"the publisher fell behind: {len(published)} events")
        if not await wait_until(lambda: all(user.last >= tally.last for user in users), TIMEOUT_S / 2):
            faults.append(f"{sum(user.last < tally.last for user in users)} users never got the last event")
        faults += tally.faults + [f"a client failed: {task.exception()!r}" for task in staying if task.done()][:3]
    if not in_time:
        faults.append(f"{sum(not user.reached_at for user in killed)} users were not back within {TIMEOUT_S:.0f} s")
    if target == last_before:
        faults.append("nothing was acknowledged to the publisher after the kill")
    took = sorted((user.reached_at or float("inf")) - start for user in killed) or [float("inf")]
    values, more = judge_users(users, published)
    shares = {f"{share} %": took[max(0, math.ceil(share / 100 * len(took)) - 1)] for share in (50, 99)}
    rest = {
        "on the other": sum(user.reached_on not in (index, -1) for user in killed),
        "handed back": handed_back,
        "others cut": cut,
        "events": len(published),
    }
    return Round({"users of the shard": len(killed), **shares, "all": took[-1], **values, **rest}, faults + more)


def _event(number: int) -> bytes:
    return make_event(0, number, time.time_ns(), About(0, top=f'"id":"bench-{number}",'.encode()))
