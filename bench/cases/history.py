"""What questions about history cost those who publish, and how soon one of them is answered."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from threading import Thread
from typing import Any

from bench.machine import HOST, BenchError
from bench.measure import Round, join_slices, make_row
from bench.publisher import Wire
from bench.receiver import make_histogram
from bench.registry import Length, benchmark
from bench.report import Case
from bench.solowire_system import NO_PUBLISH_LIMIT, Solowire

QUESTIONS, EVENTS, QUICK_EVENTS, BATCH, ZONES = 10, 500_000, 50_000, 1000, 5_000
PER_SECOND, SLICES, RARE_TIMES = 100, 4, 5
ANSWER_SECONDS = 10.0
TARGET_RATIO, TARGET_RARE_MS = 1.5, 50.0
RARE = "rare.test"
NO_LIMIT = {**NO_PUBLISH_LIMIT, "HISTORY__BURST": "1000000"}
ALL_ZONES = "filter=%7B%22zone%22%3A%5B%22test%22%5D%7D"
RARE_ONES = f"types=record_updated,custom.*&filter=%7B%22zone%22%3A%5B%22{RARE}%22%5D%7D"
ASKED = ("types=*", "types=*&order=desc", "types=record_updated", "types=custom.plain", ALL_ZONES)


@benchmark()
def history(case: Case, length: Length) -> None:
    """Ten questions about history at a time, and what publishers feel of them.

    A log of {EVENTS:,} events of {ZONES:,} zones. A publisher sends {PER_SECOND} single events a second, in slices with
    and without {QUESTIONS} users who ask for page after page of all of it, by types, zones and nothing. `ratio` is that
    of the p99 of its answers. `rare` is one question alone, for ten events of one zone: from its request to its answer.
    """
    with Solowire(settings=NO_LIMIT) as system, closing(system.wires(1)[0]) as wire:
        _fill(wire, QUICK_EVENTS if length.is_quick else EVENTS)
        rounds = []
        for _ in range(length.rounds):
            without, beside = [], []
            for _ in range(SLICES):
                without.append(_publish(wire, length.seconds))
                with _questions(system) as pages:
                    beside.append(_publish(wire, length.seconds))
                    if not pages.value:
                        beside[-1].faults.append("no question was answered")
            quiet, busy = join_slices(without), join_slices(beside)
            values = {"p99 without": quiet.values["p99"], "p99": busy.values["p99"], "p50": busy.values["p50"]}
            values["ratio"] = values["p99"] / values["p99 without"]
            values["rare"] = min(_ask_rare(system) for _ in range(RARE_TIMES))
            rounds.append(Round(values, quiet.faults + busy.faults))
        case.rows.append(make_row(f"{QUESTIONS} questions", rounds, units={"p99 without": "ms", "rare": "ms"}))
        case.hold(case.rows[0], "ratio", at_most=TARGET_RATIO)
        case.hold(case.rows[0], "rare", at_most=TARGET_RARE_MS)


def _fill(wire: Wire, events: int) -> None:
    rare = {events * n // 10 for n in range(10)}
    for first in range(0, events, BATCH):
        numbers = range(first, first + BATCH)
        wire.ask([_make_event(n, RARE if n in rare else f"z{n * 7919 % ZONES}.test") for n in numbers])


def _make_event(number: int, zone: str) -> bytes:
    name = "record_updated" if number % 2 else "custom.plain"
    return json.dumps({"type": name, "data": {"zone": zone, "name": f"n{number}", "type": "A"}}).encode()


def _publish(wire: Wire, seconds: float) -> Round:
    """Single events, each at its time; one that has to wait for the last counts from when it was due."""
    took = []
    due = time.perf_counter()
    for number in range(int(seconds * PER_SECOND)):
        time.sleep(max(0.0, due - time.perf_counter()))
        wire.ask([_make_event(number, "now.test")])
        took.append(time.perf_counter() - due)
        due += 1 / PER_SECOND
    return Round({}, [], make_histogram((int(s * 1e6), 1) for s in took))


@contextmanager
def _questions(system: Solowire) -> Iterator[Any]:
    """As many users ask as long as it lasts, from a process of their own; how many pages they got."""
    context = multiprocessing.get_context("fork")
    pages = context.Value("i", 0)
    tokens = [system.sign(f"asker-{n}") for n in range(QUESTIONS)]
    child = context.Process(target=_ask_on, args=(system.port, tokens, pages))
    child.start()
    end = time.monotonic() + ANSWER_SECONDS
    while not pages.value and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield pages
    finally:
        child.terminate()
        child.join()


def _ask_on(port: int, tokens: list[str], pages: Any) -> None:
    os.nice(19)  # they share their core with the publisher, and it is the servers that are measured
    for number, token in enumerate(tokens):
        Thread(target=_ask_pages, args=(port, token, ASKED[number % len(ASKED)], pages), daemon=True).start()
    while True:
        time.sleep(1.0)


def _ask_pages(port: int, token: str, query: str, pages: Any) -> None:
    after = ""
    while True:
        status, body = _ask(port, token, query + after)
        if status != 200:
            raise BenchError(f"a question was answered with {status}: {body[:200]!r}")
        with pages.get_lock():
            pages.value += 1
        end = body[-200:].decode()
        found = end.partition('"next":"')[2].partition('"')[0]
        after = "" if '"complete":true' in end else f"&after={found}"


def _ask_rare(system: Solowire) -> float:
    """Milliseconds that ten events of one zone took."""
    token = system.sign("alone")
    began = time.perf_counter()
    status, body = _ask(system.port, token, RARE_ONES)
    took = time.perf_counter() - began
    if status != 200 or len(json.loads(body)["events"]) != 10:
        raise BenchError(f"ten events were asked for: {status} {body[:200]!r}")
    return took * 1000


def _ask(port: int, token: str, query: str) -> tuple[int, bytes]:
    with closing(HTTPConnection(HOST, port, timeout=30)) as connection:
        connection.request("GET", f"/v1/events?{query}", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
