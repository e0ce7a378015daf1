"""Settings that are read from a file or from the environment, and what is said of wrong ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from solowire.errors import ConfigError
from solowire.runtime.domain_loader import load_domain, name_scopes
from solowire.runtime.settings import load


def fault(config: Path | None = None, variables: Mapping[str, object] | None = None, **options: Any) -> str:
    """The one line that loading ends with. variables: without their prefix."""
    with mock.patch.dict(os.environ, to_environment(variables or {})), pytest.raises(ConfigError) as raised:
        load_all(config, **options)
    line = str(raised.value)
    assert line
    assert "\n" not in line
    return line


def load_all(config: Path | None, **options: Any) -> None:
    """As each process does: what settings say of event types and scopes is judged by the domain."""
    settings = load(config, **options)
    name_scopes(settings, load_domain(settings))


def to_environment(variables: Mapping[str, object]) -> dict[str, str]:
    return {f"SOLOWIRE_{name}": _write(value) for name, value in variables.items()}


def _write(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def toml(place: Path, text: str) -> Path:
    path = place / "solowire.toml"
    path.write_text(text, encoding="utf-8")
    return path
