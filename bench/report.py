"""What the benchmarks found, as Markdown for a page of docs/ and as JSON.

A case holds rows of measures and the targets they are held against. A row with a fault is void: its numbers
are shown, struck through, and no target counts as met by it.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec
import zmq

from bench.machine import CORES, LOAD_CORES, SERVER_CORES

ROOT = Path(__file__).resolve().parent.parent
HEADS = Path(__file__).resolve().parent / "heads"
"""What stands above the targets of each page."""
NOTES = ROOT / "docs" / "performance-notes.md"
"""Written by hand: by how much a target is missed, and why. It stands below the targets of docs/performance.md."""


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
    """is_met: None if the row it is measured in, or compared with, is void, or if there is none."""

    what: str
    wanted: str
    found: str
    is_met: bool | None


@dataclass
class Case:
    name: str
    about: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def hold(
        self,
        row: Row,
        measure: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        called: str = "",
        over: Row | None = None,
    ) -> None:
        """Holds one measure's median against a limit. called: what the target is called, if not by row and measure.

        over: the row that the measure is a ratio to: if that is void, so is the target.
        """
        found = row.measures[measure]
        limit = at_least if at_least is not None else at_most
        assert limit is not None
        met = found.median >= limit if at_least is not None else found.median <= limit
        unit = f" {found.unit}" if found.unit else ""
        self.targets.append(
            Target(
                f"{self.name}: {called}" if called else f"{self.name}, {row.name}: {measure}",
                f"{'≥' if at_least is not None else '≤'} {_number(limit)}{unit}",
                str(found),
                None if row.faults or (over and over.faults) else met,
            )
        )

    def cannot_hold(self, row: str, measure: str, wanted: str, why: str) -> None:
        """For a row that is missing: its target must not vanish."""
        self.targets.append(Target(f"{self.name}, {row}: {measure}", wanted, why, None))

    @property
    def is_void(self) -> bool:
        return any(row.faults for row in self.rows)

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def collect_facts(command: Sequence[str], quick: bool, versions: Mapping[str, str]) -> dict[str, str]:
    """The machine, the versions, the moment and the command. versions: of other servers."""
    packages = ("granian", "uvloop", "websockets", "pyzmq", "msgspec", "litestar")
    return {
        "cpu": _cpu_model(),
        "cores": f"{len(CORES)}, servers on {_list(SERVER_CORES)}, load on {_list(LOAD_CORES)}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "libzmq": zmq.zmq_version(),
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


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def render_markdown(cases: list[Case], facts: Mapping[str, str], page: str = "performance", notes: str = "") -> str:
    """A page of docs/. notes: what stands below the table of targets, in Markdown."""
    lines = [(HEADS / f"{page}.md").read_text(), "| measure | target | found | met |", "| --- | --- | --- | --- |"]
    for target in (target for case in cases for target in case.targets):
        met = "void" if target.is_met is None else "yes" if target.is_met else "**no**"
        lines.append(f"| {target.what} | {target.wanted} | {target.found} | {met} |")
    lines += ["", notes.strip()] if notes else []
    for case in cases:
        if not (case.about or case.rows or case.remarks):  # all that it found are targets
            continue
        lines += ["", f"## {case.name}"]
        lines += ["", case.about] if case.about else []
        columns = list(dict.fromkeys(name for row in case.rows for name in row.measures))
        if columns:
            lines += ["", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
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


def to_json(cases: list[Case], facts: Mapping[str, str]) -> bytes:
    return msgspec.json.format(msgspec.json.encode({"facts": facts, "cases": cases}), indent=2)


def from_json(text: bytes) -> list[Case]:
    """The cases of a run that was written by `to_json`. Raises msgspec.ValidationError."""
    return msgspec.convert(msgspec.json.decode(text)["cases"], list[Case])


def write_report(
    cases: list[Case], facts: Mapping[str, str], out: Path | None, json: Path | None, page: str, notes: str
) -> None:
    """To the files, where there are any, and the page to standard output. page, notes: see `render_markdown`."""
    text = render_markdown(cases, facts, page, notes)
    for file, content in ((out, text.encode()), (json, to_json(cases, facts))):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    sys.stdout.write(text)
