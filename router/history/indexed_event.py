"""The keys that an event is found by, decoded from its body, and whether that is what a question wants."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from solowire.backplane.messages import HistoryClause
from solowire.model.catalog import FAMILY
from solowire.model.condition_match import meets_conditions


class IndexedEvent(msgspec.Struct, array_like=True, gc=False):
    """The beginning of an event (`solowire.model.events.Event`); what it isn't found by is passed over undecoded."""

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


def is_of_type(name: str, types: frozenset[str]) -> bool:
    """Whether an event type is one of these, or of the family where that is."""
    return name in types or (FAMILY in types and name.startswith("custom."))


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
            (not types or is_of_type(event.type, types)) and meets_conditions(event.attributes, conditions)
            for types, conditions in self._clauses
        )
