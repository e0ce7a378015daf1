"""The schemas of payloads: what an event's data has to fit, and what is known of its fields.

A type that the code declares has a `StructPayload`, one that a deployment declares a `JsonSchemaPayload`
(`solowire.model.json_schema`), and the family `custom.*` takes any object.
"""

from __future__ import annotations

from functools import cached_property
from inspect import cleandoc
from typing import Any, Protocol

import msgspec


class PayloadSchema(Protocol):
    """What data has to fit.

    summary: one sentence on the type. field_names: those that are declared; empty where any object fits. struct: the
    struct that it was made of, None if it is of something else.
    """

    @property
    def summary(self) -> str: ...

    @property
    def field_names(self) -> frozenset[str]: ...

    @property
    def struct(self) -> type[msgspec.Struct] | None: ...

    def check(self, data: object) -> None:
        """Raises msgspec.ValidationError, whose text ends with the path of the fault, as in ``- at `$.zone` ``."""

    def make_schema(self) -> dict[str, Any]:
        """A self-contained JSON Schema (2020-12)."""

    def list_values(self, field: str) -> frozenset[str] | None:
        """All values that a field may have, as text; None where they can't be listed."""


class StructPayload:
    """A payload that fits a msgspec struct, whose docstring says what it is."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self.struct: type[msgspec.Struct] | None = struct
        self._struct = struct
        self.field_names = frozenset(struct.__struct_fields__)

    @cached_property
    def summary(self) -> str:
        return (self._struct.__doc__ or "").strip().partition("\n")[0]

    def check(self, data: object) -> None:
        msgspec.convert(data, self._struct)

    def make_schema(self) -> dict[str, Any]:
        schema = msgspec.json.schema(self._struct)
        for definition in schema.get("$defs", {}).values():
            if "description" in definition:
                definition["description"] = cleandoc(definition["description"])
        return schema

    def list_values(self, field: str) -> frozenset[str] | None:
        found = next((f for f in msgspec.structs.fields(self._struct) if f.name == field), None)
        if found is None:
            return None
        described = msgspec.inspect.type_info(found.type)
        values: set[str] = set()
        for kind in described.types if isinstance(described, msgspec.inspect.UnionType) else (described,):
            if isinstance(kind, msgspec.inspect.LiteralType):
                values |= set(map(str, kind.values))
            elif isinstance(kind, msgspec.inspect.BoolType):
                values |= {"true", "false"}
            elif not isinstance(kind, msgspec.inspect.NoneType):
                return None
        return frozenset(values)


class AnyPayload:
    """Any JSON object at all."""

    summary = "An event of the application's own; any JSON object."
    field_names: frozenset[str] = frozenset()
    struct: type[msgspec.Struct] | None = None

    def check(self, data: object) -> None:
        if not isinstance(data, dict):
            raise msgspec.ValidationError("Expected `object`: the data of an event is a JSON object")

    def make_schema(self) -> dict[str, Any]:
        return {"type": "object"}

    def list_values(self, field: str) -> frozenset[str] | None:
        return None
