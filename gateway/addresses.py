"""Whose connection it is: the address that limits count by.

What it keeps true: an address is believed only if it was seen by us or by a proxy that the operator trusts. So
`X-Forwarded-For` is read from its right end, over as many trusted proxies as there are: what stands to the left of the
first address that is none of them was written by whoever wanted to, and counts for nothing.

An IPv4 address counts as itself. An IPv6 address counts as its /64, since that is what one customer gets: who counts by
the single address counts to 2**64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from solowire.accept_limits import counted_address

Address = IPv4Address | IPv6Address


class Addresses:
    """trusted: networks, such as 10.0.0.0/8, or single addresses. Raises ValueError for what is neither."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = [ip_network(network) for network in trusted]

    def of(self, scope: Mapping[str, Any]) -> str:
        """Whence an ASGI request comes, as it is counted; "" if the server beneath doesn't know."""
        client = scope.get("client")
        if not client:
            return ""
        peer: str = client[0]
        if not self._trusted:
            return counted_address(peer)
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return self.seen(peer, ",".join(forwarded))

    def seen(self, peer: str, forwarded: str) -> str:
        """forwarded: X-Forwarded-For, all of them joined by commas."""
        if not self._trusted:
            return counted_address(peer)
        seen = _parse(peer)
        if seen is None:
            return peer
        rest = forwarded
        while rest and self._trusts(seen):
            rest, _, entry = rest.rpartition(",")
            further = _parse(_bare(entry.strip()))
            if further is None:
                break  # `unknown`, or nonsense: who passed it on is all that we know
            seen = further
        return _counted(seen)

    def trusts(self, peer: str) -> bool:
        """Whether a peer is a proxy that the operator trusts."""
        address = _parse(peer) if self._trusted else None
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


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
