"""The pipelines by which records may change: who is one, of all who send updates.

Pure: texts of the settings in, a decision out.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from solowire.errors import ConfigError
from solowire.sources.bind9.security.client_group import is_within
from solowire.sources.bind9.zones.update_authors import UpdateAuthor


class Pipelines:
    """Authors of changes that are expected.

    entries: `key:NAME`, a TSIG key; `client:ADDRESS` or `client:NETWORK`; `actor:NAME`, as the settings call somebody.
    Raises ConfigError for another one.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._keys: set[str] = set()
        self._actors: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in entries:
            kind, _, value = entry.partition(":")
            if kind == "key" and value:
                self._keys.add(_normalize_key(value))
            elif kind == "actor" and value:
                self._actors.add(value)
            elif kind == "client" and value:
                try:
                    self._networks.append(ip_network(value, strict=False))
                except ValueError as error:
                    raise ConfigError(
                        f"source.drift.pipelines: {entry!r} is no address and no network: {error}"
                    ) from None
            else:
                raise ConfigError(
                    f"source.drift.pipelines: {entry!r} is no pipeline: write key:NAME, client:ADDRESS, client:NETWORK "
                    "or actor:NAME"
                )

    def includes_author(self, author: UpdateAuthor) -> bool:
        """Whether an author is one of them: by key, by address, or by name."""
        if author.tsig_key is not None and _normalize_key(author.tsig_key) in self._keys:
            return True
        if author.actor is not None and author.actor in self._actors:
            return True
        return author.client is not None and is_within(author.client, self._networks)


def _normalize_key(name: str) -> str:
    return name.lower().removesuffix(".")
