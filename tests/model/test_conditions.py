"""Sets of values: what means the same is the same object."""

from __future__ import annotations

import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.model import conditions
from solowire.model.conditions import canonicalize_values, intern_values, intersect_values

ZONE, ACTOR = CATALOG.attributes["zone"], CATALOG.attributes["actor"]
names = st.lists(st.sampled_from("ab") | st.just(""), min_size=1, max_size=4).map(".".join)
name_lists = st.lists(names | st.just("."), min_size=1, max_size=6)


def meets(name: str, values: frozenset[str]) -> bool:
    """Whether an event about `name` meets a condition: by the name, the names above it, or the root."""
    labels = name.split(".")
    return not values.isdisjoint({".", *(".".join(labels[n:]) for n in range(len(labels)))})


def test_other_spellings_are_the_same_object() -> None:
    """Case, last dots, order, repetition and names beneath others change nothing."""
    one = canonicalize_values(ZONE, ["example.com", "example.org"])
    for spelling in (
        ["example.org.", "Example.COM"],
        ["example.org", "a.b.example.org", "example.com", "example.com.", "www.Example.com"],
    ):
        assert canonicalize_values(ZONE, spelling) is one
    assert canonicalize_values(ZONE, ["com", "example.com", "xcom"]) == {"com", "xcom"}
    assert canonicalize_values(ZONE, [".", "example.com"]) == {"."}
    assert canonicalize_values(ACTOR, ["b.a", "a"]) == {"b.a", "a"}


@given(name_lists, names)
def test_canonical_values_mean_what_was_said(said: list[str], name: str) -> None:
    """No name is lost and none is won, and nothing that is left is beneath something else that is."""
    normal = frozenset(ZONE.normalize(value) for value in said)
    canonical = canonicalize_values(ZONE, said)
    name = ZONE.normalize(name)
    assert meets(name, canonical) == meets(name, normal)
    assert not any(meets(value, canonical - {value}) for value in canonical)
    assert canonicalize_values(ZONE, [value.upper() for value in reversed(said)]) is canonical


@given(name_lists, name_lists, names)
def test_common_values_are_what_meets_both(some: list[str], others: list[str], name: str) -> None:
    """Of two conditions on one attribute there is one that says both, the same in whatever order."""
    one, other = canonicalize_values(ZONE, some), canonicalize_values(ZONE, others)
    both = intersect_values(ZONE, one, other)
    name = ZONE.normalize(name)
    assert meets(name, both) == (meets(name, one) and meets(name, other))
    assert intersect_values(ZONE, other, one) is both
    assert canonicalize_values(ZONE, both) is both or not both
    assert intersect_values(ACTOR, one, other) == one & other


def test_values_that_nobody_holds_are_forgotten() -> None:
    """The table of shared sets has an entry for those that are in use, and for nothing else."""
    gc.collect()  # what tests before have left in circles
    before = len(conditions._known)
    held = [intern_values(frozenset({f"held-{n}"})) for n in range(10)]
    assert len(conditions._known) == before + 10
    del held
    gc.collect()
    assert len(conditions._known) == before


def test_names_of_many_labels_take_no_more_than_their_size() -> None:
    """What a filter may list at most, in as many labels as fit, is made canonical without writing out each suffix."""
    said = [f"{n}." + "a." * 500 + "b" for n in range(60)]
    size = sum(map(len, said))
    tracemalloc.start()
    canonical = canonicalize_values(ZONE, said)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(canonical) == 60
    assert peak < 8 * size
