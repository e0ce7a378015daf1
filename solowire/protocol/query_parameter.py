"""One parameter out of a query, at a cost in proportion to the query's length."""

from __future__ import annotations

from urllib.parse import unquote_plus


def read_parameter(query: str, name: str) -> str:
    """The first value of the parameter called `name` (plain ASCII, as it is written), decoded; "" if there is none.

    Of the others nothing is decoded: a stranger may send thousands, each of which would have to be.
    """
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        if equals and value and key == name:
            return unquote_plus(value)
    return ""
