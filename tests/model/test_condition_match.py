"""Conditions on an event's attributes: what meets them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import Entry
from solowire.model.condition_match import compile_conditions, meets_conditions
from tests.support.factories import event

names = st.sampled_from(["a", "b.a", "c.b.a", "a.b", "."])
hosts = st.sampled_from(["a", "b.a"])


@given(
    st.dictionaries(st.sampled_from(["zone", "name", "actor", "view"]), names, min_size=2),
    st.lists(st.tuples(st.sampled_from(["zone", "name", "actor"]), st.frozensets(names, max_size=3)), max_size=3),
)
def test_conditions_are_met_by_the_terms_of_an_event(
    data: dict[str, str], filter: list[tuple[str, frozenset[str]]]
) -> None:
    """A condition is met if one of its values is among the attribute's: of names, and those above; all must be."""
    published = event("record_created", {"zone": "a", "name": "a", "type": "A", **data})
    terms = Entry(1, published, CATALOG["record_created"]).match_terms
    expected = all(not values.isdisjoint(terms.get(name)) for name, values in filter)
    assert meets_conditions(published.attributes, compile_conditions(tuple(filter), CATALOG)) == expected


def test_only_names_stand_beneath_others() -> None:
    """A host called `ns1.example.com` is no host `example.com`."""
    ready = compile_conditions((("host", frozenset({"example.com"})),), CATALOG)
    assert not meets_conditions({"host": "ns1.example.com"}, ready)
    assert meets_conditions({"host": "example.com"}, ready)
