"""The settings in force, as TOML that can be kept as a file for `--config`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel, SecretStr

from solowire.runtime.settings.setting_paths import find_section
from solowire.runtime.settings.system_settings import NO_DATA_DIR, Settings


def list_settings(settings: Settings) -> Iterator[str]:
    """One line each, with what it means, in the tables of their sections.

    Those that are not set, and secrets, which are masked, are comments.
    """
    return _list_section(settings, ())


def _list_section(section: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    inner = []
    if path:
        yield ""
        yield f"[{'.'.join(path)}]"
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if find_section(field) is not None:
            inner.append((name, value))
            continue
        shown = "" if value is None else _write_toml(value)
        is_masked = isinstance(value[0] if isinstance(value, list) and value else value, SecretStr)
        is_comment = value is None or is_masked or value == NO_DATA_DIR
        line = f"# {name} = {shown}".rstrip() if is_comment else f"{name} = {shown}"
        yield f"{line:<48}  # {field.description}" if field.description else line
    for name, value in inner:
        yield from _list_section(value, (*path, name))


def _write_toml(value: object) -> str:
    """As TOML, on one line: what is read again from a file is what is in force."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True, exclude_unset=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_write_text(name)} = {_write_toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_write_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, (int, float)) else _write_text(str(value))


def _write_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON allows, and TOML doesn't
