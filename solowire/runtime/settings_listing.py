"""The settings in force, as lines of TOML that can be kept as a file for `--config`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel, SecretStr

from solowire.runtime.settings import NO_DATA_DIR, Settings


def list_settings(settings: Settings) -> Iterator[str]:
    """One line each, with what it means. Those that are not set, and secrets, which are masked, are comments."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else _toml(value)
        is_masked = isinstance(value[0] if isinstance(value, list) and value else value, SecretStr)
        is_comment = value is None or is_masked or value == NO_DATA_DIR
        line = f"# {name} = {shown}".rstrip() if is_comment else f"{name} = {shown}"
        yield f"{line:<48}  # {field.description}" if field.description else line


def _toml(value: object) -> str:
    """As TOML, on one line: what is read again from a file is what is in force."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value if isinstance(value, (int, float)) else str(value))
