"""Room that is shared by those who fill it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.shared_room import SharedRoom


def test_who_takes_most_gives_way() -> None:
    """A flood of one owner costs that one's own oldest values, and nobody else's."""
    room: SharedRoom[str, str] = SharedRoom(10, 1)
    for n in range(3):
        assert room.put(f"honest {n}", f"h{n}", "ann", "health", 1) == []
    for n in range(100):
        gone = room.put(f"made up {n}", f"m{n}", "eve", "health", 1)
        assert gone == ([("health", f"m{n - 7}")] if n >= 7 else [])
    assert [value for value in room if value.startswith("h")] == ["h0", "h1", "h2"]
    assert len(room) == 10


def test_of_an_owner_the_kind_that_takes_most_gives_way() -> None:
    """An agent whose zones are very many keeps its one status."""
    room: SharedRoom[str, str] = SharedRoom(5, 1)
    room.put("status", "s", "agent", "bind_status", 1)
    for n in range(20):
        room.put(f"zone {n}", f"z{n}", "agent", "dns_query_stats", 1)
    assert list(room) == ["s", "z16", "z17", "z18", "z19"]


def test_what_is_large_counts_for_what_it_takes() -> None:
    """Bytes are shared, not only keys; and what is larger than all the room is not held."""
    room: SharedRoom[str, str] = SharedRoom(100, 10)
    room.put("a", "a", "ann", "x", 1)
    room.put("b", "b", "eve", "x", 60)
    assert room.put("c", "c", "eve", "x", 60) == [("x", "b")]
    assert room.put("huge", "huge", "eve", "x", 101) == [("x", "c"), ("x", "huge")]
    assert list(room) == ["a"]
    room.clear()
    assert (len(room), list(room), room.get("a")) == (0, [], None)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30), st.sampled_from("abcd"), st.sampled_from("xy"), st.integers(0, 40), st.booleans()
        ),
        max_size=200,
    )
)
def test_whoever_keeps_to_its_share_loses_nothing(puts: list[tuple[int, str, str, int, bool]]) -> None:
    """Whatever comes: it fits, the newest of a key is held or gave way, and only who takes most gives way."""
    room: SharedRoom[int, tuple[int, str, int]] = SharedRoom(100, 5)
    held: dict[int, tuple[int, str, int]] = {}
    for number, (key, owner, kind, size, is_removed) in enumerate(puts):
        value = (number, owner, max(size, 5))
        held.pop(key, None)
        if is_removed:
            room.remove(key)
        else:
            held[key] = value
            by_number = {whole[0]: at for at, whole in held.items()}
            for _, gone in room.put(key, value, owner, kind, size):
                taken = {o: sum(v[2] for v in held.values() if v[1] == o) for o in "abcd"}
                assert taken[gone[1]] == max(taken.values())
                assert sum(taken.values()) > 100
                del held[by_number[gone[0]]]
        assert list(room) == sorted(held.values())
        assert all(room.get(at) == whole for at, whole in held.items())
        assert sum(whole[2] for whole in held.values()) <= 100
