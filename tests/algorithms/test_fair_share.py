"""Fair shares: all slots are given, nobody beyond its own share while another wants, and equals are equal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.verdicts import jain_index
from solowire.algorithms.fair_share import Claim, MaxMinFill, share_slots
from tests.support.examples import examples

CLAIMS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.builds(
        Claim,
        demand=st.integers(0, 60),
        weight=st.sampled_from([0.001, 0.5, 1.0, 1.0, 1.0, 2.0, 3.3, 1000.0]),
        reserved=st.sampled_from([0, 0, 0, 1, 7]),
        limit=st.sampled_from([None, None, 3, 20]),
        held=st.integers(0, 60),
    ),
)


@pytest.mark.parametrize(
    ("capacity", "claims", "expected"),
    [
        (10, {"a": Claim(3), "b": Claim(4)}, {"a": 3, "b": 4}),
        (10, {"a": Claim(9), "b": Claim(9)}, {"a": 5, "b": 5}),
        (10, {"a": Claim(2), "b": Claim(9), "c": Claim(9)}, {"a": 2, "b": 4, "c": 4}),
        (9, {"a": Claim(9, weight=2.0), "b": Claim(9)}, {"a": 6, "b": 3}),
        (10, {"a": Claim(0, reserved=4), "b": Claim(20)}, {"a": 4, "b": 6}),
        (10, {"a": Claim(20, limit=2), "b": Claim(20)}, {"a": 2, "b": 8}),
        (5, {"a": Claim(9, held=3), "b": Claim(9, held=2)}, {"a": 3, "b": 2}),
        (5, {"a": Claim(9, held=2), "b": Claim(9, held=3)}, {"a": 2, "b": 3}),
        (3, {"a": Claim(0, reserved=4), "b": Claim(0, reserved=2)}, {"a": 2, "b": 1}),
        (0, {"a": Claim(1)}, {"a": 0}),
    ],
)
def test_the_shares_are_these(capacity: int, claims: dict[str, Claim], expected: dict[str, int]) -> None:
    """Examples that can be checked by hand: weights, reserves, limits, and the slot that can't be divided."""
    assert share_slots(capacity, claims) == expected


@given(st.integers(0, 200), CLAIMS)
@settings(deadline=None)
def test_all_is_given_that_is_wanted_and_there(capacity: int, claims: dict[str, Claim]) -> None:
    """No slot is given twice or left while somebody wants it, and no group gets more than it wants or may have."""
    given_out = share_slots(capacity, claims)
    assert sum(given_out.values()) == min(capacity, sum(claim.high for claim in claims.values()))
    assert all(0 <= given_out[name] <= claim.high for name, claim in claims.items())
    if sum(claim.low for claim in claims.values()) <= capacity:
        assert all(given_out[name] >= claim.low for name, claim in claims.items())


@given(st.integers(0, 200), CLAIMS)
@settings(deadline=None)
def test_nobody_is_above_its_share_while_another_is_below(capacity: int, claims: dict[str, Claim]) -> None:
    """Max-min: taking a slot from one group and giving it to one that wants more never makes the poorer one richer."""
    if sum(claim.low for claim in claims.values()) > capacity:
        return
    given_out = share_slots(capacity, claims)
    for poor, wants in claims.items():
        if given_out[poor] >= wants.high:
            continue
        for rich, has in claims.items():
            if rich != poor and given_out[rich] > has.low:
                # The slot that the rich one would be without stands no higher than where the poor one would come to.
                assert (given_out[rich] - 1) / has.weight <= (given_out[poor] + 1) / wants.weight + 1e-6


@given(st.integers(0, 200), CLAIMS, st.integers(0, 30))
@settings(deadline=None)
def test_more_slots_make_nobody_poorer(capacity: int, claims: dict[str, Claim], more: int) -> None:
    """A system that grows takes nothing away, but for the slot that can't be divided."""
    if sum(claim.low for claim in claims.values()) > capacity:
        return
    before, after = share_slots(capacity, claims), share_slots(capacity + more, claims)
    assert all(after[name] >= before[name] - 1 for name in claims)


@given(st.integers(0, 200), st.integers(1, 8))
@settings(deadline=None)
def test_equal_groups_get_equal_shares(capacity: int, groups: int) -> None:
    """Under contention the shares of equal groups differ by one slot at most, and Jain's index says so."""
    given_out = share_slots(capacity, {str(n): Claim(1000) for n in range(groups)})
    assert max(given_out.values()) - min(given_out.values()) <= 1
    if capacity >= 10 * groups:
        assert jain_index(given_out.values()) >= 0.99


@given(st.integers(0, 200), CLAIMS)
@settings(deadline=None)
def test_who_holds_its_share_keeps_it(capacity: int, claims: dict[str, Claim]) -> None:
    """Shares that were given once are given again: nobody is sent away for another that stands where it stands."""
    given_out = share_slots(capacity, claims)
    held = {name: claim._replace(held=given_out[name]) for name, claim in claims.items()}
    assert share_slots(capacity, held) == given_out


@given(st.integers(0, 120), CLAIMS, st.sampled_from("abcdefgh"))
@settings(deadline=None, max_examples=examples(300))
def test_one_more_is_what_the_shares_would_say(capacity: int, claims: dict[str, Claim], name: str) -> None:
    """A door is closed for exactly those groups that would get nothing if they asked."""
    holding = share_slots(capacity, claims)
    claims = {
        n: c._replace(demand=min(c.demand, holding[n]), held=min(c.demand, holding[n])) for n, c in claims.items()
    }
    if sum(claim.low for claim in claims.values()) > capacity:
        return
    before = claims.get(name, Claim(0))
    asked = claims | {name: before._replace(demand=before.held + 1)}
    assert MaxMinFill(capacity, claims).can_add_one(name) == (share_slots(capacity, asked)[name] > before.held)
