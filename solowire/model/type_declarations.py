"""Event types that a deployment declares in a file of its own, beside those of its domain.

    [types.deploy_finished]                     types.toml
    category = "deploy"
    summary = "A deployment has ended."
    permission = "custom.read"
    attributes = ["service"]
    schema.type = "object"
    schema.required = ["service"]
    schema.properties.service.type = "string"

The same may stand in JSON. A JSON Schema document will do, too: each of its `$defs` that has an `x-solowire` object,
with what stands beside `schema` above, is an event type. `$defs` can be referred to by every schema of the file.

What it keeps true: a type that was taken here is as whole as a built-in one, so that whatever is promised of those
holds of it; a file with a fault gives no type at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from solowire.algorithms.name_suggestion import suggest_name
from solowire.errors import ConfigError
from solowire.model.access import PERMISSION_NAME
from solowire.model.catalog import Attribute, Catalog, EventType
from solowire.model.events import Delivery, Priority
from solowire.model.json_schema import JsonSchemaPayload, SchemaFault

MAX_TYPES = 1000
ANNOTATION = "x-solowire"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TOP = ("types", "$defs", "$schema", "$id", "title", "description", "$comment")


class _AttributeDeclaration(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    fields: tuple[str, ...] = ()
    hierarchical: bool | None = None


class _TypeDeclaration(msgspec.Struct, forbid_unknown_fields=True):
    """What a file says of a type, its schema apart."""

    category: str
    summary: str = ""
    delivery: Delivery = Delivery.durable
    priority: Priority = Priority.normal
    permission: str = ""
    attributes: tuple[str | _AttributeDeclaration, ...] = ()
    key: tuple[str, ...] = ()
    sensitive: dict[str, str] = {}


class _Fault(ValueError):
    """What is wrong with one type, in words."""


def parse_types(
    document: object, origin: str, catalog: Catalog, reserved: Collection[str] = ()
) -> tuple[EventType, ...]:
    """The types of a file that was read as TOML or JSON. origin: its name. catalog: of the domain, to which they come.

    reserved: names that no type may have (`Domain.reserved_types`).

    Raises ConfigError, one line that names the file, the type and the fault.
    """
    if not isinstance(document, dict):
        raise ConfigError(f"catalog {origin}: it must be a table with [types.NAME] for each event type")
    for key in document:
        if key not in _TOP:
            raise ConfigError(
                f"catalog {origin}: unknown key {key!r}{suggest_name(key, _TOP, 'event types stand in [types.NAME]')}"
            )
    definitions = document.get("$defs", {})
    declared = document.get("types", {})
    if not isinstance(definitions, dict) or not isinstance(declared, dict):
        raise ConfigError(f"catalog {origin}: `types` and `$defs` must be tables of event types and of schemas by name")
    annotated = {
        name: {"summary": _describe(schema), **declaration, "schema": {"$ref": f"#/$defs/{name}"}}
        for name, schema in definitions.items()
        if isinstance(schema, dict) and isinstance(declaration := schema.get(ANNOTATION), dict)
    }
    if twice := sorted(annotated.keys() & declared.keys()):
        raise ConfigError(f"catalog {origin}: {twice[0]} stands in `types` and in `$defs`; keep one of them")
    raw = {**declared, **annotated}
    if not raw:
        raise ConfigError(f"catalog {origin}: it declares no event type; add [types.NAME] with a category and a schema")
    if len(raw) > MAX_TYPES:
        raise ConfigError(f"catalog {origin}: it declares {len(raw)} event types, {MAX_TYPES} are the most")
    types: list[EventType] = []
    for name, declaration in raw.items():
        try:
            if name in reserved:
                raise _Fault(
                    "old frontends take it for a message of the server's own; choose another, such as "
                    f"{declaration.get('category', 'my') if isinstance(declaration, dict) else 'my'}_{name}"
                )
            types.append(_make_type(name, declaration, definitions, catalog))
        except _Fault as fault:
            raise ConfigError(f"catalog {origin}: types.{name}: {fault}") from None
    try:
        catalog.extend(types)
    except ValueError as fault:
        raise ConfigError(f"catalog {origin}: {fault}") from None
    return tuple(types)


def _describe(schema: Mapping[str, Any]) -> str:
    """The first sentence of a schema's own words."""
    text = schema.get("description") or schema.get("title")
    return text.strip().partition("\n")[0] if isinstance(text, str) else ""


