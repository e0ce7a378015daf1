"""`python -m bench.compare BASE [CASE …] [--turns N] [--full]`: the same cases of two revisions in turn, with ratios.

The benchmarks are this tree's for both; only the servers change: BASE is checked out into a temporary directory, which
PYTHONPATH names for everything that its runs start. So a case without a server (such as `journal`) can't be compared.
Exit status: 0; 1 if a row is void; 2 if a run failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.__main__ import CASES
from bench.report import ROOT, Case, from_json

DEFAULT_CASES = ("single", "stream", "users", "storm")
HIGH_IS_GOOD = ("/s", "per CPU-second")
LOW_IS_GOOD = ("CPU", "p50", "p99", "max", "PSS", "RSS", "ratio", "seconds", "bytes", "for the ticket", "ksmd")
TIMES = ("50 %", "99 %", "all", "welcomed")
"""Of `failover` and `resume`. Low is good."""
MISHAPS = ("lost", "twice", "resumed: false", "hello late", "others cut", "slow ones cut off")
"""Counts that are 0 where all is well. Low is good."""
NEITHER = ("receiver CPU", "load core", "load CPU", "floor per frame")
NOTICEABLE = 0.05

Key = tuple[str, str, str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a revision that git knows")
    parser.add_argument("case", nargs="*", default=DEFAULT_CASES, metavar="CASE", help=" ".join(DEFAULT_CASES))
    parser.add_argument("--turns", type=int, default=3, help="how often each revision runs")
    parser.add_argument("--full", action="store_true", help="full rounds, not quick ones")
    chosen = parser.parse_args()
    for name in chosen.case:
        if name not in CASES:
            parser.error(f"no such case: {name}; there are {', '.join(CASES)}")
        if CASES[name].in_process:
            parser.error(f"{name} has no server that could be another revision's")
    found: dict[str, list[list[Case]]] = {"base": [], "this": []}
    with checked_out(chosen.base) as base:
        for turn in range(chosen.turns):
            for name, tree in (("base", base), ("this", ROOT)):
                sys.stderr.write(f"turn {turn + 1} of {chosen.turns}: {name}\n")
                cases = run(tree, list(chosen.case), full=chosen.full)
                if cases is None:
                    return 2
                found[name].append(cases)
    lines, void = compare(found["base"], found["this"])
    print("\n".join(lines))
    return 1 if void else 0


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A work tree of the revision in a temporary directory. Exits with 2 and git's word if there is none."""
    place = Path(tempfile.mkdtemp(prefix="solowire-base-"))
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(place / "tree"), revision], capture_output=True, text=True)
    try:
        if done.returncode:
            sys.stderr.write(f"bench.compare: {done.stderr.strip().splitlines()[-1]}\n")
            sys.exit(2)
        yield place / "tree"
    finally:
        subprocess.run([*git, "remove", "--force", str(place / "tree")], capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def run(tree: Path, names: list[str], *, full: bool) -> list[Case] | None:
    """This tree's benchmarks with the servers of `tree`; None if a case could not run."""
    with tempfile.TemporaryDirectory(prefix="solowire-bench-") as folder:
        result = Path(folder) / "run.json"
        # bench/ is this tree's, as the current directory's of `-m`; servers, in directories of their own, find `tree`.
        done = subprocess.run(
            [sys.executable, "-m", "bench", *names, "--json", str(result), *([] if full else ["--quick"])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
        )
        if done.returncode not in (0, 1):
            sys.stderr.write(f"bench.compare: the run of {tree} ended with status {done.returncode}\n")
            return None
        return from_json(result.read_bytes())


def compare(base: list[list[Case]], this: list[list[Case]]) -> tuple[list[str], bool]:
    """A Markdown table of medians over the turns, and whether a row was void in one of them.

    Below it stands what only one of the two has: a row, or a measure of a row that both have.
    """
    (before, void_before), (after, void_after) = medians(base), medians(this)
    lines = ["| case | row | measure | base | this | ratio | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    void = sorted(void_before | void_after)
    for key, values in before.items():
        if key not in after:
            continue
        old, new = statistics.median(values), statistics.median(after[key])
        ratio, low, high = over(new, old), over(min(after[key]), max(values)), over(max(after[key]), min(values))
        word = "void" if key[:2] in void else judged(key[2], ratio, low, high) if len(values) > 1 else ""
        shown = f"{ratio:.2f} [{low:.2f}–{high:.2f}]" if old else "–"
        lines.append(f"| {' | '.join(key)} | {old:,.4g} | {new:,.4g} | {shown} | {word} |")
    lines += [f"\nVoid in at least one turn: {case}, {row}." for case, row in void]
    lines += [f"\nOnly in base: {what}." for what in missing(before, after)]
    lines += [f"\nOnly in this: {what}." for what in missing(after, before)]
    return lines, bool(void)


def over(new: float, old: float) -> float:
    """new / old, where something is endlessly more than nothing, and nothing as much as nothing."""
    return new / old if old else float("inf") if new else 1.0


def missing(ours: Iterable[Key], others: Iterable[Key]) -> list[str]:
    """The rows that the others do not have, and measures that are missing from rows that they have."""
    have = set(others)
    rows = {key[:2] for key in have}
    return list(
        dict.fromkeys(
            f"{case}, {row}: {measure}" if (case, row) in rows else f"{case}, {row}"
            for case, row, measure in ours
            if (case, row, measure) not in have
        )
    )


def medians(turns: list[list[Case]]) -> tuple[dict[Key, list[float]], set[tuple[str, str]]]:
    """Each measure's median of every turn, and the rows that were void in one."""
    found: dict[Key, list[float]] = defaultdict(list)
    void = set()
    for case in (case for cases in turns for case in cases):
        for row in case.rows:
            if row.faults:
                void.add((case.name, row.name))
            for name, measure in row.measures.items():
                found[case.name, row.name, name].append(measure.median)
    return found, void


def judged(measure: str, ratio: float, low: float, high: float) -> str:
    """A word only where the turns of the two do not overlap, and the difference is worth one."""
    if abs(ratio - 1) < NOTICEABLE or low <= 1 <= high:
        return ""
    if any(mark in measure for mark in HIGH_IS_GOOD):
        return "better" if ratio > 1 else "**worse**"
    if (
        measure in TIMES
        or measure in MISHAPS
        or (measure not in NEITHER and any(mark in measure for mark in LOW_IS_GOOD))
    ):
        return "better" if ratio < 1 else "**worse**"
    return ""


if __name__ == "__main__":
    sys.exit(main())
