"""The catalogue: every event type, declared once, with all that the rest of Solowire knows about it.

    name ─► EventType ─► payload               what fits
                         permission            who may see it
                         sensitive             who may see which field
                         attributes            what filters and scopes look at
                         delivery, priority    what a reader is promised

What it keeps true: names are unique; sensitive fields, key fields and attributes name declared fields;
nothing in it ever changes. `custom.*` is the one *family*: any `custom.NAME` is a type of its own, made
when it is asked for. MADE_TYPES of those are kept at most, so that publishers who make up names cost little memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from solowire.model.domain_names import canonical_name, describe_name_fault
from solowire.model.events import Delivery, Event, Priority, is_same_event
from solowire.model.payload_schema import PayloadSchema

FAMILY = "custom.*"

_CUSTOM_NAME = re.compile(r"custom\.[a-z0-9_.-]{1,100}")
MADE_TYPES = 1000
"""Of the family, as many are kept as they were made."""
MAX_VALUE = 1024
"""Characters of an attribute's value that is no name: it is there to be compared with, and each event holds it."""

_INT_LIMIT = 2**64  # JSON integers can be longer than Python is willing to print


class Attribute(msgspec.Struct, frozen=True):
    """A value of an event that filters and scopes look at.

    fields: the first of them that is a non-empty string, an integer or a boolean gives the value.
    hierarchical: values are DNS names, and a filter value matches itself and every name beneath it. indexed: whether
    events of the past are looked up by it; to look them up by one with ever new values costs more than it gains.
    """

    name: str
    fields: tuple[str, ...]
    hierarchical: bool = False
    indexed: bool = True

    def read_value(self, data: Mapping[str, Any]) -> str | None:
        """The value in `data` as text, None if it has none. Names come in lower case without the last dot."""
        for field in self.fields:
            found = data.get(field)
            if isinstance(found, str):
                if found:
                    return self.normalize(found)
            elif isinstance(found, bool):
                return "true" if found else "false"
            elif isinstance(found, int) and -_INT_LIMIT < found < _INT_LIMIT:
                return str(found)
        return None

    def normalize(self, value: str) -> str:
        """`value` in the one form in which values are compared, for filters and scopes too."""
        return canonical_name(value) if self.hierarchical else value

    def describe_fault(self, value: str) -> str | None:
        """Why no event may have this value, which is normalized, in words; None if one may."""
        if self.hierarchical:
            return describe_name_fault(value)
        if len(value) > MAX_VALUE:
            return f"filters look at it: it may have {MAX_VALUE} characters, and has {len(value)}"
        return None


class Rollup(msgspec.Struct, frozen=True):
    """What a flood of events of one type becomes: one event of another type, which sums them up.

    into: that type, a state. make_data: its data, of the attributes of those events and the seconds within which they
    came. hides: sensitive field of an event → the field of the sum that shows it.
    """

    into: EventType
    make_data: Callable[[Sequence[Mapping[str, str]], float], dict[str, Any]]
    hides: Mapping[str, str] = {}

    def list_hidden(self, hidden: frozenset[str]) -> frozenset[str]:
        """The fields of the sum that are not for a view from which `hidden` is hidden of the events."""
        return frozenset(shown for field, shown in self.hides.items() if field in hidden)


