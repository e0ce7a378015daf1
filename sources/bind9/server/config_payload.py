"""The `config_change` of a changed configuration.

Pure: values in, data out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from solowire.sources.bind9.server.config_history import ConfigNews, ConfigSnapshot
from solowire.sources.bind9.server.config_text import compare_texts

ERRORS = 10
ERROR_CHARACTERS = 400

_MESSAGES = {
    "loaded": "named has loaded a changed configuration",
    "rejected": "named has refused the configuration and goes on with the one before",
    "not loaded": "the configuration was edited, and named has not been told",
    "invalid": "the configuration was edited and is invalid; named has not been told, and could not start with it",
    "unknown": "the configuration was edited; whether named has loaded it is not known",
}


def make_config_payload(news: ConfigNews, path: str, server: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """The data of the event. path: of named.conf; files: that were written. No secrets. May take a moment."""
    data: dict[str, Any] = {
        "action": news.action,
        "status": news.status,
        "entity_type": "named.conf",
        "entity_name": server,
        "component": "bind9",
        "path": path,
        "before": {"hash": news.before.digest},
        "after": {"hash": news.after.digest},
        "message": "an edit of the configuration was taken back"
        if news.action == "reverted"
        else _MESSAGES[news.status],
    }
    if news.before.text is not None and news.after.text is not None:
        difference = compare_texts(news.before.text, news.after.text)
        data["message"] += f": {difference.added_count} lines added, {difference.removed_count} removed"
        if difference.diff is None:
            data["message"] += "; too many for a difference"
        else:
            data["diff"] = difference.diff
    details = {"errors": _bound_lines(news.errors), "files": _bound_lines(files)}
    if any(details.values()):
        data["details"] = {name: lines for name, lines in details.items() if lines}
    return data


def make_invalid_snapshot(lines: Sequence[str]) -> ConfigSnapshot:
    """A configuration with faults. lines: what `named-checkconf` says of it, without secrets."""
    errors = tuple(_bound_lines([line for line in lines if line.strip()]))
    return ConfigSnapshot(digest=digest_text("\n".join(errors)), errors=errors)


def digest_text(text: str) -> str:
    """By which two texts are compared."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _bound_lines(lines: Sequence[str]) -> list[str]:
    kept = [line[:ERROR_CHARACTERS] for line in lines[:ERRORS]]
    return kept if len(lines) <= ERRORS else [*kept, f"… and {len(lines) - ERRORS} more"]
