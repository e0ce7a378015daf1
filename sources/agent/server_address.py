"""Addresses of servers as they are written in settings: `127.0.0.1`, `127.0.0.1#53`, `[::1]:53`, `::1#53`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from solowire.errors import ConfigError


class ServerAddress(NamedTuple):
    """An IP address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}#{self.port}"


def parse_address(text: str, default_port: int, setting: str) -> ServerAddress:
    """The address that a setting names. Raises ConfigError, which names the setting."""
    host, mark, port = text.strip().rpartition("#")
    if not mark:
        host, mark, port = text.strip().rpartition(":")
        if mark and ":" in host and not host.endswith("]"):  # an IPv6 address without a port
            mark = ""
    if not mark:
        host, port = text.strip(), str(default_port)
    try:
        address = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not 0 < number < 65536:
        raise ConfigError(
            f"{setting}: {text!r} is no address; write it as 127.0.0.1#{default_port} or ::1#{default_port}"
        )
    return ServerAddress(address, number)
