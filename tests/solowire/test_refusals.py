"""Refusals are counted one by one and logged together."""

from __future__ import annotations

from solowire.errors import InvalidToken, Refused
from solowire.refusals import Refusals


def test_refusals_are_summed_up_by_code() -> None:
    """A thousand refusals are one line for each code, with their number and the newest one's reason."""
    refusals = Refusals()
    firsts = [refusals.count(Refused(503, "over_limit", f"number {n}")) for n in range(1000)]
    assert firsts == [True] + [False] * 999
    assert not refusals.count(InvalidToken("garbage"))
    assert refusals.take() == [("over_limit", 1000, "number 999"), ("invalid_token", 1, "garbage")]
    assert refusals.totals == {"over_limit": 1000, "invalid_token": 1}


def test_what_was_told_is_not_told_again() -> None:
    """After a `take` the next refusal asks for another, and the totals go on."""
    refusals = Refusals()
    refusals.count(Refused(503, "over_limit", "a"))
    refusals.take()
    assert refusals.take() == []
    assert refusals.count(Refused(503, "over_limit", "b"))
    assert refusals.take() == [("over_limit", 1, "b")]
    assert refusals.totals["over_limit"] == 2
