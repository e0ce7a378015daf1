"""`python -m bench [CASE …] [--page PAGE] [--list] [--quick] [--out FILE] [--json FILE]`: the figures of docs/.

Exit status: 0; 1 if a row is void, or a target missed or not to be held; 2 if a case could not run at all.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from pathlib import Path

from bench import peers
from bench.cases import (
    aggregation,
    backplane,
    backpressure,
    compression,
    connections,
    fanout,
    history,
    ingest,
    leases,
    never_read,
    overload,
    recovery,
    refusals,
    security_rules,
    side_by_side,
    side_by_side_users,
    sources,
    streams,
    tracing,
    upgrade,
)
from bench.machine import CORES, LOAD_CORES, BenchError
from bench.registry import FULL, QUICK, Benchmark
from bench.report import NOTES, Case, collect_facts, write_report
from bench.solowire_system import LIMITS

PAGES: dict[str, list[Benchmark]] = {
    "performance": [
        *(fanout.single, fanout.idle_latency, streams.stream, streams.feeds, streams.users, streams.slow),
        *(streams.shards, streams.codecs, connections.storm, connections.idle),
        *(ingest.ingest, ingest.journal, ingest.router, recovery.resume, recovery.failover),
        *(side_by_side.peers_single, side_by_side.peers_stream, side_by_side_users.peers_memory),
        *(side_by_side_users.peers_storm, side_by_side_users.peers_idle, side_by_side.peers_users),
        *(side_by_side.peers_slow, side_by_side.peers_ingest),
    ],
    "overload": [
        *(overload.overload, backpressure.backpressure, never_read.never_read, refusals.refusals),
        *(aggregation.aggregation, leases.leases),
    ],
    "": [
        *(compression.compression, history.history, sources.sources, security_rules.security_rules),
        *(upgrade.upgrade, tracing.tracing, backplane.backplane),
    ],
}
"""The cases of each page in their order; under "" those of none."""
CASES = {case.name: case for cases in PAGES.values() for case in cases}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", nargs="*", metavar="CASE", help="all of the page, if none is named")
    parser.add_argument("--page", choices=[page for page in PAGES if page], default="performance")
    parser.add_argument("--list", action="store_true", help="the cases, and what each measures")
    parser.add_argument("--quick", action="store_true", help="a couple of seconds a case; not to be quoted")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown; standard output has it at any rate")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.list:
        for name, case in CASES.items():
            print(f"{name:16}{case.summary}")
        return 0
    if unknown := [name for name in chosen.case if name not in CASES]:
        parser.error(f"no such case: {unknown[0]}; there are {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers are stopped
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # servers and receivers inherit it
    return run_cases(chosen.case, chosen.page, chosen.quick, chosen.out, chosen.json)


def run_cases(names: list[str], page: str, quick: bool, out: Path | None, json: Path | None) -> int:
    """Runs the cases, all of the page if none is named, and writes what they found. Returns the exit status."""
    of_page = [case.name for case in PAGES[page]]
    names = names or of_page
    beside = any(name.startswith("peers") for name in names)
    facts = collect_facts(["python -m bench", *sys.argv[1:]], quick, peers.versions() if beside else {})
    facts["Solowire's settings"] = " ".join(f"`SOLOWIRE_{name}={value}`" for name, value in LIMITS.items())
    cases, failed = [], False
    for name in names:
        sys.stderr.write(f"{name} …\n")
        os.sched_setaffinity(0, CORES if CASES[name].shares_cores else LOAD_CORES)
        try:
            cases.append(CASES[name](QUICK if quick else FULL))
        except (BenchError, OSError, EOFError) as error:
            failed = True
            sys.stderr.write(f"{name} could not run: {error or repr(error)}\n")
            cases.append(Case(name, f"Could not run: {(str(error) or repr(error)).splitlines()[0]}"))
    notes = NOTES.read_text() if page == "performance" and set(names) == set(of_page) else ""
    write_report(cases, facts, out, json, page, notes)
    missed = any(case.is_void or not all(target.is_met for target in case.targets) for case in cases)
    return 2 if failed else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
