"""From where on a shard has all of a user's own events: by the rings that it has known."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.hash_ring import Ring
from solowire.workers.delivery.known_rings import KnownRings

USERS = [f"user-{n}" for n in range(30)]


def test_a_shard_has_everything_since_it_owns_the_user() -> None:
    """A user who was here all the time is whole from the beginning, one who came with a ring from that ring on."""
    rings = KnownRings(0)
    rings.add_ring(Ring([0, 1]), 0, 0)
    rings.add_ring(Ring([0]), 50, 0)
    mine = next(u for u in USERS if Ring([0, 1]).owner(u) == 0)
    came = next(u for u in USERS if Ring([0, 1]).owner(u) == 1)
    assert (rings.find_personal_start(mine), rings.find_personal_start(came)) == (0, 50)
    rings.reset(80)
    assert (rings.find_personal_start(mine), rings.find_personal_start(came)) == (80, 80)


def test_a_user_who_is_about_to_go_is_no_more_whole_than_before() -> None:
    """A ring that takes a user away doesn't give back what the shard never had of it."""
    rings = KnownRings(0)
    rings.add_ring(Ring([0, 1]), 0, 0)
    rings.add_ring(Ring([0]), 50, 0)
    rings.add_ring(Ring([0, 1]), 60, 0)
    came = next(u for u in USERS if Ring([0, 1]).owner(u) == 1)
    assert rings.find_personal_start(came) == 50


@given(st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(1, 20)), max_size=12), st.integers(0, 60))
@settings(deadline=None)  # building rings takes what it takes on a busy machine
def test_it_never_claims_what_it_was_not_given(changes: list[tuple[set[int], int]], floor: int) -> None:
    """Checked against a log that records, offset by offset, to which shard each user's own events went."""
    rings = KnownRings(0)
    given: dict[str, list[bool]] = {user: [] for user in USERS}
    position = 0
    for shards, events in [({0, 1}, 5), *changes, ({0}, 3)]:
        ring = Ring(shards)
        rings.add_ring(ring, position, min(floor, position))
        for user in USERS:
            given[user] += [ring.owner(user) == 0] * events
        position += events
    for user in USERS:
        find_personal_start = max(rings.find_personal_start(user), floor)
        assert all(given[user][find_personal_start:])
