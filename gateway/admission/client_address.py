"""The address that limits count a connection by, and the scheme and host that it was asked for by.

What it keeps true: an address is believed only if it was seen by us or by a proxy that the operator trusts. So
`X-Forwarded-For` is read from its right end, over as many trusted proxies as there are: what stands to the left of the
first address that is none of them was written by whoever wanted to, and counts for nothing. So is `Forwarded`
(RFC 7239), and of both only that which the proxies write: the other may be the client's own. What a trusted proxy says
of scheme and host is believed of the one that has seen the client; of a peer that is none nothing is.

An IPv4 address counts as itself. An IPv6 address counts as its /64, since that is what one customer gets: who counts by
the single address counts to 2**64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from solowire.algorithms.accept_limiter import counted_address
from solowire.gateway.admission.forwarded_headers import (
    Element,
    ForwardedHeaders,
    collect_forwarded,
    parse_forwarded,
    parse_host,
    parse_lists,
    parse_scheme,
)

Address = IPv4Address | IPv6Address


class ClientAddressResolver:
    """Finds the address of a request's client behind trusted proxies.

    trusted: networks, such as 10.0.0.0/8, or single addresses. Raises ValueError for what is neither.

    header: which headers these proxies write: `x-forwarded`, `forwarded`, or `auto`: `Forwarded` where it is alone.
    """

    def __init__(self, trusted: Iterable[str] = (), header: str = "auto") -> None:
        self._trusted = [ip_network(network) for network in trusted]
        self._header = header

    def resolve_scope(self, scope: Mapping[str, Any]) -> str:
        """Whence an ASGI request comes, as it is counted; "" if the server beneath doesn't know."""
        client = scope.get("client")
        if not client:
            return ""
        peer: str = client[0]
        if not self._trusted:
            return counted_address(peer)
        return self.resolve_client(peer, read_forwarded(scope))

    def resolve_client(self, peer: str, headers: ForwardedHeaders) -> str:
        """The client's address, as it is counted. headers: what the request's headers say of how it has come."""
        if not self._trusted:
            return counted_address(peer)
        address = _parse(peer)
        if address is None:
            return peer
        return _counted(self._walk(address, headers)[0])

    def resolve_origin(self, peer: str, headers: ForwardedHeaders) -> tuple[str | None, str | None]:
        """The scheme and the host by which a trusted proxy was asked; None for what none of them says."""
        address = _parse(peer) if self._trusted else None
        if address is None or not self._is_trusted(address):
            return None, None
        _, passed = self._walk(address, headers)
        # Of the proxy that has seen the client, or else of the next that says anything.
        schemes = [scheme for element in reversed(passed) if (scheme := parse_scheme(element.scheme))]
        hosts = [host for element in reversed(passed) if (host := parse_host(element.host))]
        return schemes[0] if schemes else None, hosts[0] if hosts else None

    def _walk(self, peer: Address, headers: ForwardedHeaders) -> tuple[Address, list[Element]]:
        """The first address that is no trusted proxy's, and what the proxies before it have said."""
        standard = self._header == "forwarded" or (self._header == "auto" and not headers.has_x_forwarded)
        elements = parse_forwarded(headers.forwarded) if standard else parse_lists(headers)
        seen, passed = peer, []
        for element in elements:
            if not self._is_trusted(seen):
                break
            passed.append(element)
            further = _parse(_bare(element.node))
            if further is None:
                break  # `unknown`, or nonsense: who passed it on is all that we know
            seen = further
        return seen, passed

    def is_trusted(self, peer: str) -> bool:
        """Whether a peer is a proxy that the operator trusts."""
        address = _parse(peer) if self._trusted else None
        return address is not None and self._is_trusted(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def read_forwarded(scope: Mapping[str, Any]) -> ForwardedHeaders:
    """What an ASGI request says of how it has come."""
    return collect_forwarded((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


def _counted(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))


def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])  # without the zone of a link-local one
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _bare(entry: str) -> str:
    """An entry without port, brackets and quotes, as some proxies write them."""
    entry = entry.strip('"')
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
