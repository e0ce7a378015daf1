"""The settings that have changed since a process began, and are not in force before it starts again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from solowire.runtime.settings import Settings

RELOADED = (
    "accepted_secrets",
    "curve.member_keys",
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


_TOKEN = re.compile(r"(?:^|[ _])token$", re.IGNORECASE)


class ReloadNote(NamedTuple):
    """What an operator has to know of a part that was reloaded. fields: of the log line. hint: what follows from it."""

    fields: Mapping[str, object]
    hint: str


def explain_waiting(names: Sequence[str]) -> str:
    """What else can be done about settings that wait for a restart; "" if there is nothing."""
    if any(_TOKEN.search(name) for name in names):
        return " (a token alone: in the file of token_file, which is read again whenever another one is needed)"
    return ""


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
