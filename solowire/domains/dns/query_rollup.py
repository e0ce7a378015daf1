"""A flood of queries in figures: the data of the one `dns_query_stats` that stands for many `dns_query_log`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

TOP_ROWS = 10
KIND_ROWS = 20
_MAX_NAME_BYTES = 400  # as JSON; a DNS name in presentation form can be longer, but that is one nobody looks for


def roll_up_queries(queries: Sequence[Mapping[str, str]], seconds: float) -> dict[str, Any]:
    """The sum of queries, of which these are the attributes, and which came within `seconds`."""
    seconds = max(round(seconds, 3), 0.001)
    return {
        "queries_per_second": round(len(queries) / seconds, 1),
        "window_s": seconds,
        "total_queries": len(queries),
        "blocked_queries": sum(1 for query in queries if query.get("blocked") == "true"),
        "query_types": _table([query.get("query_type") for query in queries], KIND_ROWS),
        "rcodes": _table([query.get("rcode") for query in queries], KIND_ROWS),
        "top_names": _table([query.get("query_domain") for query in queries], TOP_ROWS),
        "top_clients": _table([query.get("client_ip") for query in queries], TOP_ROWS),
    }


def _table(values: Sequence[Hashable], rows: int) -> dict[str, int]:
    """The commonest values, commonest first."""
    counts = Counter(values)
    counts.pop(None, None)
    common = ((str(value), n) for value, n in counts.most_common(2 * rows))
    return dict(islice(((v, n) for v, n in common if len(msgspec.json.encode(v)) <= _MAX_NAME_BYTES), rows))
