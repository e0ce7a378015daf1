"""`solowire config`: what it prints is what is in force, and a file that says the same."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from solowire.runtime.settings import Settings, load
from solowire.runtime.settings.setting_paths import find_section, list_paths
from solowire.runtime.settings.system_settings import MASKED
from solowire.runtime.settings_listing import list_settings

TEXTS = st.text(min_size=1).filter(lambda text: "\0" not in text)
QUOTAS = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.floats(0.001, 1000),
        "reserved": st.integers(0, 20),
        "limit": st.integers(20, 100),
    },
)
MEANINGFUL: dict[str, st.SearchStrategy[Any]] = {
    "url": st.sampled_from(["https://gateway.example", "http://[::1]:8000"]),
    "backplane": st.sampled_from(["ipc:///run/solowire/router", 'ipc://a "b" \\\\ c']),
    "auth.jwks": st.sampled_from(["https://id.example/keys", 'keys "of" ours.json']),
    "auth.claims.scope_mapping": st.dictionaries(st.sampled_from(["zones", "server_id"]), TEXTS),
    "listen.allowed_origins": st.lists(st.sampled_from(["*", "null", "https://app.example.com"])),
    "listen.trusted_proxies": st.lists(st.sampled_from(["10.0.0.0/8", "2001:db8::1"])),
    "gateway.shard_url": st.sampled_from(["wss://{host}/s/{shard}", "{scheme}://{host}:{port}/ws"]),
    "limits.groups": st.dictionaries(st.sampled_from(["admin"]) | TEXTS, QUOTAS, max_size=3),
    "listen.advertised_host": st.sampled_from(["10.0.0.5", "shard-0.example"]),
    "shard.aggregation.type_events_per_s": st.dictionaries(st.just("rpz_hit"), st.floats(0, 1e9)),
    "shard.conflation.type_interval_s": st.dictionaries(st.just("system_metrics"), st.floats(0, 1e9)),
}
"""What is not any text, number or choice."""


def field_of(path: tuple[str, ...]) -> FieldInfo:
    model: type[BaseModel] = Settings
    for name in path[:-1]:
        section = find_section(model.model_fields[name])
        assert section is not None
        model = section
    return model.model_fields[path[-1]]


def values_of(path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values that a setting may have."""
    field = field_of(path)
    found = MEANINGFUL.get(".".join(path))
    return found if found is not None else values_of_type(field.annotation, field)


def values_of_type(kind: Any, field: FieldInfo) -> st.SearchStrategy[Any]:
    bounds = {
        end: next((value for rule in field.metadata if (value := getattr(rule, name, None)) is not None), None)
        for end, name in (("min_value", "ge"), ("max_value", "le"))
    }
    if get_origin(kind) is Annotated:
        return values_of_type(get_args(kind)[0], field)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if NoneType in get_args(kind):
        return values_of_type(next(part for part in get_args(kind) if part is not NoneType), field)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXTS, TEXTS, max_size=3)
    if get_origin(kind) is list:
        # In one text, as in the environment, a list is parted at its commas; in a file it is not.
        return st.lists(TEXTS, max_size=3)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(bounds["min_value"], bounds["max_value"])
    if kind is float:
        return st.floats(bounds["min_value"] or 1e-9, bounds["max_value"], allow_nan=False, allow_infinity=False)
    return TEXTS if kind is str else TEXTS.map(Path)


@st.composite
def chosen(draw: st.DrawFn) -> Settings:
    """Some settings that are set, as they may be together."""
    paths = [path for path in list_paths() if path[0] not in MASKED]
    values: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(paths), max_size=12, unique=True)):
        section = values
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = draw(values_of(path))
    try:
        return Settings(**values)
    except ValidationError:
        assume(False)
        raise


@given(made=chosen())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
def test_what_is_printed_is_a_file_that_says_the_same(made: Settings, place: Path) -> None:
    """Whatever is set, with any characters in it: `solowire config > file`, and `--config file` has it in force."""
    file = place / "printed.toml"
    file.write_text("\n".join(list_settings(made)) + "\n", encoding="utf-8")
    again = load(file)
    assert again.model_dump() == made.model_dump()
    assert again.limits.with_administrators() == made.limits.with_administrators()


def test_each_section_is_a_table() -> None:
    """What stands alone comes first, then a table for each section, and each line says what it means."""
    lines = list(list_settings(Settings(port=9000, shard={"flush": {"high_ms": 7}})))
    assert any(line.startswith("port = 9000 ") for line in lines[: lines.index("")])
    flush = lines[lines.index("[shard.flush]") + 1 :]
    assert flush[0].startswith("high_ms = 7.0 ")
    assert "longest that an event of high priority waits" in flush[0]


def test_secrets_are_not_shown() -> None:
    """They are comments, and masked."""
    secret = "nobody should see this secret"
    made = Settings(secret=SecretStr(secret), token=SecretStr("a.b.c"), accepted_secrets=[SecretStr(secret)])
    text = "\n".join(list_settings(made))
    assert secret not in text
    assert "a.b.c" not in text
    assert '# secret = "**********"' in text


@pytest.mark.parametrize("text", ["\x7f", "\U0001f600", "\u2028", "a\tb\r\nc", '"""', "\\u0041"])
def test_odd_characters_are_read_again(text: str, place: Path) -> None:
    """TOML knows other escapes than JSON."""
    file = place / "printed.toml"
    made = Settings(auth={"claims": {"user": text}})
    file.write_text("\n".join(list_settings(made)), encoding="utf-8")
    assert load(file).auth.claims.user == text
