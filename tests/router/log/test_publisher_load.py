"""Whose load it is: the invariants of `solowire.router.log.publisher_load`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.router.log.publisher_load import HALF_LIFE_SECONDS, MAX_PUBLISHERS, PublisherLoad

sent = st.lists(
    st.tuples(st.sampled_from([f"p{n}" for n in range(12)]), st.integers(1, 10**6), st.floats(0, 400)), min_size=1
)


@given(sent)
def test_the_light_ones_are_less_than_half_of_all(sent: list[tuple[str, int, float]]) -> None:
    """Whoever sends what and when: slowing the heavy ones slows the larger part, and somebody is heavy."""
    load, now = PublisherLoad(), 1e6
    amounts: dict[str, float] = {}
    for publisher, size, pause in sent:
        now += pause
        amounts = {name: amount * 0.5 ** (pause / HALF_LIFE_SECONDS) for name, amount in amounts.items()}
        amounts[publisher] = amounts.get(publisher, 0.0) + size
        load.add(publisher, size, now)
    light = sum(amount for name, amount in amounts.items() if not load.is_heavy(name))
    assert light <= sum(amounts.values()) / 2
    assert any(load.is_heavy(name) for name in amounts)


def test_one_alone_is_heavy_and_so_are_equals() -> None:
    """There is nobody to slow before them."""
    load = PublisherLoad()
    load.add("ann", 10, 0.0)
    assert load.is_heavy("ann")
    load.add("ben", 10, 0.0)
    assert load.is_heavy("ann")
    assert load.is_heavy("ben")


def test_who_sends_little_beside_much_is_light() -> None:
    """Six that send all they may don't make a hundred others heavy; one that stops is light soon."""
    load = PublisherLoad()
    for second in range(20):
        for number in range(100):
            load.add(f"little{number}", 1_000, float(second))
        for number in range(6):
            load.add(f"much{number}", 1_000_000, float(second))
    assert not any(load.is_heavy(f"little{number}") for number in range(100))
    assert all(load.is_heavy(f"much{number}") for number in range(6))
    for second in range(20, 60):
        load.add("much0", 1_000_000, float(second))
    assert not load.is_heavy("much1")
    assert not load.is_heavy("a stranger")


def test_it_is_bounded() -> None:
    """However many publishers there are, and however long it runs."""
    load = PublisherLoad()
    for number in range(3 * MAX_PUBLISHERS):
        load.add(f"p{number}", 10, number / 100)
        load.add("much", 1000, number / 100)
    assert len(load) <= MAX_PUBLISHERS
    assert load.is_heavy("much")
    load.add("after a long night", 1, 1e6)
    assert load.is_heavy("after a long night")
    assert not load.is_heavy("much")
