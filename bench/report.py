"""What the benchmarks found, as Markdown for docs/performance.md and as JSON.

A case holds rows of measures and the targets they are held against. A row with a fault is void: its numbers
are shown, struck through, and no target counts as met by it.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent

HOW = """\
Each case starts its own system (`solowire up` with one shard, everything else at its defaults, on a data
directory of its own) and uses only its outside contract: `POST /v1/connect`, the WebSocket, `POST
/v1/events`. The shard is pinned to one core; the gateway, the router, the load generator and the receiver
share another, so latencies include whatever time these four take from each other. CPU time is the kernel's
account of a whole process, all threads, user and system; on loopback the sender also pays for the receiver's
side of TCP. Latency runs from the moment before the publisher's HTTP request is written to the moment the
receiver has read the event from its socket, both on one clock, and is taken on sampled connections. Events
are counted on every connection, and their offsets are checked on the sampled ones. A row is **void** if an
event is missing, repeated or out of order, if a connection ends, if the publisher falls behind its schedule,
if its core is full, or if a process of the system was restarted. Every number is the median over rounds
after a warm-up, with the lowest and highest round in brackets."""


@dataclass(frozen=True)
class Measure:
    """The median over rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def over(cls, values: Iterable[float], unit: str = "") -> Measure:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), unit)

    def __str__(self) -> str:
        middle, low, high = (_number(value) for value in (self.median, self.low, self.high))
        spread = "" if low == high else f" [{low}–{high}]"
        return f"{middle}{' ' if self.unit else ''}{self.unit}{spread}"


@dataclass
class Row:
    name: str
    measures: dict[str, Measure]
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """met: None if the row it is measured in is void."""

    what: str
    wanted: str
    found: str
    met: bool | None


@dataclass
class Case:
    name: str
    about: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def hold(self, row: Row, measure: str, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Holds one measure's median against a limit."""
        found = row.measures[measure]
        limit = at_least if at_least is not None else at_most
        assert limit is not None
        met = found.median >= limit if at_least is not None else found.median <= limit
        unit = f" {found.unit}" if found.unit else ""
        self.targets.append(
            Target(
                f"{self.name}: {measure}",
                f"{'≥' if at_least is not None else '≤'} {_number(limit)}{unit}",
                str(found),
                None if row.faults else met,
            )
        )

    @property
    def void(self) -> bool:
        return any(row.faults for row in self.rows)


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def environment(command: list[str], quick: bool) -> dict[str, str]:
    """The machine, the versions, the moment and the command."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("granian", "uvloop", "pyzmq", "msgspec", "litestar")},
        "revision": _revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "length": "quick: too short to be quoted" if quick else "full",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def markdown(cases: list[Case], facts: dict[str, str]) -> str:
    lines = [
        "# Performance",
        "",
        "Generated by `python -m bench.fanout`; do not edit. Run it again to replace it.",
        "",
        "## What is measured, and how",
        "",
        HOW,
        "",
        "## Targets",
        "",
        "| measure | target | found | met |",
        "| --- | --- | --- | --- |",
    ]
    for target in (target for case in cases for target in case.targets):
        met = "void" if target.met is None else "yes" if target.met else "**no**"
        lines.append(f"| {target.what} | {target.wanted} | {target.found} | {met} |")
    for case in cases:
        lines += ["", f"## {case.name}", "", case.about, ""]
        columns = list(dict.fromkeys(name for row in case.rows for name in row.measures))
        if columns:
            lines += [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        for row in case.rows:
            cells = [str(row.measures[name]) if name in row.measures else "–" for name in columns]
            if row.faults:
                cells = [f"~~{cell}~~" for cell in cells]
            lines.append(f"| {row.name}{' (void)' if row.faults else ''} | {' | '.join(cells)} |")
        for row in case.rows:
            lines += [f"\nVoid, {row.name}: {fault}." for fault in row.faults[:5]]
        lines += [f"\n{remark}" for remark in case.remarks]
    lines += ["", "## Machine and versions", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def write(cases: list[Case], facts: dict[str, str], markdown_file: Path | None, json_file: Path | None) -> None:
    text = markdown(cases, facts)
    if markdown_file:
        markdown_file.parent.mkdir(parents=True, exist_ok=True)
        markdown_file.write_text(text)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode({"facts": facts, "cases": cases}), indent=2))
    sys.stdout.write(text)
