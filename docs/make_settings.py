"""Writes docs/settings.md, the list of all settings, from the models that read them.

Run it with `python docs/make_settings.py`; `make docs` does. `tests/test_docs.py` fails while the page is not what this
makes. The page is the same on each machine: a default that depends on the machine is put into words (COMPUTED).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from runpy import run_path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from solowire.runtime.settings.setting_paths import find_section, to_variable
from solowire.runtime.settings.system_settings import PREFIX, Settings

PAGE = Path(__file__).with_name("settings.md")

FIRST_TITLE = "What is set first"
"""Of the settings that stand in no section."""

COMPUTED: Mapping[str, str] = {
    "data_dir": "`$XDG_DATA_HOME/solowire`, or `~/.local/share/solowire`",
    "shards": "the number of CPU cores",
}

HEAD = """\
<!-- Made by docs/make_settings.py from the models; `make docs` makes it anew. Don't edit it. -->
# Settings

Later ones win: defaults, the file of `--config` (TOML), `.env`, the environment, options of the command line. They win
setting by setting. A name that is no setting, or a value out of range, stops every command with one line that names it.
`solowire config` prints what is in force, as TOML that `--config` reads. [Operations](operations.md) says more of some.

The names below are those of the environment and of `.env`: two underscores stand between a table of the file and what
is in it. So `SOLOWIRE_SHARD__FLUSH__HIGH_MS=20` is, in the file,

```toml
[shard.flush]
high_ms = 20
```

In the environment a list is written with commas or as JSON, a table of values as JSON:
`{prefix}LIMITS__GROUPS={{"staff": {{"weight": 2}}}}`. Names that end in `_S` are seconds, in `_MS` milliseconds, in
`_BYTES` bytes, in `_PER_S` or `RATE` a number per second.
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


def render_page(settings: type[BaseModel] = Settings) -> str:
    """The whole page. Raises ValueError where COMPUTED doesn't fit the models."""
    return "".join([HEAD.format(prefix=PREFIX), *_render_section(settings, ())])


def _render_section(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """First its own settings, then the sections in it."""
    fields = model.model_fields.items()
    own = [_render_row((*path, name), field) for name, field in fields if find_section(field) is None]
    if own:
        yield f"\n## {_title_of(path, model)}\n\n{TABLE_HEAD}"
        yield from own
    for name, field in fields:
        section = find_section(field)
        if section is not None:
            yield from _render_section(section, (*path, name))


def _title_of(path: tuple[str, ...], model: type[BaseModel]) -> str:
    if not path:
        return FIRST_TITLE
    return f"`[{'.'.join(path)}]`: {(model.__doc__ or '').strip().splitlines()[0].rstrip('.')}"


def _render_row(path: tuple[str, ...], field: FieldInfo) -> str:
    cells = (
        f"`{to_variable(path)}`",
        _describe_type(field.annotation),
        _describe_default(".".join(path), field),
        _describe_range(path[-1], field),
        (field.description or "").replace("*", "\\*"),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _describe_type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _describe_type(arguments[0])
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
    run_path(str(PAGE.with_name("make_chart_pages.py")), run_name="__main__")  # the chart's schema has them, too
