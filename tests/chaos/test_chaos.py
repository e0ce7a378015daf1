"""A short run of the chaos suite on real processes; `python -m tests.chaos` makes long ones."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.chaos.run import Options, run

SECONDS = 20.0
KINDS = "cut,stall,stop:router,stop:gateway,kill:gateway"  # all, once resume, journal and drain are in


async def test_nobody_misses_anything() -> None:
    """Whatever is killed, stopped, cut, stalled, drained or added: each acknowledged event arrives once, in order."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))  # not pytest's: a socket's path has a bound
    report = await run(Options(seed=1, seconds=SECONDS, clients=22, kinds=KINDS), directory)
    assert report.ok, f"\n{report}"
    assert report.checked > 1000
    shutil.rmtree(directory)
