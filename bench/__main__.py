"""`python -m bench [CASE …] [--list] [--quick] [--out FILE] [--json FILE]`: the figures of docs/performance.md.

Exit status: 0; 1 if a row is void, or a target missed or not to be held; 2 if a case could not run at all.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.cases import connections, fanout, ingest, recovery, side_by_side, side_by_side_users, streams
from bench.machine import LOAD_CORES, BenchError
from bench.measure import FULL, QUICK, Length
from bench.report import NOTES, Case, environment, write
from bench.solowire_system import LIMITS

RunCase = Callable[[Length], Case]
CASES: dict[str, RunCase] = {
    "single": fanout.single,
    "idle_latency": fanout.idle_latency,
    "stream": streams.stream,
    "feeds": streams.feeds,
    "users": streams.users,
    "slow": streams.slow,
    "shards": streams.shards,
    "codecs": streams.codecs,
    "storm": connections.storm,
    "idle": connections.idle,
    "ingest": ingest.ingest,
    "journal": ingest.journal,
    "router": ingest.router,
    "resume": recovery.resume,
    "failover": recovery.failover,
    "peers_single": side_by_side.peers_single,
    "peers_stream": side_by_side.peers_stream,
    "peers_memory": side_by_side_users.peers_memory,
    "peers_storm": side_by_side_users.peers_storm,
    "peers_idle": side_by_side_users.peers_idle,
    "peers_users": side_by_side.peers_users,
    "peers_slow": side_by_side.peers_slow,
    "peers_ingest": side_by_side.peers_ingest,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", metavar="CASE", help="all, if none is named")
    parser.add_argument("--list", action="store_true", help="the cases, and what each measures")
    parser.add_argument("--quick", action="store_true", help="a couple of seconds a case; not to be quoted")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown; standard output has it at any rate")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.list:
        for name, case in CASES.items():
            print(f"{name:16}{case.__doc__}")
        return 0
    if unknown := [name for name in chosen.case if name not in CASES]:
        parser.error(f"no such case: {unknown[0]}; there are {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers are stopped
    os.sched_setaffinity(0, LOAD_CORES)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # servers and receivers inherit it
    return run(chosen.case or list(CASES), chosen.quick, chosen.out, chosen.json)


def run(names: list[str], quick: bool, out: Path | None, json: Path | None) -> int:
    beside = any(name.startswith("peers") for name in names)
    facts = environment(["python -m bench", *sys.argv[1:]], quick, peers.versions() if beside else {})
    facts["Solowire's settings"] = " ".join(f"`SOLOWIRE_{name}={value}`" for name, value in LIMITS.items())
    cases, failed = [], False
    for name in names:
        sys.stderr.write(f"{name} …\n")
        try:
            cases.append(CASES[name](QUICK if quick else FULL))
        except (BenchError, OSError) as error:
            failed = True
            sys.stderr.write(f"{name} could not run: {error}\n")
            cases.append(Case(name, f"Could not run: {(str(error) or repr(error)).splitlines()[0]}"))
    write(cases, facts, out, json, notes=NOTES.read_text() if set(names) == set(CASES) else "")
    missed = any(case.void or not all(target.met for target in case.targets) for case in cases)
    return 2 if failed else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
