"""The ring: users are spread evenly, stay where they are, and every process finds the same owner."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.ring import Ring

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


def test_a_shard_that_joins_takes_only_its_own_share() -> None:
    """When a ninth shard joins, users move to it and to no other, and no more than its share of them."""
    before, after = owners(SHARDS), owners(SHARDS + 1)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {SHARDS}
    assert len(moved) <= IMBALANCE * len(USERS) / (SHARDS + 1)


@pytest.mark.parametrize("lost", [0, 3, 7])
def test_a_shard_that_leaves_moves_only_its_own_users(lost: int) -> None:
    """When a shard dies, only its users move, and they go to more than one of the others."""
    before = owners(SHARDS)
    ring = Ring(s for s in range(SHARDS) if s != lost)
    gone_to = Counter()
    for user, old in zip(USERS, before, strict=True):
        new = ring.owner(user)
        if old == lost:
            assert new != lost
            gone_to[new] += 1
        else:
            assert new == old
    assert gone_to.total() <= IMBALANCE * len(USERS) / SHARDS
    assert len(gone_to) == SHARDS - 1


@given(st.sets(st.integers(0, 40), min_size=1, max_size=5), st.randoms(), st.lists(st.text(max_size=20), max_size=20))
@settings(deadline=None, max_examples=25)
def test_the_owner_depends_on_the_set_alone(shards: set[int], random, users: list[str]) -> None:
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
