"""The figures of queries: exact where they can be, bounded where clients choose the values."""

from __future__ import annotations

import msgspec

from solowire.domains.dns.payloads import DnsQueryStats
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.queries.query_statistics import KIND_ROWS, QueryStatistics


def test_a_window_s_queries_are_summed_up_and_the_next_begins_empty() -> None:
    statistics = QueryStatistics(100.0)
    for number in range(30):
        client = f"192.0.2.{number % 3}"
        statistics.observe_query(ObservedQuery(0.0, client, "a.example", "A", "NOERROR" if number else None))
    figures = statistics.take_figures(110.0, dropped=4)
    assert figures == {
        "queries_per_second": 3.0,
        "window_s": 10.0,
        "total_queries": 30,
        "query_types": {"A": 30},
        "rcodes": {"NOERROR": 29},
        "top_names": {"a.example": 30},
        "top_clients": {f"192.0.2.{n}": 10 for n in range(3)},
        "dropped": 4,
    }
    msgspec.convert(figures, DnsQueryStats)
    assert statistics.take_figures(111.0)["total_queries"] == 0


def test_types_beyond_the_commonest_are_one_row() -> None:
    statistics = QueryStatistics(0.0)
    for number in range(1000):
        statistics.observe_query(ObservedQuery(0.0, "192.0.2.1", ".", f"TYPE{number}"))
    types = statistics.take_figures(1.0)["query_types"]
    assert len(types) == KIND_ROWS + 1
    assert sum(types.values()) == 1000
