"""The vocabulary of JSON Schema 2020-12: the keywords and formats that mean something.

JSON Schema passes over what it doesn't know, so that a misspelt keyword checks nothing, in silence. Here it is a fault.
Names that begin with `x-` are anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator

from solowire.algorithms.name_suggestion import suggest_name

_OF_ONE_SCHEMA = frozenset(
    [
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_OF_MANY_SCHEMAS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_OF_NAMED_SCHEMAS = frozenset(("$defs", "dependentSchemas", "patternProperties", "properties"))
_OF_VALUES = frozenset(
    [
        "$anchor",
        "$comment",
        "$dynamicAnchor",
        "$dynamicRef",
        "$id",
        "$ref",
        "$schema",
        "$vocabulary",
        "const",
        "contentEncoding",
        "contentMediaType",
        "default",
        "dependentRequired",
        "deprecated",
        "description",
        "enum",
        "examples",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "readOnly",
        "required",
        "title",
        "type",
        "uniqueItems",
        "writeOnly",
    ]
)
KEYWORDS = _OF_ONE_SCHEMA | _OF_MANY_SCHEMAS | _OF_NAMED_SCHEMAS | _OF_VALUES

FORMATS = frozenset(
    [
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "idn-email",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "time",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
    ]
)


def find_unknown_word(schema: object) -> str | None:
    """The first keyword or format that means nothing, in words, with its place and what may be meant; None if none.

    schema: decoded JSON, of any shape: what is no schema is for the validator to refuse.
    """
    unsearched: list[tuple[str, object]] = [("", schema)]
    while unsearched:
        place, part = unsearched.pop()
        if not isinstance(part, dict):
            continue
        at = f" (in {place})" if place else ""
        for key in part:
            if key not in KEYWORDS and not str(key).startswith("x-"):
                return f"{key!r} is no keyword of JSON Schema{at}{suggest_name(str(key), sorted(KEYWORDS))}"
        named = part.get("format")
        if isinstance(named, str) and named not in FORMATS:
            known = "known are " + ", ".join(sorted(FORMATS))
            return f"{named!r} is no format of JSON Schema{at}{suggest_name(named, sorted(FORMATS), known)}"
        unsearched += ((f"{place}.{name}" if place else name, inner) for name, inner in _list_schemas(part))
    return None


def _list_schemas(part: dict[str, object]) -> Iterator[tuple[str, object]]:
    """The schemas within one, by their places."""
    for key, value in part.items():
        if key in _OF_ONE_SCHEMA:
            yield key, value
        elif key in _OF_MANY_SCHEMAS and isinstance(value, list):
            yield from ((f"{key}[{index}]", inner) for index, inner in enumerate(value))
        elif key in _OF_NAMED_SCHEMAS and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
