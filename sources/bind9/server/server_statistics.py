"""The figures of named's statistics channel: what an answer says, and what two of them say of the time between.

Pure: bytes in, values out. Counters count from named's start: where one is lower than before, or the start is another
one, named was restarted, and there is no time between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from solowire.errors import StatisticsError
from solowire.sources.bind9.queries.query_statistics import bound_kinds

_Counter = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Counters = dict[str, _Counter]
_INTERNAL_VIEW = "_bind"


class _Resolver(msgspec.Struct):
    cachestats: _Counters = {}


class _View(msgspec.Struct):
    resolver: _Resolver = msgspec.field(default_factory=_Resolver)


class _Server(msgspec.Struct, rename="kebab"):
    boot_time: str | None = None
    config_time: str | None = None
    current_time: str | None = None
    version: str | None = None
    opcodes: _Counters = {}
    rcodes: _Counters = {}
    qtypes: _Counters = {}
    nsstats: _Counters = {}
    dnstapstats: _Counters = {}
    views: dict[str, _View] = {}


class _MemoryUse(msgspec.Struct, rename="pascal"):
    in_use: _Counter | None = None
    total_use: _Counter | None = None


class _Memory(msgspec.Struct):
    memory: _MemoryUse = msgspec.field(default_factory=_MemoryUse)


_server_decoder = msgspec.json.Decoder(_Server)
_memory_decoder = msgspec.json.Decoder(_Memory)


class ServerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says. Times are RFC 3339; counters are since `boot_time`. cache: of all views together."""

    version: str | None
    boot_time: str | None
    config_time: str | None
    current_time: str | None
    query_count: int
    rcodes: Mapping[str, int]
    query_types: Mapping[str, int]
    requests: Mapping[str, int]
    dnstap_dropped_count: int
    cache: Mapping[str, int]


def parse_server(body: bytes) -> ServerFigures:
    """An answer of `/json/v1/server`. Raises StatisticsError."""
    server: _Server = _decode(_server_decoder, body)
    if server.boot_time is None and not server.opcodes:
        raise StatisticsError("the answer has no figures of a name server")
    cache: Counter[str] = Counter()
    for name, view in server.views.items():
        if name != _INTERNAL_VIEW:
            cache.update(view.resolver.cachestats)
    return ServerFigures(
        version=server.version,
        boot_time=_check_time(server.boot_time),
        config_time=_check_time(server.config_time),
        current_time=_check_time(server.current_time),
        query_count=server.opcodes.get("QUERY", 0),
        rcodes=server.rcodes,
        query_types=server.qtypes,
        requests=server.nsstats,
        dnstap_dropped_count=server.dnstapstats.get("DNSTAPdropped", 0),
        cache=cache,
    )


def parse_memory(body: bytes) -> int | None:
    """What `/json/v1/mem` says is in use, in bytes; None if it doesn't. Raises StatisticsError."""
    found: _Memory = _decode(_memory_decoder, body)
    memory = found.memory
    return memory.in_use if memory.in_use is not None else memory.total_use


def is_restarted(before: ServerFigures, after: ServerFigures) -> bool:
    """Whether named was started anew between two answers."""
    return before.boot_time != after.boot_time or after.query_count < before.query_count


def make_query_figures(before: ServerFigures, after: ServerFigures, window_s: float) -> dict[str, Any]:
    """The data of a `dns_query_stats` for the time between two answers, of `window_s` seconds."""
    total = after.query_count - before.query_count
    figures: dict[str, Any] = {
        "queries_per_second": round(total / max(window_s, 0.001), 1),
        "window_s": round(window_s, 3),
        "total_queries": total,
        "query_types": bound_kinds(_subtract(after.query_types, before.query_types)),
        "rcodes": bound_kinds(_subtract(after.rcodes, before.rcodes)),
        "dropped": max(0, after.requests.get("QryDropped", 0) - before.requests.get("QryDropped", 0)),
        "blocked_queries": max(0, after.requests.get("RPZRewrites", 0) - before.requests.get("RPZRewrites", 0)),
    }
    if (clients := after.requests.get("RecursClients")) is not None:
        figures["recursive_clients"] = clients
    return figures


def make_measured(before: ServerFigures | None, after: ServerFigures, memory_bytes: int | None) -> dict[str, Any]:
    """The fields of a `bind_status` that are measured. before: an answer of the same run of named, if there is one."""
    found: dict[str, Any] = {
        "boot_time": after.boot_time,
        "config_time": after.config_time,
        "uptime_s": _measure_s(after.boot_time, after.current_time),
        "memory_bytes": memory_bytes,
        "hit_ratio": _measure_hit_ratio({} if before is None else before.cache, after.cache),
    }
    if after.cache:
        found["cache_entries"] = after.cache.get("CacheNodes", 0)
        found["cache_bytes"] = after.cache.get("TreeMemInUse", 0) + after.cache.get("HeapMemInUse", 0)
    return {name: value for name, value in found.items() if value is not None}


def _measure_hit_ratio(before: Mapping[str, int], after: Mapping[str, int]) -> float | None:
    hits, misses = (after.get(name, 0) - before.get(name, 0) for name in ("QueryHits", "QueryMisses"))
    if hits < 0 or misses < 0 or hits + misses == 0:
        return None
    return round(100 * hits / (hits + misses), 1)


def _measure_s(since: str | None, until: str | None) -> float | None:
    if since is None or until is None:
        return None
    try:
        return max(0.0, round((datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds(), 1))
    except TypeError:  # one of them names no zone
        return None


def _check_time(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return text


def _subtract(after: Mapping[str, int], before: Mapping[str, int]) -> Counter[str]:
    """What has been added. A type is named for 64 characters at most."""
    return Counter(
        {name[:64]: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    )


def _decode(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise StatisticsError(f"the answer can't be read: {error}") from None
