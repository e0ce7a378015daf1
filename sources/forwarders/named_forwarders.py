"""The forwarders in named's configuration, as `named-checkconf -px` prints it.

    options { forwarders port 53 { 192.0.2.1; 192.0.2.2 port 5353; }; };
    view "inside" { zone "corp.example" { type forward; forwarders { 10.0.0.2; }; }; };

What it keeps true: any text gives forwarders or ConfigError, in time that grows with its length. A forwarder that is
named in several places is one, with all its views and zones. Those that are spoken to over TLS are left out, by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.bind9.conf_tokens import split_tokens

DNS_PORT = 53


@dataclass
class NamedForwarder:
    """One forwarder. views, zones: where it is named; none for the whole server."""

    address: ServerAddress
    views: list[str] = field(default_factory=list)
    zones: list[str] = field(default_factory=list)


@dataclass
class NamedForwarders:
    """All that the configuration names. left_out: those that can't be probed by plain DNS, as they are written."""

    forwarders: list[NamedForwarder]
    left_out: list[str]


def read_forwarders(configuration: str) -> NamedForwarders:
    """The forwarders that `named-checkconf -px` has printed. Raises ConfigError for what is no configuration."""
    found: dict[ServerAddress, NamedForwarder] = {}
    left_out: list[str] = []
    for place, words, entry in _list_entries(configuration):
        port = _number_after("port", words, DNS_PORT)
        written = " ".join(entry)
        if "tls" in words or "tls" in entry[1:]:
            left_out.append(written)
            continue
        try:
            address = ServerAddress(str(ipaddress.ip_address(entry[0])), _number_after("port", entry, port))
        except ValueError:
            raise ConfigError(f"the forwarder {written!r} has no address that can be read") from None
        known = found.setdefault(address, NamedForwarder(address))
        for kind, name in place:
            names = known.views if kind == "view" else known.zones
            if name not in names:
                names.append(name)
    return NamedForwarders(list(found.values()), list(dict.fromkeys(left_out)))


def _list_entries(text: str) -> Iterator[tuple[list[tuple[str, str]], list[str], list[str]]]:
    """Each entry of a `forwarders` block: the views and zones around it, the block's own words, and the entry's."""
    blocks: list[list[str]] = []  # the words before each brace that is open
    words: list[str] = []
    for token in split_tokens(text):
        part = token.text
        if not token.is_mark:
            words.append(part)
        elif part == "{":
            blocks.append(words)
            words = []
        else:
            if words and blocks and blocks[-1][:1] == ["forwarders"]:
                place = [(each[0], each[1]) for each in blocks if each[:1] in (["view"], ["zone"]) and len(each) > 1]
                yield place, blocks[-1], words
            words = []
            if part == "}":
                if not blocks:
                    raise ConfigError("a brace is closed that was not opened: that is no output of named-checkconf")
                blocks.pop()
    if blocks:
        raise ConfigError("the last brace is not closed: that is no whole output of named-checkconf")


def _number_after(name: str, words: list[str], default: int) -> int:
    """The number that follows a word. Raises ConfigError."""
    if name not in words[1:]:
        return default
    place = words.index(name, 1) + 1
    text = words[place] if place < len(words) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        raise ConfigError(f"{' '.join(words)!r}: {name} has no number that can be read")
    return int(text)
