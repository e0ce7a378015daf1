"""`python -m tests.chaos`: kills, stops and cuts a running system, and proves that nobody missed anything.

Exit status: 0 if every promise was kept, 1 if one was broken, 2 for wrong options.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from tests.chaos import plan
from tests.chaos.run import Options, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first run, the next ones count up [default: chance]")
    parser.add_argument("--seconds", type=float, default=120.0, help="of disturbance [default: %(default)g]")
    parser.add_argument("--clients", type=int, default=30, help="[default: %(default)s]")
    parser.add_argument("--shards", type=int, default=2, help="that are always there [default: %(default)s]")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second [default: %(default)g]")
    parser.add_argument("--runs", type=int, default=1, help="[default: %(default)s]")
    parser.add_argument(
        "--kinds", default=",".join(plan.ALL_KINDS), help="such as kill,stop:shard [default: %(default)s]"
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs of runs that broke nothing, too")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    given = parser.parse_args()
    try:
        kinds = plan.parse_kinds(given.kinds)
    except ValueError as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore", message="The HMAC key is")
    first = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    broken = 0
    for seed in range(first, first + given.runs):
        options = Options(seed, given.seconds, given.clients, given.shards, given.rate, given.kinds)
        if given.plan:
            for disturbance in plan.make(seed, given.seconds, given.shards, kinds):
                print(f"{disturbance.at:8.2f} s  {disturbance}")
            continue
        print(f"seed {seed} …", file=sys.stderr, flush=True)
        broken += not _once(options, keep=given.keep)
    return 1 if broken else 0


def _once(options: Options, *, keep: bool) -> bool:
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        report = asyncio.run(run(options, directory))
    except BaseException:
        print(f"seed {options.seed} was not finished; logs: {directory}; again: {options.command}", file=sys.stderr)
        raise
    print(report, flush=True)
    if report.ok and not keep:
        shutil.rmtree(directory)
    return report.ok


if __name__ == "__main__":
    sys.exit(main())