class EventType(msgspec.Struct, frozen=True):
    """One event type.

    payload: what its data has to fit. permission: needed to see the type at all. sensitive: payload field
    → the permission that shows it. key_fields (`state` types): the payload fields that make the key where
    the publisher gave none; absent ones are left out. hierarchical: the names of those attributes that are, by itself.
    rollup (`telemetry` types): how a flood is summed up; None: it is sampled and counted. observed_fields,
    authored_fields: of what several publishers may tell under one id, as in `is_same_event`.
    """

    name: str
    category: str
    payload: PayloadSchema
    permission: str
    delivery: Delivery
    priority: Priority = Priority.normal
    sensitive: dict[str, str] = {}
    attributes: tuple[Attribute, ...] = ()
    key_fields: tuple[str, ...] = ()
    hierarchical: tuple[str, ...] = ()
    rollup: Rollup | None = None
    observed_fields: frozenset[str] = frozenset()
    authored_fields: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = tuple(a.name for a in self.attributes if a.hierarchical)  # asked for with each event: noted once
        msgspec.structs.force_setattr(self, "hierarchical", names)

    @property
    def field_names(self) -> frozenset[str]:
        """The declared payload fields; empty where any object fits."""
        return self.payload.field_names

    def find_attribute(self, name: str) -> Attribute | None:
        """The attribute called `name`, None if the type has none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        return None

    @property
    def summary(self) -> str:
        """One sentence that says what such an event is."""
        return self.payload.summary

    def make_schema(self) -> dict[str, Any]:
        """A self-contained JSON Schema (2020-12) of the payload."""
        return self.payload.make_schema()

    def describe(self) -> dict[str, Any]:
        """The type as plain JSON values, for people and clients to read."""
        return {
            "name": self.name,
            "category": self.category,
            "summary": self.summary,
            "permission": self.permission,
            "delivery": self.delivery.value,
            "priority": self.priority.value,
            "sensitive": dict(self.sensitive),
            "attributes": [msgspec.to_builtins(attribute) for attribute in self.attributes],
            "key_fields": list(self.key_fields),
            "schema": self.make_schema(),
        }


class Catalog:
    """An immutable lookup over event types. ValueError if two have one name or disagree on an attribute.

    types: all, with the family. names: those that can be published as they stand, so without the family.
    categories: the names in each, with the family. attributes: all that any type declares, by name. values: of those
    attributes that have few, such as a severity, all of them. unindexed: the names of those that aren't indexed.
    """

    def __init__(self, types: Iterable[EventType]) -> None:
        self.types = tuple(types)
        self._by_name = {t.name: t for t in self.types}
        if len(self._by_name) != len(self.types):
            raise ValueError("two event types have the same name")
        self._custom = self._by_name.get(FAMILY)
        self._made: dict[str, EventType] = {}  # of the family, by name: asked for with each event
        self.names = tuple(name for name in self._by_name if name != FAMILY)
        categories: dict[str, tuple[str, ...]] = {}
        for t in self.types:
            categories[t.category] = (*categories.get(t.category, ()), t.name)
        self.categories: Mapping[str, tuple[str, ...]] = MappingProxyType(categories)
        attributes: dict[str, Attribute] = {}
        for attribute in (a for t in self.types for a in t.attributes):
            known = attributes.setdefault(attribute.name, attribute)
            if known.hierarchical != attribute.hierarchical:
                raise ValueError(f"attribute {attribute.name} is hierarchical in some event types only")
            if known.indexed != attribute.indexed:
                raise ValueError(f"attribute {attribute.name} is indexed in some event types only")
        self.attributes: Mapping[str, Attribute] = MappingProxyType(attributes)
        self.unindexed = frozenset(name for name, attribute in attributes.items() if not attribute.indexed)
        listed = {name: self._list_values(name) for name in attributes}
        self.values: Mapping[str, frozenset[str]] = MappingProxyType({n: v for n, v in listed.items() if v is not None})

    def _list_values(self, attribute: str) -> frozenset[str] | None:
        """All values that events can have of the attribute; None where they can't be listed."""
        values: frozenset[str] = frozenset()
        for event_type in self.types:
            declared = event_type.find_attribute(attribute)
            for field in declared.fields if declared is not None else ():
                of_field = event_type.payload.list_values(field)
                if of_field is None:
                    return None
                values |= of_field
        return values

    def extend(self, types: Iterable[EventType]) -> Catalog:
        """A catalogue with these types too. Raises ValueError as the class does."""
        return Catalog((*self.types, *types))

    def get(self, name: str) -> EventType | None:
        """The type called `name`; for `custom.NAME` one made on the fly; None if there is none.

        `custom.*` itself gives the family: it can be subscribed to, but `validate_data` refuses events of it.
        """
        found = self._by_name.get(name) or self._made.get(name)
        if found is None and self._custom is not None and _CUSTOM_NAME.fullmatch(name):
            if len(self._made) >= MADE_TYPES:
                self._made.clear()
            found = self._made[name] = msgspec.structs.replace(self._custom, name=name)
        return found

    def get_declared(self, name: str) -> EventType | None:
        """As `get`, but the family itself for whatever begins with `custom.`: nothing is checked or made."""
        found = self._by_name.get(name)
        return self._custom if found is None and name.startswith("custom.") else found

    def is_same_event(self, one: Event, other: Event) -> bool:
        """Whether two publishers' events of one id tell the same."""
        event_type = self.get_declared(one.type)
        if event_type is None:
            return is_same_event(one, other)
        return is_same_event(one, other, event_type.observed_fields, event_type.authored_fields)

    def __getitem__(self, name: str) -> EventType:
        """As `get`, for a name that is known to be there. Raises KeyError."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def describe(self) -> list[dict[str, Any]]:
        """All types as plain JSON values, for `GET /v1/catalog`. Made anew on each call, in tens of ms."""
        return [t.describe() for t in self.types]

    def validate_data(self, type: EventType, data: object) -> dict[str, str]:
        """Validate `data`, the decoded JSON of a payload, and return the event's attributes by name.

        Raises msgspec.ValidationError; its text ends with the path of the fault (``- at `$.zone` ``),
        unless the fault is the whole object's, such as a required field that is missing.
        """
        if type.name == FAMILY:
            raise msgspec.ValidationError("`custom.*` stands for many types: publish `custom.` and a name")
        type.payload.check(data)
        if not isinstance(data, dict):
            raise msgspec.ValidationError("Expected `object`: the data of an event is a JSON object")
        attributes = {}
        for attribute in type.attributes:
            value = attribute.read_value(data)
            if value is not None:
                fault = attribute.describe_fault(value)
                if fault is not None:
                    field = next(f for f in attribute.fields if attribute.read_value({f: data.get(f)}) is not None)
                    raise msgspec.ValidationError(f"{fault} - at `$.{field}`")
                attributes[attribute.name] = value
        return attributes
