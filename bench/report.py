"""What the benchmarks found, as Markdown for docs/performance.md and as JSON.

A case holds rows of measures and the targets they are held against. A row with a fault is void: its numbers
are shown, struck through, and no target counts as met by it.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from bench.machine import CORES, LOAD_CORES, SERVER_CORES

ROOT = Path(__file__).resolve().parent.parent

HOW = """\
Each case starts its own servers, on data directories of their own and with their usual settings, and uses only their
outside contracts. Where there are two cores or more, all processes of a server run on cores of their own, apart from
the load's: the publisher in this process, and the receiver, a C program that holds all connections
(`bench/receiver.c`) and is the same for every server. CPU time is the kernel's account of all processes of a server,
all threads, user and system; on loopback the sender also pays for the receiver's side of TCP. Latency runs from the
moment at which the publisher was *due* to send an event to the moment at which the receiver read it from its socket,
both on one clock, of **every** delivery, in an HdrHistogram. **Every** event is checked on **every** connection by a
number that it carries: none may be lost, repeated, out of order or somebody else's. A row is **void** if that fails, if
a connection ends that should not, if the publisher falls behind its schedule by its own fault, if a core of the load is
over 90 % busy, or if a process of the server was restarted. A server that can't keep up is not void: it shows fewer
events per second than were asked for, and the latency that this has. Every number is the median over rounds after a
warm-up, with the lowest and highest round in brackets. Where servers are compared, their rounds take turns, so that
whatever else the machine does meets all of them."""


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
                f"{self.name}, {row.name}: {measure}",
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


def environment(command: list[str], quick: bool, versions: dict[str, str]) -> dict[str, str]:
    """The machine, the versions, the moment and the command."""
    return {
        "cpu": _cpu_model(),
        "cores": f"{len(CORES)}, servers on {_list(SERVER_CORES)}, load on {_list(LOAD_CORES)}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("granian", "uvloop", "pyzmq", "msgspec", "litestar")},
        **versions,
        "revision": _revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "length": "quick: too short to be quoted" if quick else "full",
    }


def _list(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def version(name: str) -> str:
    """Of a Python package."""
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
        "Generated by `make bench`; do not edit. Run it again to replace it.",
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


def as_json(cases: list[Case], facts: dict[str, str]) -> bytes:
    return msgspec.json.format(msgspec.json.encode({"facts": facts, "cases": cases}), indent=2)


def from_json(text: bytes) -> list[Case]:
    """The cases of a run that was written by `as_json`. Raises msgspec.ValidationError."""
    return msgspec.convert(msgspec.json.decode(text)["cases"], list[Case])
