"""The options `--zones` and `--scope`."""

from __future__ import annotations

from collections.abc import Iterable

from solowire.algorithms.name_suggestion import suggest_name
from solowire.errors import ConfigError
from solowire.model.domain import Domain


def read_scope_options(zones: tuple[str, ...], scopes: Iterable[str], domain: Domain) -> dict[str, tuple[str, ...]]:
    """The values that may be seen, by scope. zones: of --zones; scopes: NAME=VALUE each. Raises ConfigError."""
    aliases = {attribute: alias for alias, attribute in domain.scope_aliases.items()}
    names = {name: aliases.get(name, name) for name in domain.catalog.attributes}
    names |= {alias: alias for alias in domain.scope_aliases}
    found = {"zones": zones} if zones else {}
    for entry in scopes:
        name, sign, value = entry.partition("=")
        if not sign or not value:
            raise ConfigError(f"--scope {entry}: write NAME=VALUE, such as zone=example.com")
        if name not in names:
            there_are = f"there are {', '.join(sorted(names))}"
            raise ConfigError(f"--scope {entry}: unknown attribute {name!r}{suggest_name(name, names, there_are)}")
        found[names[name]] = (*found.get(names[name], ()), value)
    return found
