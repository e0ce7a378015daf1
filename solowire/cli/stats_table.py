"""The shards as a table for people: a row for each, one for all, units, and colours for what should be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


class Column(NamedTuple):
    """One column of the table.

    title: of one or two lines. key: in a shard's statistics. warn, alarm: from which number on it is coloured.
    """

    title: str
    key: str
    write: Callable[[Any], str]
    warn: float = float("inf")
    alarm: float = float("inf")
    kind: type | tuple[type, ...] = (int, float)


def format_number(value: float) -> str:
    """Six characters at the most."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if sign == 'k' else size):.{0 if sign == 'k' and value >= 1e5 else 1}f}{sign}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def format_size(value: float) -> str:
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= of:
            return f"{value / of:.{0 if value / of >= 100 else 1}f} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float | None) -> str:
    if value is None or value == 0:
        return "–" if value is None else "0"
    if value < 1:
        return f"{1000 * value:.{0 if value >= 0.01 else 1}f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def format_share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


COLUMNS = (
    Column("shard", "shard", str, kind=(int, str)),
    Column("address", "address", str, kind=str),
    Column("connections", "connections", format_number),
    Column("feeds", "feeds", format_number),
    Column("lagging", "lagging", format_number, warn=1),
    Column("lag", "max_connection_lag_s", format_seconds, warn=1.0, alarm=10.0),
    Column("events\nper s", "events_per_s", format_number),
    Column("deliveries\nper s", "deliveries_per_s", format_number),
    Column("frames\nper s", "frames_per_s", format_number),
    Column("sent\nper s", "sent_bytes_per_s", format_size),
    Column("latency\np50", "p50", format_seconds, warn=0.5, alarm=2.0, kind=(int, float, type(None))),
    Column("\np95", "p95", format_seconds, warn=0.5, alarm=2.0, kind=(int, float, type(None))),
    Column("\np99", "p99", format_seconds, warn=0.5, alarm=2.0, kind=(int, float, type(None))),
    Column("memory", "memory_bytes", format_size),
    Column("loop\nlag", "event_loop_lag_s", format_seconds, warn=0.1, alarm=0.5),
    Column("lease\nused", "lease", format_share, warn=0.8, alarm=0.95, kind=(int, float, type(None))),
    Column("behind", "lag_offsets", format_number, warn=1_000, alarm=100_000),
)
GIVEN_UP = (
    "address", "frames_per_s", "feeds", "p50", "lease", "sent_bytes_per_s", "memory_bytes", "p95", "event_loop_lag_s",
)  # fmt: skip
"""Where the table is too wide for a terminal these columns go, the first first."""


def is_shard(row: object) -> bool:
    """Whether `row` has all that the table shows."""
    if not isinstance(row, dict) or not isinstance(row.get("latency_s"), dict):
        return False
    flat = _flat(row)
    return all(column.key in flat and isinstance(flat[column.key], column.kind) for column in COLUMNS)


def render_table(shards: list[dict[str, Any]], whole: Row, width: int) -> Table:
    """A row for each shard, and `whole` where there are several. width: characters that it may take, if it can."""
    rows = [_flat(shard) for shard in shards]
    if len(rows) > 1 and isinstance(whole.get("latency_s"), dict):
        rows.append({**_flat(whole), "shard": "all", "address": ""})
    columns = _fitting(rows, width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), header_style="bold", caption=_caption(shards), highlight=False)
    table.caption_justify = "left"
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for at, row in enumerate(rows):
        last = at == len(shards) - 1 and len(rows) > len(shards)
        table.add_row(*(_cell(column, row) for column in columns), end_section=last)
    return table


def _flat(row: Row) -> dict[str, Any]:
    used, granted = row.get("lease_used"), row.get("lease_granted")
    lease = used / granted if isinstance(used, int) and isinstance(granted, int) and granted > 0 else None
    return {**row, **row["latency_s"], "lease": lease}


def _cell(column: Column, row: Row) -> Text:
    value = row.get(column.key)
    if value is None and type(None) not in (column.kind if isinstance(column.kind, tuple) else (column.kind,)):
        return Text("")
    style = ""
    if isinstance(value, (int, float)):
        style = "bold red" if value >= column.alarm else "yellow" if value >= column.warn else ""
    if column.key == "shard" and row.get("draining"):
        style = "dim"
    return Text(column.write(value), style)  # Text: an address in brackets is no markup


def _fitting(rows: list[dict[str, Any]], width: int) -> list[Column]:
    columns = list(COLUMNS)
    for key in GIVEN_UP:
        if sum(_width(column, rows) + 1 for column in columns) + 1 <= width:
            break
        columns = [column for column in columns if column.key != key]
    return columns


def _width(column: Column, rows: list[dict[str, Any]]) -> int:
    return max(*(len(line) for line in column.title.split("\n")), *(len(_cell(column, row)) for row in rows), 0)


def _caption(shards: list[dict[str, Any]]) -> Text | None:
    """What no column has room for."""
    notes = [f"shard {s['shard']} is being drained" for s in shards if s.get("draining")]
    notes += [
        f"shard {s['shard']}: {name} is aggregated for {feeds:,} feeds"
        for s in shards
        for name, feeds in (s.get("aggregating") or {}).items()
    ]
    return Text("\n".join(notes), "yellow") if notes else None
