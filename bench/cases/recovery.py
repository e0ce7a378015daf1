"""How fast users are back: a thousand at once to a shard that ran on, and those of a shard that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator

import msgspec
import uvloop

from bench.load import EVENT_BYTES, About, Http, event
from bench.machine import BenchError
from bench.measure import Busy, Length
from bench.posts import Later
from bench.report import Case
from bench.returning import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    Frames,
    User,
    ask,
    open_user,
    row,
    stay,
    tasks,
    until,
    verdict,
)
from bench.solowire_system import Solowire, Ticket

CLIENTS, EVENTS, BATCH = 1000, 1000, 100
USERS, PER_SECOND = 2000, 50
FAILOVER_ROUNDS, QUICK_FAILOVER_ROUNDS = 2, 1
TARGET_RESUME_S = 5.0
AT_ONCE = 64
"""Handshakes under way while nothing is measured yet."""
BEFORE_KILL_S, AFTER_KILL_S = 3.0, 1.0
AFTER_ALL_S = 8.0
"""How long a round goes on when all are back: the shard returns and takes its users back."""
TIMEOUT_S = 30.0


# ---------------------------------------------------------------- resume


def resume(length: Length) -> Case:
    """A thousand clients come back at once and get what they missed."""
    case = Case(
        "resume",
        f"One shard; {CLIENTS:,} clients are cut off, {EVENTS:,} events of {EVENT_BYTES} bytes that all of them want "
        f"are published, and all come back with their cursor, their tickets in hand. The time runs from the first "
        "WebSocket being opened to the last client having all it missed. `all at once` opens every WebSocket without "
        f"waiting; in the other row {AT_ONCE} handshakes are under way at a time. The clients are this process's, in "
        "Python; every client's offsets are compared with the publisher's.",
    )
    with Solowire() as system:
        for name, at_once in ((f"{AT_ONCE} handshakes at a time", AT_ONCE), ("all at once", CLIENTS)):
            uvloop.run(_resume_round(system, at_once))  # warms up
            case.rows.append(row(name, [uvloop.run(_resume_round(system, at_once)) for _ in range(length.rounds)]))
            case.hold(case.rows[-1], "seconds", at_most=TARGET_RESUME_S)
    return case


async def _resume_round(system: Solowire, at_once: int) -> tuple[dict[str, float], list[str]]:
    frames = Frames()
    users = [User(f"u{n}", frames, system.sign(f"u{n}")) for n in range(CLIENTS)]
    if failed := await _come(users, _tickets(system, users), AT_ONCE):
        raise BenchError(failed[0])
    for user in users:
        assert user.connection is not None
        user.connection.abort()
    await asyncio.gather(*(user.connection.ended for user in users if user.connection))
    await asyncio.sleep(0.5)  # the shard has seen them go
    published = _publish(system)
    tickets = _tickets(system, users)

    left, all_reached = CLIENTS, asyncio.Event()

    def reached() -> None:
        nonlocal left
        left -= 1
        if not left:
            all_reached.set()

    for user in users:
        user.target, user.on_reached = published[-1], reached
    busy, cpu, own, start = Busy(), system.cpu()["shard"], time.process_time(), time.perf_counter()
    faults = await _come(users, tickets, at_once)
    welcomed = time.perf_counter() - start
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_reached.wait(), TIMEOUT_S)
    seconds, own = time.perf_counter() - start, time.process_time() - own
    cpu = system.cpu()["shard"] - cpu
    faults += busy.faults()
    await asyncio.sleep(0.25)  # for what should not come
    values, more = verdict(users, published)
    for user in users:
        if user.connection is not None:
            user.connection.abort()
    await asyncio.gather(*(user.connection.ended for user in users if user.connection))
    late = sum(user.late for user in users)
    if any(user.first >= published[0] or user.sessions != 2 for user in users):
        faults.append("a client was not there before, or did not come back exactly once")
    if system.processes() != system.started:
        faults.append("a process of the system was restarted")
    times = {
        "seconds": seconds,
        "welcomed": welcomed,
        "shard CPU": cpu,
        "deliveries per CPU-second": CLIENTS * EVENTS / cpu,
        "load CPU": own,
    }
    return times | values | {"hello late": late}, faults + more


def _tickets(system: Solowire, users: list[User]) -> list[Ticket]:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(contextlib.closing(Http(system.port))) for _ in range(8)]
        return system.tickets([user.name for user in users], wires)


async def _come(users: list[User], tickets: list[Ticket], at_once: int) -> list[str]:
    """Opens all; one that fails is a fault, since its ticket is gone."""
    limit = asyncio.Semaphore(at_once)

    async def come(user: User, ticket: Ticket) -> None:
        async with limit:
            await asyncio.wait_for(open_user(user, ticket), TIMEOUT_S)

    found = await asyncio.gather(*map(come, users, tickets), return_exceptions=True)
    failed = [result for result in found if result is not None]
    return [f"{len(failed)} clients did not get in: {failed[0]!r}"] if failed else []


def _publish(system: Solowire) -> list[int]:
    """The offsets of EVENTS events, as the gateway acknowledged them."""
    offsets: list[int] = []
    with contextlib.closing(Http(system.port)) as http:
        for first in range(0, EVENTS, BATCH):
            body = b"[" + b",".join(event(0, n, time.time_ns()) for n in range(first, first + BATCH)) + b"]"
            status, answer = http.exchange("POST", "/v1/events", system.bearer, body)
            if status >= 300:
                raise BenchError(f"/v1/events answered {status}: {answer[:200]!r}")
            offsets += _acknowledged(answer)
    if len(offsets) != EVENTS:
        raise BenchError(f"{len(offsets)} offsets for {EVENTS} events")
    return offsets


def _acknowledged(answer: bytes) -> range:
    """From the first offset to the last: nobody else publishes here."""
    said = msgspec.json.decode(answer, type=dict[str, int | str])
    return range(int(said["first_offset"]), int(said["last_offset"]) + 1)


# ---------------------------------------------------------------- failover


def failover(length: Length) -> Case:
    """A shard is killed under load."""
    rounds = QUICK_FAILOVER_ROUNDS if length.quick else FAILOVER_ROUNDS
    case = Case(
        "failover",
        f"Two shards, {USERS:,} users spread by the ring, {PER_SECOND} events of {EVENT_BYTES} bytes per second that "
        "all of them want; one shard is killed (SIGKILL). `up` restarts it; in the second row `up` is stopped "
        "(SIGSTOP) until all are back, so that the other shard has to take them. Users come back through "
        f"`/v1/connect`: full jitter of {BACKOFF_MIN_S:g}–{BACKOFF_MAX_S:g} s, and `Retry-After` is obeyed. A user is "
        f"back when it was resumed and has the last event that was acknowledged within {AFTER_KILL_S:g} s after the "
        "kill, so no time can be below that. The load goes on until the shard has returned and has got its users back, "
        "and what every user got in all that time is compared with what was published. "
        "`on the other`: users who caught up on the shard that was left; `handed back`: those that the killed one has "
        "again in the end; `others cut`: users of the other shard whose connection ended. Each round has a system of "
        "its own, and kills another shard than the one before.",
    )
    for name, restarts in (("restarted at once", True), ("restarted when all are back", False)):
        found = []
        for number in range(rounds):
            with Solowire(shards=2) as system:
                found.append(uvloop.run(_failover_round(system, number % 2, restarts)))
        case.rows.append(row(name, found))
    return case


@contextlib.contextmanager
def _stopped(system: Solowire) -> Iterator[None]:
    """`up` itself is, and restarts nothing."""
    assert system.process is not None
    system.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        system.process.send_signal(signal.SIGCONT)


async def _failover_round(system: Solowire, index: int, restarts: bool) -> tuple[dict[str, float], list[str]]:
    frames, at_start = Frames(), asyncio.Semaphore(AT_ONCE)
    users = [User(f"u{n}", frames, system.sign(f"u{n}")) for n in range(USERS)]
    published: list[int] = []
    async with tasks(asyncio.create_task(stay(user, system.port, at_start)) for user in users) as staying:

        def whole() -> bool:
            return all(user.sessions for user in users) or any(task.done() for task in staying)

        if not await until(whole, TIMEOUT_S):
            raise BenchError(f"{sum(not user.sessions for user in users)} users did not get in")
        async with tasks([asyncio.create_task(_keep_publishing(system, published))]) as publishing:
            begin = time.perf_counter()
            await asyncio.sleep(BEFORE_KILL_S)
            killed = [user for user in users if user.shard == index]
            others = [user for user in users if user.shard != index]
            last_before = published[-1]
            before = {user: user.sessions for user in others}
            with contextlib.nullcontext() if restarts else _stopped(system):
                os.kill(system.pid(f"shard --index {index}"), signal.SIGKILL)
                busy, start = Busy(), time.perf_counter()
                await asyncio.sleep(AFTER_KILL_S)
                for user in killed:
                    user.target = published[-1]
                    user.check()
                in_time = await until(lambda: all(user.reached for user in killed), TIMEOUT_S)
                full = busy.faults()
            await asyncio.sleep(AFTER_ALL_S)
            cut = sum(user.sessions != before[user] for user in others)
            handed_back = sum(user.shard == index for user in killed)
            faults = full + [f"publishing ended: {task.exception()!r}" for task in publishing if task.done()]
            if len(published) < 0.95 * PER_SECOND * (time.perf_counter() - begin):
                faults.append(f"the publisher fell behind: {len(published)} events")
        end = published[-1]
        if not await until(lambda: all(user.last >= end for user in users), TIMEOUT_S / 2):
            faults.append(f"{sum(user.last < end for user in users)} users never got the last event")
        faults += [f"a client failed: {task.exception()!r}" for task in staying if task.done()][:3]
        for user in users:
            if user.connection is not None:
                user.connection.abort()
    if not in_time:
        faults.append(f"{sum(not u.reached for u in killed)} users were not back within {TIMEOUT_S:.0f} s")
    if killed and killed[0].target == last_before:
        faults.append("nothing was acknowledged to the publisher after the kill")
    took = sorted((user.reached or float("inf")) - start for user in killed) or [float("inf")]
    values, more = verdict(users, published)
    times = {
        "users of the shard": len(killed),
        "50 %": _share(took, 0.50),
        "99 %": _share(took, 0.99),
        "all": took[-1],
    }
    late = sum(user.late for user in users)
    elsewhere = sum(user.reached_on not in (index, -1) for user in killed)
    rest = {
        "hello late": late,
        "on the other": elsewhere,
        "handed back": handed_back,
        "others cut": cut,
        "events": len(published),
    }
    return times | values | rest, faults + more


def _share(ordered: list[float], share: float) -> float:
    """When so large a share of them was there."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def _keep_publishing(system: Solowire, published: list[int]) -> None:
    """By the clock, one event a request, again with the same id until it is acknowledged."""
    start, loop = time.monotonic(), asyncio.get_running_loop()
    number = 0
    while True:
        body = event(0, number, time.time_ns(), About(0, top=f'"id":"bench-{number}",'.encode()))
        while True:
            try:
                # Shielded: what has been sent is acknowledged, so that `published` holds all there is.
                request = loop.create_task(ask(system.port, "/v1/events", system.token, body))
                published.extend(_acknowledged(await _finish(request, published)))
                break
            except Later as later:
                await asyncio.sleep(later.seconds)
            except OSError:
                await asyncio.sleep(BACKOFF_MIN_S)
        number += 1
        await asyncio.sleep(max(0.0, start + number / PER_SECOND - time.monotonic()))


async def _finish(request: asyncio.Task[bytes], published: list[int]) -> bytes:
    try:
        return await asyncio.shield(request)
    except asyncio.CancelledError:
        published.extend(_acknowledged(await request))
        raise
