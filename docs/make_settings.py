"""Writes docs/settings.md, the list of all settings, from the models that read them.

Run it with `python docs/make_settings.py`; `make docs` does. `tests/test_docs.py` fails while the page is not what this
makes. The page is the same on each machine: a default that depends on the machine is put into words (COMPUTED).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from solowire.runtime.settings import PREFIX, Settings

PAGE = Path(__file__).with_name("settings.md")

TITLES: Mapping[str, str] = {
    "secret": "Whom to believe",
    "legacy": "Old frontends",
    "data_dir": "The system and its processes",
    "on_duplicate": "Connections and what they say",
    "max_connections": "How many connections, whose, how fast",
    "router_port": "Statistics, metrics, alerts, audit log",
    "bad_token_rate": "Before accepting",
    "telemetry_per_s": "Floods and states",
    "merge_memory": "Memory, logs and coming back",
    "publish_max_bytes": "Publishing",
}
"""The first setting of each part of the flat list, and the part's title. A nested model is a part by itself."""

COMPUTED: Mapping[str, str] = {
    "data_dir": "`$XDG_DATA_HOME/solowire`, or `~/.local/share/solowire`",
    "shards": "the number of CPU cores",
}

HEAD = """\
<!-- Made by docs/make_settings.py from the models; `make docs` makes it anew. Don't edit it. -->
# Settings

Later ones win: defaults, the file of `--config` (TOML), `.env`, the environment, options of the command line. The
tables have the names of the environment and of `.env`. A name that is no setting, or a value out of range, stops every
command with one line that names it. `solowire config` prints what is in force, as TOML that `--config` reads.
[Operations](operations.md) says more of some.

A list is written with commas or as JSON, a table as JSON: `{prefix}GROUPS={{"staff": {{"weight": 2}}}}`. Names that end
in `_S` are seconds, in `_MS` milliseconds, in `_BYTES` bytes, in `_PER_S` or `_RATE` a number per second.
"""
TABLE_HEAD = "| setting | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n"

_SIMPLE: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret",
}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def render_page(settings: type[BaseSettings] = Settings, titles: Mapping[str, str] = TITLES) -> str:
    """The whole page. Raises ValueError where TITLES or COMPUTED don't fit the models."""
    parts = [HEAD.format(prefix=PREFIX)]
    delimiter = settings.model_config.get("env_nested_delimiter") or "__"
    has_part = False
    for name, field in settings.model_fields.items():
        model = _nested_model(field)
        if model is not None:
            parts += [f"\n## {_title_of(name, model)}\n\n", TABLE_HEAD, *_render_rows(model, (name,), delimiter)]
            has_part = False
            continue
        if name in titles:
            parts += [f"\n## {titles[name]}\n\n", TABLE_HEAD]
        elif not has_part:
            raise ValueError(f"docs/make_settings.py: the part that begins with {name!r} needs a title in TITLES")
        has_part = True
        parts.append(_render_row((name,), field, delimiter))
    if unknown := titles.keys() - settings.model_fields:
        raise ValueError(f"docs/make_settings.py: TITLES names what is no setting: {', '.join(sorted(unknown))}")
    return "".join(parts)


def _title_of(name: str, model: type[BaseModel]) -> str:
    first = (model.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return f"`[{name}]`: {first}" if first else f"`[{name}]`"


def _nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a group of settings; None for one setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _render_rows(model: type[BaseModel], path: tuple[str, ...], delimiter: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = _nested_model(field)
        if inner is None:
            yield _render_row((*path, name), field, delimiter)
        else:
            yield from _render_rows(inner, (*path, name), delimiter)


def _render_row(path: tuple[str, ...], field: FieldInfo, delimiter: str) -> str:
    cells = (
        f"`{PREFIX}{delimiter.join(path).upper()}`",
        _describe_type(field.annotation),
        _describe_default(path[-1], field),
        _describe_range(path[-1], field),
        (field.description or "").replace("*", "\\*"),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _describe_type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_describe_type(part) for part in arguments if part is not NoneType)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_describe_type(arguments[0])}s"
    if origin is dict:
        return f"table: {_describe_type(arguments[0])} → {_describe_type(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"{{{', '.join(kind.model_fields)}}}"
    if kind not in _SIMPLE:
        raise ValueError(f"docs/make_settings.py has no word for the type {kind!r}")
    return _SIMPLE[kind]


def _describe_default(name: str, field: FieldInfo) -> str:
    if name in COMPUTED:
        return COMPUTED[name]
    if field.default_factory in (list, dict):
        return "none"
    if field.default_factory is not None:
        raise ValueError(f"docs/make_settings.py: say in COMPUTED what the default of {name!r} is")
    value = field.default
    if value is None:
        return "as said" if "default:" in (field.description or "") else "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return _format_number(name, value)
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _describe_range(name: str, field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_format_number(name, getattr(rule, attribute))}"
        for attribute, sign in _BOUNDS
        for rule in field.metadata
        if getattr(rule, attribute, None) is not None
    ]
    bounds += ["not empty" for rule in field.metadata if getattr(rule, "min_length", None)]
    return ", ".join(bounds)


def _format_number(name: str, value: float) -> str:
    """As it can be set, without a point behind which there is nothing; bytes in larger units, too."""
    text = str(value).removesuffix(".0")
    if name.endswith("bytes"):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size and value % size == 0:
                return f"{text} ({value // size:.0f} {unit})"
    return text


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
