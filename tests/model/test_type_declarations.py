"""Event types that a deployment declares: what is taken, and how each fault of a file is told."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.model.access import View, redact
from solowire.model.catalog import EventType
from solowire.model.events import Delivery, Priority
from solowire.model.type_declarations import MAX_TYPES, parse_types

OBJECT = {"type": "object", "properties": {"service": {"type": "string"}}}
DEPLOY = """
[types.deploy_finished]
category = "deploy"
summary = "A deployment has ended."
delivery = "state"
priority = "high"
key = ["service"]
attributes = ["service", {name = "zone", fields = ["domain"]}]
sensitive = {token = "sensitive.token"}
[types.deploy_finished.schema]
type = "object"
required = ["service"]
additionalProperties = false
[types.deploy_finished.schema.properties]
service = {type = "string", minLength = 1}
domain = {type = "string"}
token = {type = "string"}
seconds = {"$ref" = "#/$defs/seconds"}
["$defs".seconds]
type = "number"
minimum = 0
"""


def deploy() -> EventType:
    [made] = parse_types(tomllib.loads(DEPLOY), "types.toml", CATALOG)
    return made


def test_a_declared_type_is_like_a_built_in_one() -> None:
    """It has all that the catalogue knows of a type, and joins the domain's."""
    made = deploy()
    assert (made.name, made.category, made.permission) == ("deploy_finished", "deploy", "deploy.read")
    assert (made.delivery, made.priority, made.key_fields) == (Delivery.state, Priority.high, ("service",))
    assert made.summary == "A deployment has ended."
    assert [(a.name, a.fields, a.hierarchical) for a in made.attributes] == [
        ("service", ("service",), False),
        ("zone", ("domain",), True),  # as everywhere
    ]
    both = CATALOG.extend([made])
    assert both["deploy_finished"] is made
    assert both.categories["deploy"] == ("deploy_finished",)
    assert len(both.types) == len(CATALOG.types) + 1
    described = made.describe()
    assert described["schema"]["properties"]["service"] == {"type": "string", "minLength": 1}
    assert described["sensitive"] == {"token": "sensitive.token"}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, '"service" is a required property'),
        ({"service": 1}, '1 is not of type "string" - at `$.service`'),
        ({"service": ""}, '"" is shorter than 1 character - at `$.service`'),
        ({"service": "a", "seconds": -1}, "-1 is less than the minimum of 0 - at `$.seconds`"),
        ({"service": "a", "node": "n"}, "Additional properties are not allowed ('node' was unexpected)"),
        (["service"], 'is not of type "object"'),
        ({"service": "a", "domain": "a." * 300}, "- at `$.domain`"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_path(data: object, fault: str) -> None:
    """In the form that the publish API makes a problem of."""
    with pytest.raises(msgspec.ValidationError) as caught:
        CATALOG.validate_data(deploy(), data)
    assert fault in str(caught.value)


def test_attributes_and_redaction_are_those_of_the_declaration() -> None:
    """Names are made canonical; what is sensitive is hidden from who may not see it."""
    made = deploy()
    data = {"service": "web", "domain": "Example.COM.", "token": "t"}
    assert CATALOG.validate_data(made, data) == {"service": "web", "zone": "example.com"}
    assert redact(data, made, View(frozenset({"deploy.read"})).hidden_fields(made)) == {
        "service": "web",
        "domain": "Example.COM.",
    }
    assert not View(frozenset({"sensitive.token"})).hidden_fields(made)


def test_a_json_schema_document_declares_types_by_annotation() -> None:
    """Each definition with `x-solowire` is a type; others are there to be referred to."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "level": {"enum": ["low", "high"]},
            "door_opened": {
                "type": "object",
                "description": "Somebody has opened a door.\nMore of it.",
                "properties": {"level": {"$ref": "#/$defs/level"}, "door": {"type": "string"}},
                "required": ["door"],
                "x-solowire": {"category": "building", "attributes": ["door"], "permission": "custom.read"},
            },
        },
    }
    [made] = parse_types(document, "types.json", CATALOG)
    assert (made.name, made.summary, made.permission) == ("door_opened", "Somebody has opened a door.", "custom.read")
    assert CATALOG.validate_data(made, {"door": "d1", "level": "low"}) == {"door": "d1"}
    with pytest.raises(msgspec.ValidationError, match="level"):
        CATALOG.validate_data(made, {"door": "d1", "level": "middle"})


def declare(**more: Any) -> dict[str, Any]:
    return {"types": {"door_opened": {"category": "building", "schema": OBJECT, **more}}}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "it must be a table"),
        ({}, "it declares no event type"),
        ({"type": {}}, "unknown key 'type'; did you mean 'types'?"),
        ({"types": []}, "must be tables"),
        ({"types": {"Door": {}}}, "types.Door: a name is"),
        ({"types": {"record_updated": {}}}, "types.record_updated: the domain has a type of this name"),
        ({"types": {"door_opened": {"category": "building"}}}, "it needs a `schema`"),
        ({"types": {"door_opened": {"schema": OBJECT}}}, "it has no `category`"),
        (declare(categry="x"), "unknown key 'categry'; did you mean 'category'?"),
        (declare(category="custom"), "the category custom is for"),
        (declare(category="A b"), "the category 'A b'"),
        (declare(delivery="durabel"), "delivery must be one of durable, state, telemetry, and is 'durabel'"),
        (declare(priority=3), "priority"),
        (declare(permission="*"), "the permission '*'"),
        (declare(sensitive={"service": "a b"}), "the permission 'a b'"),
        (declare(attributes=["servce"]), "attribute 'servce': the schema has no property 'servce'; did you mean"),
        (declare(attributes=["service", "service"]), "an attribute stands twice"),
        (
            declare(attributes=[{"name": "zone", "fields": ["service"], "hierarchical": False}]),
            "hierarchical elsewhere",
        ),
        (declare(sensitive={"servce": "sensitive.x"}), "sensitive: the schema has no property"),
        (declare(key=["service"]), "only states have a key"),
        (declare(delivery="telemetry", sensitive={"service": "sensitive.x"}), "telemetry with sensitive fields"),
        (declare(schema={"type": "strng"}), "schema: type:"),
        (declare(schema={"type": "array"}), 'schema: it must have type = "object"'),
        (declare(schema={"type": "object", "properties": {"a": {"pattern": "("}}}), "schema: properties.a.pattern"),
        (declare(schema={"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}), "/$defs/b"),
        (declare(schema={"$ref": "https://example.com/schema.json"}), "nothing is fetched"),
        (declare(schema={"type": "object", "properties": {"a": {"$ref": "#"}}}), "only #/$defs/NAME"),
        (
            declare(
                schema={
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/tree"}},
                    "$defs": {"tree": {"oneOf": [{"properties": {"b": {"$ref": "#/$defs/tree"}}}]}},
                }
            ),
            "#/$defs/tree is part of itself",
        ),
        (
            declare(delivery="state", key=["service"], sensitive={"service": "sensitive.x"}),
            "everybody sees the key of a state",
        ),
        (declare(schema={"type": "object", "minProperties": -1}), "schema: minProperties"),
        ({"types": {f"t{n}": {} for n in range(MAX_TYPES + 1)}}, "are the most"),
        (
            {"types": {"a": {}}, "$defs": {"a": {"x-solowire": {"category": "b"}}}},
            "a stands in `types` and in `$defs`",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_fault(document: object, fault: str) -> None:
    """It says which file, which type, what is wrong, and is never a traceback."""
    with pytest.raises(ConfigError) as caught:
        parse_types(document, "types.toml", CATALOG)
    assert str(caught.value).startswith("catalog types.toml: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_means_something_else_to_old_clients_is_refused() -> None:
    """Their pages would take such an event for an answer of the server's."""
    document = {"types": {"error": {"category": "deploy", "schema": OBJECT}}}
    assert parse_types(document, "types.toml", CATALOG)
    with pytest.raises(ConfigError, match=r"types\.error: old frontends take it .*, such as deploy_error$"):
        parse_types(document, "types.toml", CATALOG, {"error"})
