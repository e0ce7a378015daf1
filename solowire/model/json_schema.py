"""Payloads that a deployment describes by JSON Schema (2020-12), checked by the `jsonschema-rs` library.

What it keeps true: a schema is complete in itself, nothing is fetched for it; whatever doesn't fit is refused with the
path of the fault, as a built-in type would refuse it; patterns take time in proportion to the text.
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import msgspec

from solowire.model.schema_vocabulary import find_unknown_word

MAX_MESSAGE = 300
"""Characters of what the library says of a fault: it quotes the value."""


class SchemaFault(ValueError):
    """A schema that is none, in words."""


class JsonSchemaPayload:
    """A payload that fits a JSON Schema, which must say that it is an object. Raises SchemaFault."""

    struct: type[msgspec.Struct] | None = None

    def __init__(self, schema: dict[str, Any], summary: str) -> None:
        self.summary = summary
        self._schema = schema
        try:
            self._validator = jsonschema_rs.Draft202012Validator(
                schema,
                validate_formats=True,
                retriever=_refuse_to_fetch,
                pattern_options=jsonschema_rs.RegexOptions(),  # it never tracks back, so no text takes long
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise SchemaFault(_describe_schema_fault(error)) from None
        if (fault := find_unknown_word(schema)) is not None:
            raise SchemaFault(fault)
        _refuse_circles(schema)
        described = _resolve(schema)
        if described.get("type") != "object":
            raise SchemaFault('it must have type = "object": the data of an event is a JSON object')
        properties = described.get("properties", {})
        self._properties: dict[str, Any] = properties
        self.field_names = frozenset(properties)
        self.required = frozenset(described.get("required", ()))

    def check(self, data: object) -> None:
        try:
            self._validator.validate(data)  # which ends with the first fault
        except jsonschema_rs.ValidationError as error:
            message = error.message if len(error.message) <= MAX_MESSAGE else error.message[:MAX_MESSAGE] + "…"
            raise msgspec.ValidationError(message + _path(error.instance_path)) from None
        except (ValueError, OverflowError, RecursionError) as fault:  # what JSON can't say, such as NaN
            raise msgspec.ValidationError(f"it can't be checked: {fault}") from None

    def make_schema(self) -> dict[str, Any]:
        return self._schema

    def list_values(self, field: str) -> frozenset[str] | None:
        described = self._properties.get(field)
        if not isinstance(described, dict):
            return None
        if described.get("type") == "boolean":
            return frozenset({"true", "false"})
        values = [described["const"]] if "const" in described else described.get("enum")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return None
        return frozenset(values)


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, or the definition of its own that it refers to."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        return schema
    found = schema.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
    return found if isinstance(found, dict) else schema


def _refuse_circles(schema: dict[str, Any]) -> None:
    """Raises SchemaFault where a definition is part of itself.

    With choices (`oneOf`) at each level, data of a few hundred bytes would take such a schema minutes to judge.
    """
    definitions = schema.get("$defs", {})
    leads_to = {name: _list_references(definition) for name, definition in definitions.items()}
    settled: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise SchemaFault(
                f"#/$defs/{name} is part of itself: data are then nested without end; write the levels out"
            )
        if name in settled or name not in leads_to:
            return
        for reference in leads_to[name]:
            visit(reference, (*above, name))
        settled.add(name)

    for reference in _list_references({key: value for key, value in schema.items() if key != "$defs"}):
        visit(reference, ())


def _list_references(node: object) -> set[str]:
    """The definitions that a part of a schema refers to. Raises SchemaFault for a reference to anything else."""
    found: set[str] = set()
    unsearched = [node]
    while unsearched:
        part = unsearched.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                    if key != "$ref" or not value.startswith("#/$defs/") or "/" in value.removeprefix("#/$defs/"):
                        raise SchemaFault(f"{key} {value!r}: only #/$defs/NAME can be referred to")
                    found.add(value.removeprefix("#/$defs/"))
            unsearched.extend(part.values())
        elif isinstance(part, list):
            unsearched.extend(part)
    return found


def _refuse_to_fetch(address: str) -> Any:
    raise ValueError(f"{address!r} is not part of the schema, and nothing is fetched: put it into $defs")


def _path(parts: list[str | int]) -> str:
    if not parts:
        return ""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return f" - at `${shown}`"


def _describe_schema_fault(error: Exception) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return str(error).partition("\n")[0]
    place = ".".join(map(str, error.instance_path))
    return f"{place}: {error.message}" if place else error.message
