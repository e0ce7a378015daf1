"""Headers of proxies: RFC 7239's `Forwarded`, and the X-Forwarded-… that came before it.

Only takes them apart: whom to believe is `solowire.gateway.admission.client_address`'s to say.

What it keeps true: lists are read from their right end, where the nearest proxy has written. An element that can't be
read ends what can be known: nothing to its left counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import NamedTuple

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 -- RFC 9110, section 5.6.2
_PAIR = re.compile(rf'[ \t]*({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*')
_HOST = re.compile(r"\[([0-9A-Fa-f:.]+)(?:%(?:25)?([A-Za-z0-9._~-]+))?\]|([A-Za-z0-9._-]+)")
_PORT = re.compile(r":\d{0,5}")
MAX_ELEMENTS = 100
SECURE = ("https", "wss")
_SCHEMES = ("http", "ws", *SECURE)


class ForwardedHeaders(NamedTuple):
    """The headers of a request, each as one list: those that came several times are joined by commas."""

    x_for: str = ""
    x_proto: str = ""
    x_host: str = ""
    forwarded: str = ""

    @property
    def has_x_forwarded(self) -> bool:
        return bool(self.x_for or self.x_proto or self.x_host)


class Element(NamedTuple):
    """What one proxy says: from whom it got the request, and by which scheme and host it was asked. "": not said."""

    node: str = ""
    scheme: str = ""
    host: str = ""


FORWARDED_HEADERS = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded")


def collect_forwarded(headers: Iterable[tuple[str, str]]) -> ForwardedHeaders:
    """Collects what proxies say of a request. headers: names in whatever case."""
    found: dict[str, list[str]] = {name: [] for name in FORWARDED_HEADERS}
    for name, value in headers:
        if (folded := name.lower()) in found:
            found[folded].append(value)
    return ForwardedHeaders(*(",".join(found[name]) for name in FORWARDED_HEADERS))


def parse_forwarded(text: str) -> list[Element]:
    """The elements of `Forwarded`, the nearest proxy's first, as far as they can be read."""
    elements: list[Element] = []
    for part in reversed(_split(text, ",")[-MAX_ELEMENTS:]):
        if not part.strip():
            continue
        element = _element(part)
        if element is None:
            break
        elements.append(element)
    return elements


def parse_lists(headers: ForwardedHeaders) -> list[Element]:
    """The elements of the X-Forwarded-… lists, the nearest proxy's first.

    Where a list is as long as that of the addresses each proxy has written into both; else what was asked for first is
    what the client has asked for.
    """
    nodes, schemes, hosts = (
        [entry.strip() for entry in text.split(",")][-MAX_ELEMENTS:] if text else []
        for text in (headers.x_for, headers.x_proto, headers.x_host)
    )
    count = max(1, len(nodes))

    def spread(entries: list[str]) -> list[str]:
        first = next((entry for entry in entries if entry), "")
        return entries if len(entries) == count else [first] * count

    nodes = nodes or [""]
    found = map(Element, reversed(nodes), reversed(spread(schemes)), reversed(spread(hosts)))
    return list(found)


def parse_scheme(text: str) -> str | None:
    """`http` or the like, in whatever case; None for what is no scheme of ours."""
    scheme = text.strip().strip('"').lower()
    return scheme if scheme in _SCHEMES else None


def parse_host(text: str) -> str | None:
    """A Host without its port, as a URL has it; None if it is none (RFC 3986, section 3.2.2; RFC 6874 for zones)."""
    text = text.strip().strip('"')
    found = _HOST.match(text)
    if found is None or (found.end() < len(text) and not _PORT.fullmatch(text, found.end())):
        return None
    address, zone, name = found.groups()
    if address is None:
        return str(name)
    try:
        IPv6Address(address)
    except ValueError:
        return None
    return f"[{address}%25{zone}]" if zone else f"[{address}]"


def _element(text: str) -> Element | None:
    values: dict[str, str] = {}
    for pair in _split(text, ";"):
        if not pair.strip():
            continue
        found = _PAIR.fullmatch(pair)
        if found is None:
            return None
        name, token, quoted = found.groups()
        value = token if token is not None else re.sub(r"\\(.)", r"\1", quoted)
        if values.setdefault(name.lower(), value) != value:
            return None
    return Element(values.get("for", ""), values.get("proto", ""), values.get("host", ""))


def _split(text: str, sign: str) -> list[str]:
    """At each `sign` that stands outside of quotes."""
    parts, start, quoted, skip = [], 0, False, False
    for place, character in enumerate(text):
        if skip:
            skip = False
        elif quoted and character == "\\":
            skip = True
        elif character == '"':
            quoted = not quoted
        elif character == sign and not quoted:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
