"""The forwarders to probe: named one by one, or read out of named's configuration, now and then anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import parse_address
from solowire.sources.bind9.server.config_files import check_config, find_checker
from solowire.sources.forwarders.named_forwarders import DNS_PORT, NamedForwarder, NamedForwarders, read_forwarders

SHOWN = 500  # characters of what named-checkconf says


class ForwarderListUnavailable(Exception):
    """The configuration of named can't be read now. Its text says why, with the path."""


def parse_forwarders(texts: Sequence[str], setting: str) -> list[NamedForwarder]:
    """The forwarders that a setting names. Raises ConfigError."""
    addresses = dict.fromkeys(parse_address(text, DNS_PORT, setting) for text in texts)
    return [NamedForwarder(address) for address in addresses]


async def read_named_conf(path: Path) -> NamedForwarders:
    """The forwarders of a named.conf. path: absolute.

    Raises ForwarderListUnavailable; ConfigError without `named-checkconf`.
    """
    read = await check_config(find_checker(), path, "-p", "-x")
    if not read.is_valid:
        problem = read.problem or "; ".join([*read.messages, *read.output.splitlines()]) or "named-checkconf refuses it"
        raise ForwarderListUnavailable(problem[:SHOWN] if str(path) in problem else f"{path}: {problem[:SHOWN]}")
    try:
        return read_forwarders(read.output)
    except ConfigError as error:
        raise ForwarderListUnavailable(f"{path}: {error}") from None
