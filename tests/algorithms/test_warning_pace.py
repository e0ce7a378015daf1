"""Which warnings are told: each new reason at once, and what goes on once a minute."""

from __future__ import annotations

from solowire.algorithms.warning_pace import WarningPace


def test_warnings_are_told_at_once_and_once_a_minute() -> None:
    """A new reason is told, the same one again a minute later, or after it had worked."""
    pace = WarningPace()
    said = [pace.is_due(text, now) for text, now in (("a", 0), ("a", 59), ("b", 59), ("b", 60), ("b", 119), ("a", 120))]
    assert said == [True, False, True, False, True, True]
    pace.reset()
    assert pace.is_due("a", 121)


def test_reasons_that_take_turns_or_count_are_no_news() -> None:
    """Two servers behind one address, or seconds that count down, bring one warning a minute each; many are bounded."""
    pace = WarningPace()
    turns = [pace.is_due(text, now) for now in range(0, 120, 2) for text in ("answered 502", "can't be reached")]
    assert sum(turns) == 4
    assert sum(pace.is_due(f"its nbf is {90 - n} s ahead", n) for n in range(60)) == 1
    assert all(pace.is_due("x" * n, 0) for n in range(1, 1000))


def test_of_many_kinds_the_newest_are_known() -> None:
    """Users are named once an hour, each for itself, whatever digits their names have; who came first is forgotten."""
    pace = WarningPace(3600.0, 3, parts_numbers=True)
    assert [pace.is_due(f"user-{n}", 0.0) for n in (1, 2, 3, 3)] == [True, True, True, False]
    assert pace.is_due("user-4", 1.0)
    assert [pace.is_due(name, 2.0) for name in ("user-2", "user-1")] == [False, True]
    assert pace.is_due("user-4", 3601.0)
