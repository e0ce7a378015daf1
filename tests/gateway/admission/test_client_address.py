"""Whose address counts: the peer's, or what proxies that are trusted say of it, and never what a client claims."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.accept_limiter import counted_address
from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.admission.forwarded_headers import ForwardedHeaders

PROXIES = ClientAddressResolver(["10.0.0.0/8", "192.0.2.7", "2001:db8:f::/48"])


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode()) for value in forwarded)]
    return {"client": (peer, 4711) if peer is not None else None, "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("203.0.113.5", (), "203.0.113.5"),
        ("203.0.113.5", ("198.51.100.1",), "203.0.113.5"),
        ("10.1.1.1", (), "10.1.1.1"),
        ("10.1.1.1", ("198.51.100.1",), "198.51.100.1"),
        ("192.0.2.7", ("198.51.100.1",), "198.51.100.1"),
        ("192.0.2.8", ("198.51.100.1",), "192.0.2.8"),
        ("10.1.1.1", ("1.2.3.4, 198.51.100.1",), "198.51.100.1"),
        ("10.1.1.1", ("1.2.3.4, 198.51.100.1, 10.2.2.2",), "198.51.100.1"),
        ("10.1.1.1", ("1.2.3.4, 198.51.100.1", "10.2.2.2"), "198.51.100.1"),
        ("10.1.1.1", ("10.3.3.3, 10.2.2.2",), "10.3.3.3"),
        ("10.1.1.1", ("198.51.100.1, unknown",), "10.1.1.1"),
        ("10.1.1.1", ("198.51.100.1, _hidden, 10.2.2.2",), "10.2.2.2"),
        ("10.1.1.1", ("",), "10.1.1.1"),
        ("10.1.1.1", (",,",), "10.1.1.1"),
        ("10.1.1.1", ("198.51.100.1:8080",), "198.51.100.1"),
        ("10.1.1.1", ('"[2001:db8:1:2:3::4]:8080"',), "2001:db8:1:2::/64"),
        ("10.1.1.1", ("[2001:db8:1:2:3::4]",), "2001:db8:1:2::/64"),
        ("10.1.1.1", ("2001:db8:1:2:3::4",), "2001:db8:1:2::/64"),
        ("2001:db8:f:1::1", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.1.1.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.1.1.1", ("::ffff:198.51.100.1",), "198.51.100.1"),
        (None, ("198.51.100.1",), ""),
    ],
)
def test_who_counts(peer: str | None, forwarded: tuple[str, ...], seen: str) -> None:
    """The first from the right that is no trusted proxy; what stands to its left may say anything."""
    assert PROXIES.resolve_scope(scope(peer, *forwarded)) == seen


def test_without_proxies_only_the_peer_counts() -> None:
    """Where no proxy is trusted, X-Forwarded-For is not looked at."""
    assert ClientAddressResolver().resolve_scope(scope("10.1.1.1", "198.51.100.1")) == "10.1.1.1"
    assert ClientAddressResolver().resolve_scope(scope("fe80::1:2%eth0")) == "fe80::/64"


def test_an_ipv6_customer_counts_once() -> None:
    """All addresses of one /64 are one, those of the next are not, and an IPv4 one in IPv6's clothes is itself."""
    assert (
        counted_address("2001:db8:0:1::1")
        == counted_address("2001:db8:0:1:ffff::9")
        != counted_address("2001:db8:0:2::1")
    )
    assert counted_address("::ffff:192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "everyone", "", "10.0.0.0/8, 10.1.0.0/16"])
def test_what_is_no_network_is_an_error(network: str) -> None:
    """A network that is none is not taken for no network."""
    with pytest.raises(ValueError, match=r"."):
        ClientAddressResolver([network])


@settings(deadline=None)
@given(st.text(max_size=60))
def test_whatever_a_client_claims_does_not_matter(claim: str) -> None:
    """Any text before the entry that the trusted proxy has written changes nothing."""
    assert PROXIES.resolve_client("10.1.1.1", ForwardedHeaders(f"{claim}, 198.51.100.1")) == "198.51.100.1"


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_header_is_read_without_an_error(text: str) -> None:
    """Whatever a proxy passes on, there is an address in the end."""
    assert PROXIES.resolve_client("10.1.1.1", ForwardedHeaders(text))
