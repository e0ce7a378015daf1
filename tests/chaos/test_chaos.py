"""Short runs of the chaos suite on real processes; `python -m tests.chaos` makes long ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.plan import Disturbance
from tests.chaos.run import Options, run

HARD_CASES = {
    "the answer to a handshake comes after the shard has stopped waiting for hello": (
        Disturbance(1.0, "stall", "shard 0", 2.5, direction="down"),
        Disturbance(1.1, "cut", "shard 0"),
        Disturbance(1.1, "stall", "shard 1", 2.5, direction="down"),
        Disturbance(1.2, "cut", "shard 1"),
    ),
}
"""What once broke a promise, found by chance, and made again on purpose."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own: a socket's path has a bound. It stays if the test fails: the logs are in it."""
    made = Path(tempfile.mkdtemp(prefix="chaos-"))
    yield made
    if (made / "kept").exists():
        shutil.rmtree(made)


async def test_nobody_misses_anything(directory: Path) -> None:
    """Whatever is killed, stopped, cut, stalled, drained or added: each acknowledged event arrives once, in order."""
    report = await run(Options(seed=1, seconds=20, clients=22), directory)
    assert report.ok, f"\n{report}"
    assert report.checked > 1000
    (directory / "kept").touch()


@pytest.mark.parametrize("case", HARD_CASES)
async def test_hard_case(case: str, directory: Path) -> None:
    """What was found once is kept from coming back."""
    disturbances = HARD_CASES[case]
    seconds = max(d.at + d.seconds for d in disturbances) + 1
    report = await run(Options(seed=1, seconds=seconds, clients=22), directory, disturbances)
    assert report.ok, f"\n{report}"
    assert report.reconnections > 0
    (directory / "kept").touch()
