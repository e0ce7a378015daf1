"""The table of `solowire stats`: it fits its terminal, writes numbers shortly, and points at what is wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from solowire.cli.stats_table import format_number, format_seconds, format_size, is_shard, render_table


def shard(index: int, **more: Any) -> dict[str, Any]:
    return {
        "shard": index, "address": f"127.0.0.1:{8001 + index}", "connections": 9876, "feeds": 1234, "lagging": 0,
        "max_connection_lag_s": 0.0, "events_per_s": 1234.5, "deliveries_per_s": 1234567.8, "frames_per_s": 24567.1,
        "sent_bytes_per_s": 123456789.0, "latency_s": {"p50": 0.0044, "p95": 0.018, "p99": 0.0221},
        "event_loop_lag_s": 0.043, "memory_bytes": 1_700_000_000, "lease_used": 9876, "lease_granted": 12_000,
        "lag_offsets": 0, "draining": False, "aggregating": {}, **more,
    }  # fmt: skip


WORST = shard(
    255, address="[2001:db8::1234:5678]:65535", connections=1_000_000, lagging=12_345, max_connection_lag_s=5999.0,
    event_loop_lag_s=59.94, lag_offsets=4_999_999, latency_s={"p50": 59.94, "p95": 65.5, "p99": 65.5},
)  # fmt: skip


def drawn(*shards: dict[str, Any], width: int, colours: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colours, color_system="standard" if colours else None)
    console.print(render_table(list(shards), shard(-1, connections=20_000), width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_it_fits_its_terminal(width: int) -> None:
    """No line is longer than the terminal and no number is cut, whatever the numbers."""
    text = drawn(shard(0), WORST, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for wanted in ("shard", "connections", "lag", "deliveries", "p99", "behind", "255", "1.0M", "5.0M"):
        assert wanted in text


def test_all_that_matters_fits_120_columns() -> None:
    """Rates, latency, lag, memory, loop lag and lease use are there in a usual terminal."""
    text = drawn(shard(0), shard(1), width=120)
    for wanted in ("events", "sent", "p50", "p95", "p99", "lagging", "memory", "loop", "lease", "82 %", "1.6 GiB"):
        assert wanted in text


def test_a_wide_terminal_shows_every_number() -> None:
    """Where there is room nothing is given up: each number of a shard stands in its row, in this order."""
    row = drawn(shard(0, max_connection_lag_s=0.25, lagging=3, lag_offsets=7), width=200).rstrip().splitlines()[-1]
    values = ["0", "127.0.0.1:8001", "9,876", "1,234", "3", "250 ms", "1,234", "1.2M", "24.6k", "118 MiB"]
    assert row.split() == " ".join([*values, "4.4 ms 18 ms 22 ms 1.6 GiB 43 ms 82 % 7"]).split()


def test_a_single_shard_has_no_row_for_all() -> None:
    """The sum of one is not told twice."""
    assert "all" not in drawn(shard(0), width=120).split()
    assert "all" in drawn(shard(0), shard(1), width=120).split()


def test_what_is_wrong_has_a_colour() -> None:
    """A long wait is red, a lagging connection yellow, and what is well has none."""
    red, yellow = "\x1b[1;31m", "\x1b[33m"
    assert red not in drawn(shard(0, lease_used=1), width=200, colours=True)
    assert yellow not in drawn(shard(0, lease_used=1), width=200, colours=True)
    text = drawn(shard(0, lagging=3, max_connection_lag_s=12.0), width=200, colours=True)
    assert f"{red}12.0 s" in text
    assert f"{yellow}      3" in text


def test_what_no_column_has_room_for_stands_below() -> None:
    """A shard that is drained, or sums up telemetry, is named."""
    text = drawn(shard(0, draining=True), shard(1, aggregating={"dns_query_log": 12}), width=120)
    assert "shard 0 is being drained" in text
    assert "shard 1: dns_query_log is aggregated for 12 feeds" in text


def test_an_unknown_latency_and_lease_are_a_dash() -> None:
    """What isn't known is no 0."""
    quiet = shard(0, latency_s={"p50": None, "p95": None, "p99": None}, lease_granted=0)
    assert drawn(quiet, width=120).count("–") == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (9_999, "9,999"),
        (12_345, "12.3k"),
        (456_789, "457k"),
        (1_234_567, "1.2M"),
        (2e9, "2.0G"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """Six characters are enough for any number."""
    assert format_number(value) == text


def test_times_and_sizes_have_units() -> None:
    """A number is read without looking up its unit."""
    assert [format_seconds(s) for s in (None, 0, 0.0004, 0.0221, 1.5, 600)] == [
        "–",
        "0",
        "0.4 ms",
        "22 ms",
        "1.5 s",
        "10 min",
    ]
    assert [format_size(b) for b in (12, 2048, 74_000_000, 3 * 2**30)] == ["12 B", "2.0 KiB", "70.6 MiB", "3.0 GiB"]


@pytest.mark.parametrize(
    "row", [None, 1, {}, {"shard": 1}, {**shard(0), "latency_s": 1}, {**shard(0), "feeds": "x"}, {"latency_s": {}}]
)
def test_another_programs_answer_is_no_shard(row: object) -> None:
    """What lacks a column is told apart before it is drawn."""
    assert is_shard(shard(0))
    assert not is_shard(row)
