"""Whose requests go on to Granian, and whose wait: the invariants of `solowire.gateway.front.request_turns`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.gateway.front.request_turns import RequestTurns

MOST = 3


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.integers(0, 20))))
def test_each_address_has_so_many_under_way_and_nobody_waits_in_vain(steps: list[tuple[bool, str, int]]) -> None:
    """Whoever comes and goes in whatever order, those that wait go on in theirs."""
    turns: RequestTurns[int] = RequestTurns(MOST)
    under_way: dict[str, list[int]] = {"a": [], "b": []}
    waiting: dict[str, list[int]] = {"a": [], "b": []}
    number = 0
    for comes, address, which in steps:
        mine = under_way[address] + waiting[address]
        if comes:
            number += 1
            (under_way if turns.acquire_turn(address, number) else waiting)[address].append(number)
        elif mine:
            request = mine[which % len(mine)]
            successor = turns.release_turn(address, request)
            if request in waiting[address]:
                waiting[address].remove(request)
                assert successor is None
            else:
                under_way[address].remove(request)
                expected = waiting[address][0] if waiting[address] else None
                assert successor == expected
                if successor is not None:
                    waiting[address].remove(successor)
                    under_way[address].append(successor)
        for name in "ab":
            assert len(under_way[name]) <= MOST
            assert not waiting[name] or len(under_way[name]) == MOST
        assert len(turns) == sum(bool(under_way[name]) for name in "ab")
