"""Benchmark cases as the command line and the pages know them.

A case is a function that fills in a `Case`. The first line of its docstring is what `--list` says; the rest is what
the page says of it, with the names in braces replaced by the constants of its module, or by WORDS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from bench.overload_publishers import HELD_BATCHES
from bench.publisher import EVENT_BYTES
from bench.report import Case
from bench.solowire_system import NO_PUBLISH_LIMIT

AHEAD = "Solowire's over it"
WORDS = {
    "EVENT_BYTES": EVENT_BYTES,
    "HELD_BATCHES": HELD_BATCHES,
    "NO_PUBLISH_LIMIT": " and ".join(f"`SOLOWIRE_{name}={value}`" for name, value in NO_PUBLISH_LIMIT.items()),
    "AHEAD": AHEAD,
}
"""What the descriptions of several cases say."""
CaseFunction = Callable[[Case, "Length"], None]


@dataclass(frozen=True)
class Length:
    """Of a full run, or a quick one. events: in a round of the cases that send one event at a time."""

    rounds: int
    seconds: float
    events: int
    is_quick: bool = False

    def bounded(self, rounds: int = 3) -> int:
        """The number of rounds of a case whose rounds take long."""
        return min(self.rounds, rounds)


FULL, QUICK = Length(5, 3.0, 200), Length(2, 1.0, 20, is_quick=True)


@dataclass(frozen=True)
class Benchmark:
    """A case that can be run. Call it with a length; raises BenchError or OSError if it can't run.

    shares_cores: servers and load run on all cores together. in_process: it starts no server, so that there is none
    that could be another revision's.
    """

    function: CaseFunction
    shares_cores: bool = False
    in_process: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def about(self) -> str:
        about = (inspect.getdoc(self.function) or "").partition("\n\n")[2]
        return " ".join(about.format_map(self.function.__globals__ | WORDS).split())

    def __call__(self, length: Length) -> Case:
        case = Case(self.name, self.about)
        self.function(case, length)
        return case


def benchmark(*, shares_cores: bool = False, in_process: bool = False) -> Callable[[CaseFunction], Benchmark]:
    """Makes a benchmark of a function; see `Benchmark`."""
    return lambda function: Benchmark(function, shares_cores, in_process)
