"""What the security rules cost for each query."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random

from bench.measure import Round, make_row
from bench.registry import Length, benchmark
from bench.report import Case
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.security.rule_engine import RuleEngine
from solowire.sources.bind9.security.security_rule import DEFAULT_RULES, parse_rules

QUERIES = 200_000
RATE = 20_000
TARGET_US = 5.0
ROUNDS = 3

Client = Callable[[Random], str]

CROWDS: dict[str, tuple[Client, str]] = {
    "500 clients": (lambda chance: f"10.0.{chance.randrange(2)}.{chance.randrange(250)}", "NOERROR"),
    "500 clients, IPv6": (lambda chance: f"2001:db8:{chance.randrange(500):x}::1", "NOERROR"),
    "invented addresses": (lambda chance: ".".join(str(chance.randrange(250)) for _ in range(4)), "NXDOMAIN"),
    "invented addresses, IPv6": (
        lambda chance: f"2001:db8:{chance.randrange(65536):x}:{chance.randrange(65536):x}::1",
        "NXDOMAIN",
    ),
    "one flood": (lambda chance: "10.0.0.1", "NXDOMAIN"),
}


@benchmark(in_process=True)
def security_rules(case: Case, length: Length) -> None:
    """What the built-in security rules cost for each query, by who asks.

    In this process: {QUERIES:,} queries, {RATE:,} a second by their times, for names that differ. Of one flood each
    query is above a threshold; of invented addresses each is a client's first. The least of {ROUNDS} rounds.
    """
    rules = parse_rules(DEFAULT_RULES, "built in")
    for crowd, (client, rcode) in CROWDS.items():
        queries = list(_make_queries(client, rcode))
        values = {
            "CPU per query, µs": min(_measure_us(RuleEngine(rules, time.monotonic), queries) for _ in range(ROUNDS))
        }
        case.rows.append(make_row(crowd, [Round(values)]))
        case.hold(case.rows[-1], "CPU per query, µs", at_most=TARGET_US)


def _make_queries(client: Client, rcode: str) -> Iterator[ObservedQuery]:
    chance = Random(1)
    for number in range(QUERIES):
        yield ObservedQuery(1.8e9 + number / RATE, client(chance), f"w{number}.example.com", "A", rcode)


def _measure_us(engine: RuleEngine, queries: list[ObservedQuery]) -> float:
    begun = time.process_time()
    for query in queries:
        engine.observe_query(query)
    return (time.process_time() - begun) / len(queries) * 1e6
