"""Queries in figures: the `dns_query_stats` of one server, from the queries themselves.

Pure: queries in, the data of an event out; time is an argument. The names and clients are counted in bounded memory,
so a count of them is what is certain at least; all other figures are exact.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from solowire.algorithms.heavy_hitters import HeavyHitters
from solowire.sources.bind9.queries.query_observer import ObservedQuery

EVENT_TYPE = "dns_query_stats"

TOP_ROWS = 10
KIND_ROWS = 20
COUNTED = 1_000
"""Names, and clients, that are counted at a time: whatever is more than a thousandth of all is among them."""
OTHER = "other"
"""What types beyond KIND_ROWS are summed up as; a client can ask for 65,536 of them."""


class QueryStatistics:
    """Sums up queries from one `take_figures` to the next. It is a `QueryObserver`."""

    def __init__(self, now: float) -> None:
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._began_at = now
        self._types: Counter[str] = Counter()
        self._rcodes: Counter[str | None] = Counter()
        self._names: HeavyHitters[str] = HeavyHitters(COUNTED)
        self._clients: HeavyHitters[str] = HeavyHitters(COUNTED)

    def observe_query(self, query: ObservedQuery) -> None:
        """Takes in one query."""
        self._types[query.query_type] += 1
        self._rcodes[query.rcode] += 1
        self._names.add(query.query_domain)
        self._clients.add(query.client_ip)

    def take_figures(self, now: float, dropped: int = 0) -> dict[str, Any]:
        """The data of an event, of the time since the last call; `now`: seconds by a clock that is not set.

        dropped: queries of this time that were not seen, as far as that is known.
        """
        seconds = max(now - self._began_at, 0.001)
        total = self._types.total()
        rcodes = {rcode: count for rcode, count in self._rcodes.items() if rcode is not None}
        figures = {
            "queries_per_second": round(total / seconds, 1),
            "window_s": round(seconds, 3),
            "total_queries": total,
            "query_types": bound_kinds(self._types),
            "rcodes": bound_kinds(Counter(rcodes)),
            "top_names": dict(self._names.top(TOP_ROWS)),
            "top_clients": dict(self._clients.top(TOP_ROWS)),
            "dropped": dropped,
        }
        self._begin(now)
        return figures


def bound_kinds(counts: Counter[str]) -> dict[str, int]:
    """The commonest, and what the others are together."""
    common = dict(counts.most_common(KIND_ROWS))
    if others := counts.total() - sum(common.values()):
        common[OTHER] = others
    return common
