"""The settings that have changed since a process began, and are not in force before it starts again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from solowire.runtime.settings import Settings

RELOADED = (
    "accepted_secrets",
    "limits.groups",
    "limits.lease_s",
    "limits.max_connections",
    "limits.max_connections_per_address",
    "limits.max_connections_per_shard",
    "logging.level",
    "roles_file",
    "secret",
)
"""What a reload puts in force: each of these, and what is beneath it."""


def list_waiting_settings(before: Settings, now: Settings) -> list[str]:
    """The settings that differ and wait for a restart, as the user writes them."""
    old, new = dict(_flatten(before.model_dump())), dict(_flatten(now.model_dump()))
    changed = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return [now.name_setting(path) for path in changed if not _is_reloaded(path)]


def _is_reloaded(path: str) -> bool:
    return any(path == known or path.startswith(known + ".") for known in RELOADED)


def _flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{above}{name}.")
        else:
            yield above + name, value
