"""The words of JSON Schema that mean something."""

from __future__ import annotations

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.model.schema_vocabulary import FORMATS, find_unknown_word
from tests.support.examples import examples

NO_DATE = {"date-time": "yesterday", "ipv4": "1.2.3", "uuid": "no", "email": "@", "regex": "("}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "requierd": ["a"]}, ["'requierd'", "did you mean 'required'?"]),
        ({"properties": {"at": {"format": "datetime"}}}, ["'datetime'", "properties.at", "did you mean 'date-time'?"]),
        ({"properties": {"a": {"items": {"minLenght": 2}}}}, ["properties.a.items", "did you mean 'minLength'?"]),
        ({"oneOf": [{}, {"not": {"nothing alike": 1}}]}, ["'nothing alike'", "oneOf[1].not"]),
        ({"$defs": {"x": {"Type": "string"}}}, ["$defs.x", "did you mean 'type'?"]),
        ({"format": "q"}, ["known are date"]),
    ],
)
def test_a_misspelt_word_is_named(schema: object, words: list[str]) -> None:
    """Where it stands, and what may be meant."""
    fault = find_unknown_word(schema)
    assert fault is not None
    assert [word for word in words if word not in fault] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"requierd": {"type": "string"}, "format": {"const": "datetime"}}},
        {"default": {"anything": 1}, "examples": [{"anything": 1}], "enum": [{"x": 1}], "x-origin": "app"},
        {"dependentRequired": {"a": ["b"]}, "patternProperties": {"^x": True}},
        True,
        {"properties": [], "allOf": {}},
    ],
)
def test_names_and_values_are_no_words(schema: object) -> None:
    """A property may be called anything, and a value may hold anything."""
    assert find_unknown_word(schema) is None


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_library_checks_each_format(name: str) -> None:
    """A format that is taken is one that the library refuses something by."""
    check = jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True)
    assert not all(
        check.is_valid(text) for text in ("\\ %", "yesterday", "@", "(", "a b", "~2", "{", *NO_DATE.values())
    )


@given(st.recursive(st.none() | st.text(max_size=4), lambda x: st.lists(x) | st.dictionaries(st.text(max_size=9), x)))
@settings(max_examples=examples(200))
def test_whatever_it_is_given_is_searched(schema: object) -> None:
    """Nonsense is no error of its own."""
    assert find_unknown_word(schema) is None or isinstance(schema, dict)
