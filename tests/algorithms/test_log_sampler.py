"""Log lines that come at will are one a second, and lose no count."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.log_sampler import PERIOD_SECONDS, LogSampler


class Clock:
    """A logger, and the time at which things are done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[tuple[float, str, str, int, Any]] = []
        self._due: list[tuple[float, Callable[[], None]]] = []
        self.sampler = LogSampler(self, lambda: self.now, self._later)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._due.append((self.now + seconds, do))

    def _line(self, level: str, event: str, count: int, **fields: Any) -> None:
        self.lines.append((self.now, level, event, count, fields.get("about")))

    def error(self, event: str, **fields: Any) -> None:
        self._line("error", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._line("warning", event, **fields)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and min(self._due, key=lambda due: due[0])[0] <= end:
            self._due.sort(key=lambda due: due[0])
            self.now, do = self._due.pop(0)
            do()
        self.now = end

    def forget(self) -> None:
        """The loop that would have called has ended."""
        self._due.clear()


def test_a_period_may_be_longer() -> None:
    """What fails four times a second for an hour is a line a minute, and each failure is counted."""
    clock = Clock()
    sampler = LogSampler(clock, lambda: clock.now, clock._later, period=60.0)
    for n in range(4 * 3600):
        sampler.write("error", "failed", about=n)
        clock.wait(0.25)
    clock.wait(60.0)
    assert len(clock.lines) == 61
    assert sum(line[3] for line in clock.lines) == 4 * 3600


def test_the_first_is_told_at_once_and_the_others_together() -> None:
    """A thousand in a second are two lines: the first, and a second later the newest with the number of the rest."""
    clock = Clock()
    for n in range(1000):
        clock.sampler.write("error", "bad", about=n)
    assert clock.lines == [(0.0, "error", "bad", 1, 0)]
    clock.wait(1.0)
    assert clock.lines[1:] == [(1.0, "error", "bad", 999, 999)]
    clock.wait(10.0)
    assert len(clock.lines) == 2
    clock.sampler.write("error", "bad", about="later")
    assert clock.lines[2:] == [(11.0, "error", "bad", 1, "later")]


def test_events_are_sampled_each_for_itself() -> None:
    """A flood of one hides none of another."""
    clock = Clock()
    for _ in range(100):
        clock.sampler.write("error", "bad")
    clock.sampler.write("warning", "worse")
    assert [(level, event) for _, level, event, _, _ in clock.lines] == [("error", "bad"), ("warning", "worse")]


def test_who_was_to_tell_of_a_second_may_be_gone() -> None:
    """An event is not silenced for ever because nobody came back for it, and nothing of its count is lost."""
    clock = Clock()
    for _ in range(10):
        clock.sampler.write("error", "bad")
    clock.forget()
    clock.wait(5.0)
    clock.sampler.write("error", "bad")
    assert [count for _, _, _, count, _ in clock.lines] == [1, 10]


def test_without_a_clock_every_line_is_written() -> None:
    """Whoever has no loop samples nothing."""
    clock = Clock()
    sampler = LogSampler(clock)
    for _ in range(3):
        sampler.write("error", "bad")
    assert [count for _, _, _, count, _ in clock.lines] == [1, 1, 1]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60))
def test_whatever_comes_is_counted_and_spaced(writes: list[tuple[str, float]]) -> None:
    """The counts of the lines are those of the events, and between two lines of one event lies a second."""
    clock = Clock()
    for event, pause in writes:
        clock.wait(pause)
        clock.sampler.write("error", event)
    clock.wait(2 * PERIOD_SECONDS)
    for name in "ab":
        lines = [(at, count) for at, _, event, count, _ in clock.lines if event == name]
        assert sum(count for _, count in lines) == sum(event == name for event, _ in writes)
        assert all(later[0] - at[0] >= PERIOD_SECONDS - 1e-9 for at, later in itertools.pairwise(lines))
