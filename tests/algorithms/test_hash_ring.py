"""The ring: users are spread evenly, stay where they are, and every process finds the same owner."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.hash_ring import Ring
from tests.support.examples import examples

USERS = [f"user-{n}" for n in range(100_000)]
SHARDS = 8
IMBALANCE = 1.15


@cache
def owners(shards: int) -> list[int | None]:
    ring = Ring(range(shards))
    return [ring.owner(user) for user in USERS]


def test_users_are_spread_evenly() -> None:
    """The fullest of 8 shards holds at most 15 % more than its share of 100,000 users, and none is left idle."""
    counts = Counter(owners(SHARDS))
    assert set(counts) == set(range(SHARDS))
    assert max(counts.values()) <= IMBALANCE * len(USERS) / SHARDS
    assert min(counts.values()) >= (2 - IMBALANCE) * len(USERS) / SHARDS


@pytest.mark.parametrize("shards", range(1, SHARDS + 1))
def test_a_shard_that_joins_takes_only_its_own_share(shards: int) -> None:
    """When a shard joins N others, users move to it and to no other, and at most one in N of them."""
    before, after = owners(shards), owners(shards + 1)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {shards}
    assert len(moved) <= len(USERS) / shards


@pytest.mark.parametrize("lost", range(SHARDS))
def test_a_shard_that_leaves_moves_exactly_its_own_users(lost: int) -> None:
    """When a shard dies, all of its users move, to each of the others some, and nobody else does."""
    before = owners(SHARDS)
    ring = Ring(s for s in range(SHARDS) if s != lost)
    after = [ring.owner(user) for user in USERS]
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {lost}
    assert len(moved) == before.count(lost)
    assert {new for _, new in moved} == set(range(SHARDS)) - {lost}


@given(st.sets(st.integers(0, 40), min_size=1, max_size=5), st.randoms(), st.lists(st.text(max_size=20), max_size=20))
@settings(deadline=None, max_examples=examples(25))
def test_the_owner_depends_on_the_set_alone(shards: set[int], random: Random, users: list[str]) -> None:
    """Two processes that know the same shards agree on every user, in whatever order they learnt of them."""
    shuffled = sorted(shards)
    random.shuffle(shuffled)
    one, other = Ring(shards), Ring([*shuffled, *shuffled])
    assert [one.owner(u) for u in users] == [other.owner(u) for u in users]
    assert all(one.owner(u) in shards for u in users)


def test_an_empty_ring_owns_nobody() -> None:
    """While no shard is alive no user has an owner, which is an answer and not an error."""
    assert Ring().owner("alice") is None
    assert Ring([]).shards == frozenset()
