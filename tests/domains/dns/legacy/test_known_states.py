"""What translators remember: bounded whatever is published, shared by those of a view, and given back."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.legacy.frame_data import HOST_FIELDS, MAX_TEXT, make_forwarder
from solowire.domains.dns.legacy.known_states import (
    MAX_STATES,
    MAX_VIEW_BYTES,
    KnownStates,
    StateBudget,
    ViewStates,
)


def note_forwarder(known: KnownStates, id: object, offset: int, **said: object) -> None:
    known.note_forwarder(make_forwarder({"status": "healthy", **said}, id=id, seen="now"), offset)


def test_the_state_that_was_heard_of_first_is_forgotten() -> None:
    known = KnownStates()
    for n in range(MAX_STATES + 1):
        note_forwarder(known, n, n)
    assert list(known.forwarders) == [str(n) for n in range(1, MAX_STATES + 1)]


def test_long_texts_take_no_more_than_short_ones() -> None:
    """A thousand names of 30 KB each were in each frame to each old page."""
    known = KnownStates()
    for n in range(MAX_STATES):
        texts = dict.fromkeys(("forwarder_name", "type", "status", "last_checked"), "\1" * 30_000)
        known.note_forwarder(make_forwarder(texts, id=n, seen="now"), n)
    assert 0 < known.bytes <= MAX_VIEW_BYTES
    assert all(len(row.json) < 6 * 5 * MAX_TEXT for row in known.forwarders.values())


def test_what_has_a_long_name_is_not_remembered() -> None:
    known = KnownStates()
    known.note_status("f" * (MAX_TEXT + 1), "healthy", 1)
    known.note_host("h" * (MAX_TEXT + 1), {"cpu_usage": 1}, 1)
    assert known.bytes == 0
    assert known.find_host("h" * (MAX_TEXT + 1)) == {}


def test_of_a_host_only_what_frames_say_is_kept() -> None:
    """Ever new fields for one host grew for ever."""
    known = KnownStates()
    for n in range(100):
        known.note_host("a", {f"f{n}": [[]] * 1000, "cpu_usage": n}, n)
    assert known.find_host("a") == {"cpu_usage": 99}
    known.note_host("a", dict.fromkeys(HOST_FIELDS, 1), 100)
    before = known.bytes
    known.note_host("a", dict.fromkeys(HOST_FIELDS, 2), 101)
    assert known.bytes == before


def test_a_status_before_is_the_same_for_all_who_ask_at_an_event() -> None:
    """Several translators of a view note the same event, one after the other."""
    known = KnownStates()
    known.note_status("1", "healthy", 1)
    for _ in range(2):
        assert known.find_status("1", 2) == "healthy"
        known.note_status("1", "unhealthy", 2)
    assert known.find_status("1", 3) == "unhealthy"
    assert known.find_status("1", 1) is None


def test_all_views_together_keep_within_the_budget() -> None:
    budget = StateBudget(100_000)
    views = [KnownStates(budget) for _ in range(20)]
    for n in range(200):
        for known in views:
            note_forwarder(known, n, n)
    assert 0 < budget.bytes <= 100_000
    assert all(0 < known.bytes <= 5_000 for known in views)


def test_a_view_that_comes_late_finds_room() -> None:
    """Those before it have taken all; what they take beyond their part is theirs until they hear of something."""
    budget = StateBudget(50_000)
    first = KnownStates(budget)
    for n in range(200):
        note_forwarder(first, n, n)
    late = KnownStates(budget)
    note_forwarder(first, 0, 300)
    note_forwarder(late, 0, 300)
    assert list(late.forwarders) == ["0"]
    assert budget.bytes == first.bytes + late.bytes <= 50_000


def test_what_nobody_reads_is_given_back() -> None:
    budget = StateBudget()
    known = KnownStates(budget)
    note_forwarder(known, 1, 1)
    assert (budget.view_count, budget.bytes) == (1, known.bytes)
    del known
    gc.collect()
    assert (budget.view_count, budget.bytes) == (0, 0)


def test_translators_of_one_view_share_what_they_know_and_others_do_not() -> None:
    states = ViewStates()
    known = states.find_states("view")
    assert states.find_states("view") is known
    assert states.find_states("another") is not known
    assert states.make_states() is not known


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.text(max_size=200), st.integers(0, 9)),
        max_size=60,
    ),
    st.integers(0, 8_000),
)
def test_whatever_is_noted_the_budget_holds(notes: list[tuple[int, int, str, int]], most: int) -> None:
    budget = StateBudget(most)
    views = [KnownStates(budget), KnownStates(budget), KnownStates(budget)]
    for view, kind, text, offset in notes:
        known = views[view]
        match kind:
            case 0:
                note_forwarder(known, text, offset, forwarder_name=text)
            case 1:
                known.note_status(text, text, offset)
            case _:
                known.note_host(text, {"cpu_usage": 1, text: text}, offset)
        assert budget.bytes == sum(known.bytes for known in views) <= most
