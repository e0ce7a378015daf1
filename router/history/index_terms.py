"""By what events are found again: terms, as bytes, of an event and of a question.

    type        T custom.chaos
    attribute   A zone NUL moc.elpmaxe.      the value backwards with a dot behind it: what is beneath begins alike
    owner       O                            an event for one user alone
                O alice                      … and for whom

What it keeps true: an event that meets a clause has a term in each of the clause's ranges. What has one need not meet
the clause, because long terms are cut: whoever gets it judges it again. Nothing here knows which attributes are names:
the clause says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from solowire.backplane.messages import HistoryClause
from solowire.model.catalog import FAMILY
from solowire.model.condition_match import meets_conditions

TERM_BYTES = 96
"""No term is longer, so that a value of a kilobyte costs no more than a name."""

OWNED = b"O"


class IndexedEvent(msgspec.Struct, array_like=True, gc=False):
    """What of an event (`solowire.model.events.Event`) it is found by; the rest is passed over undecoded."""

    id: msgspec.Raw
    type: str
    data: msgspec.Raw
    priority: msgspec.Raw
    delivery: msgspec.Raw
    timestamp: msgspec.Raw
    key: msgspec.Raw
    user: msgspec.Raw
    attributes: dict[str, str] = {}


_decode = msgspec.msgpack.Decoder(IndexedEvent).decode


def decode_indexed(body: bytes) -> IndexedEvent | None:
    """None for what is no event: nobody gets it."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return None


def list_event_terms(body: bytes, owner: str | None) -> Iterator[bytes]:
    """The terms of one record; none if it is no event."""
    event = decode_indexed(body)
    if event is None:
        return
    yield make_type_term(event.type)
    for name, value in event.attributes.items():
        yield make_value_term(name, value)
    if owner is not None:
        yield OWNED
        yield make_owner_term(owner)


def make_type_term(name: str) -> bytes:
    return b"T" + _cut(name.encode(errors="surrogatepass"))


def make_owner_term(user: str) -> bytes:
    return b"O" + _cut(user.encode(errors="surrogatepass"))


def make_value_term(attribute: str, value: str) -> bytes:
    key = "" if value == "." else value[::-1] + "."
    return _cut(f"A{attribute}\0{key}".encode(errors="surrogatepass"))


def _cut(text: bytes) -> bytes:
    return text[:TERM_BYTES]


def end_of_prefix(prefix: bytes) -> bytes:
    """The first of the terms that come behind all that begin so; UTF-8 has no byte 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


class ClauseFilter:
    """Whether an event is what one of some clauses asks for."""

    def __init__(self, clauses: Sequence[HistoryClause]) -> None:
        self._clauses = [
            (
                frozenset(clause.types),
                tuple((name, frozenset(values), are_names) for name, values, are_names in clause.conditions),
            )
            for clause in clauses
        ]

    def accepts(self, body: bytes) -> bool:
        """Whether the record with this body is one."""
        event = decode_indexed(body)
        return event is not None and any(
            (not types or event.type in types or (FAMILY in types and event.type.startswith("custom.")))
            and meets_conditions(event.attributes, conditions)
            for types, conditions in self._clauses
        )
