"""What `--zones` and `--scope` say of a token's scopes."""

from __future__ import annotations

from collections.abc import Iterable

from solowire.algorithms.name_suggestion import suggest_name
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError

_NAMES = {"zones": "zones", "zone": "zones"} | {name: name for name in CATALOG.attributes if name != "zone"}


def read_scope_options(zones: tuple[str, ...], scopes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Attribute → the values that may be seen. zones: those of --zones; scopes: NAME=VALUE each. Raises ConfigError."""
    found = {"zones": zones} if zones else {}
    for entry in scopes:
        name, sign, value = entry.partition("=")
        if not sign or not value:
            raise ConfigError(f"--scope {entry}: write NAME=VALUE, such as zone=example.com")
        if name not in _NAMES:
            there_are = f"there are {', '.join(sorted(_NAMES))}"
            raise ConfigError(f"--scope {entry}: unknown attribute {name!r}{suggest_name(name, _NAMES, there_are)}")
        found[_NAMES[name]] = (*found.get(_NAMES[name], ()), value)
    return found
