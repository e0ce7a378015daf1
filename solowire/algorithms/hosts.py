"""Hosts, as they are written: addresses and names, by themselves, with a port, and in URLs."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

_NAME = re.compile(r"[^\s/@?#:\[\]]+")
_PORT = re.compile(r"[1-9]\d{0,4}", re.ASCII)


def strip_brackets(text: str) -> str:
    """An IPv6 address that is written as in a URL without its brackets; anything else as it is."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def bracket_host(host: str) -> str:
    """A host as a URL has it (RFC 3986, section 3.2): an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def check_host(text: str) -> str:
    """An address or a name; an IPv6 address without its brackets. Raises ValueError."""
    bare = strip_brackets(text)
    if ":" in bare:
        try:
            ip_address(bare)
        except ValueError:
            bare = ""
    elif bare != text or not _NAME.fullmatch(text):
        bare = ""
    if not bare:
        raise ValueError("it must be an address or a name, without a scheme and a port")
    return bare


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `10.0.0.5:7400`, `router.example:7400` or `[fd00::5]:7400`. Raises ValueError."""
    host, sign, port = text.rpartition(":")
    if not sign or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError("a port is missing, from 1 to 65535: write tcp://HOST:PORT")
    if ":" in host and not host.startswith("["):
        raise ValueError("an IPv6 address stands in brackets: tcp://[fd00::5]:7400")
    return check_host(host), int(port)


def is_http_url(text: str) -> bool:
    """Whether it is a URL of HTTP with a host, and with a port from 1 on if it has any."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether it stands for all addresses of a machine."""
    address = _parse(host)
    return host == "" or (address is not None and address.is_unspecified)


def find_own_address(host: str) -> str:
    """Under which address this machine reaches a server of its own that listens on `host`."""
    if not is_wildcard(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether it is known to mean the machine itself."""
    address = _parse(host)
    return address.is_loopback if address is not None else host.rstrip(".") == "localhost"


def is_address(host: str) -> bool:
    """Whether it is an address, which one machine has at a time, and no name, which may come to mean another one."""
    return _parse(host) is not None


def _parse(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