def _make_type(name: str, declaration: object, definitions: dict[str, Any], catalog: Catalog) -> EventType:
    """Makes an event type of its declaration. Raises _Fault."""
    if not _NAME.fullmatch(name):
        raise _Fault("a name is 1 to 64 lower-case letters, digits and _, and begins with a letter")
    if catalog.get(name) is not None:
        raise _Fault("the domain has a type of this name; choose another")
    if not isinstance(declaration, dict):
        raise _Fault("it must be a table with a category and a schema")
    schema = declaration.get("schema")
    if not isinstance(schema, dict):
        raise _Fault('it needs a `schema`, a JSON Schema of its data, such as {type = "object"}')
    try:
        fields = {key: value for key, value in declaration.items() if key != "schema"}
        declared = msgspec.convert(fields, _TypeDeclaration)
    except msgspec.ValidationError as error:
        raise _Fault(_word(str(error), declaration)) from None
    if not _NAME.fullmatch(declared.category):
        raise _Fault(f"the category {declared.category!r} must be lower-case letters, digits and _")
    if declared.category == "custom":
        raise _Fault("the category custom is for custom.NAME, which needs no declaration; choose another")
    permission = declared.permission or f"{declared.category}.read"
    for needed in (permission, *declared.sensitive.values()):
        if not PERMISSION_NAME.fullmatch(needed):
            raise _Fault(f"the permission {needed!r} must be written as category.name")
    summary = declared.summary or _describe(schema) or "An event of this deployment."
    try:
        payload = JsonSchemaPayload({**schema, "$defs": definitions} if definitions else schema, summary)
    except SchemaFault as fault:
        raise _Fault(f"schema: {fault}") from None
    made = EventType(
        name=name,
        category=declared.category,
        payload=payload,
        permission=permission,
        delivery=declared.delivery,
        priority=declared.priority,
        sensitive=declared.sensitive,
        attributes=tuple(_make_attribute(attribute, catalog) for attribute in declared.attributes),
        key_fields=declared.key,
    )
    _check_fields(made, payload)
    return made


def _make_attribute(declaration: str | _AttributeDeclaration, catalog: Catalog) -> Attribute:
    """An attribute that the domain has, too, is indexed, and if nothing else is said hierarchical, as there."""
    declared = _AttributeDeclaration(declaration) if isinstance(declaration, str) else declaration
    if not _NAME.fullmatch(declared.name):
        raise _Fault(f"the attribute {declared.name!r} must be lower-case letters, digits and _")
    known = catalog.attributes.get(declared.name)
    hierarchical = declared.hierarchical
    if hierarchical is None:
        hierarchical = known is not None and known.hierarchical
    elif known is not None and known.hierarchical != hierarchical:
        raise _Fault(f"the attribute {declared.name!r} is {'' if known.hierarchical else 'not '}hierarchical elsewhere")
    indexed = known is None or known.indexed
    return Attribute(declared.name, declared.fields or (declared.name,), hierarchical, indexed)


def _check_fields(made: EventType, payload: JsonSchemaPayload) -> None:
    """Raises _Fault for what names a field that the schema doesn't have, or would make events that nobody can see."""
    named = [(f"attribute {a.name!r}", field) for a in made.attributes for field in a.fields]
    named += [("sensitive", field) for field in made.sensitive] + [("key", field) for field in made.key_fields]
    for place, field in named:
        if field not in payload.field_names:
            known = f"it has {', '.join(sorted(payload.field_names))}" if payload.field_names else "it declares none"
            raise _Fault(
                f"{place}: the schema has no property {field!r}{suggest_name(field, payload.field_names, known)}"
            )
    if len({attribute.name for attribute in made.attributes}) != len(made.attributes):
        raise _Fault("an attribute stands twice in `attributes`")
    if hidden := [field for field in made.key_fields if field in made.sensitive]:
        raise _Fault(f"key: {hidden[0]!r} is sensitive, and everybody sees the key of a state; choose another field")
    if made.key_fields and made.delivery is not Delivery.state:
        raise _Fault(f"only states have a key, and its delivery is {made.delivery.value}")
    if made.delivery is Delivery.telemetry and made.sensitive and not payload.required - made.sensitive.keys():
        raise _Fault("telemetry with sensitive fields needs a required one that is not, so that each event shows some")


def _word(error: str, declaration: Mapping[str, Any]) -> str:
    """What msgspec says of a declaration, with the names that were meant."""
    message, _, path = error.partition(" - at `$.")
    if message.startswith("Object contains unknown field `"):
        name = message.removeprefix("Object contains unknown field `").rstrip("`")
        known = (*_TypeDeclaration.__struct_fields__, "schema")
        return f"unknown key {name!r}{suggest_name(name, known, 'known are ' + ', '.join(known))}"
    if message.startswith("Object missing required field"):
        return message.replace("Object missing required field", "it has no")
    place = path.rstrip("`")
    if "enum value" in message:
        kind: type[Delivery] | type[Priority] = Delivery if place == "delivery" else Priority
        return f"{place} must be one of {', '.join(member.value for member in kind)}, and is {declaration.get(place)!r}"
    return f"{place}: {message}" if place else message
