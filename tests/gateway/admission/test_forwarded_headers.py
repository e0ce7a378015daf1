"""What proxies say of a request: read as RFC 7239 writes it, and as its predecessors are written in the world."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.admission.forwarded_headers import (
    Element,
    ForwardedHeaders,
    collect_forwarded,
    parse_forwarded,
    parse_host,
    parse_lists,
    parse_scheme,
)

PROXIES = ClientAddressResolver(["10.0.0.0/8"])


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        # The examples of RFC 7239, sections 4 and 7.
        ('for="_gazonk"', [Element("_gazonk")]),
        ('For="[2001:db8:cafe::17]:4711"', [Element("[2001:db8:cafe::17]:4711")]),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", [Element("192.0.2.60", "http")]),
        ("for=192.0.2.43, for=198.51.100.17", [Element("198.51.100.17"), Element("192.0.2.43")]),
        (
            'for=192.0.2.43,for="[2001:db8:cafe::17]",for=unknown',
            [Element("unknown"), Element("[2001:db8:cafe::17]"), Element("192.0.2.43")],
        ),
        ('for=_hidden, for=_SEVKISEK;host="a,b;c"', [Element("_SEVKISEK", "", "a,b;c"), Element("_hidden")]),
        (r'for="a\"b\\c"', [Element('a"b\\c')]),
        ("", []),
        (" , ,", []),
        ("nonsense", []),
        ("for=1.2.3.4, nonsense, for=10.0.0.1", [Element("10.0.0.1")]),
        ("for=1.2.3.4;for=5.6.7.8", []),
        ('for="1.2.3.4', []),
        ("for = 1.2.3.4", []),
    ],
)
def test_forwarded_is_read_from_its_right_end(text: str, elements: list[Element]) -> None:
    """The nearest proxy's element comes first; one that can't be read hides all to its left."""
    assert parse_forwarded(text) == elements


def test_lists_that_are_as_long_as_that_of_the_addresses() -> None:
    """Each proxy has written into both; else the first entry is what the client has asked for."""
    both = parse_lists(ForwardedHeaders("192.0.2.1, 10.0.0.1", "https, http", "a, b"))
    assert both == [Element("10.0.0.1", "http", "b"), Element("192.0.2.1", "https", "a")]
    assert {element.scheme for element in parse_lists(ForwardedHeaders("1.1.1.1, 10.0.0.1", "https"))} == {"https"}
    assert parse_lists(ForwardedHeaders(x_proto=", https, http")) == [Element("", "https", "")]


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("https", "https"), (" HTTPS\t", "https"), ('"wss"', "wss"), ("Http", "http"), ("", None), ("h2", None)],
)
def test_schemes(text: str, scheme: str | None) -> None:
    """In whatever case, and nothing but those of ours."""
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("example.com", "example.com"),
        ("example.com:8000", "example.com"),
        ("example.com:", "example.com"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[::1]:8000", "[::1]"),
        ("[fe80::1%25eth0]:8000", "[fe80::1%25eth0]"),
        ("[fe80::1%eth0]", "[fe80::1%25eth0]"),
        ("[fe80::1%25wlan0.1]", "[fe80::1%25wlan0.1]"),
        ("[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"),
        ("", None),
        ("::1", None),
        ("[::1", None),
        ("[fe80::1%]", None),
        ("[192.0.2.1]", None),
        ("a b", None),
        ("a/b", None),
        ("user@a", None),
        ("a:port", None),
    ],
)
def test_hosts(text: str, host: str | None) -> None:
    """As RFC 3986 writes them, with RFC 6874's zones; what is none is nobody's."""
    assert parse_host(text) == host


def asked(peer: str = "10.1.1.1", header: str = "auto", **headers: str) -> tuple[str | None, str | None]:
    said = collect_forwarded((name.replace("_", "-").title(), value) for name, value in headers.items())
    return ClientAddressResolver(["10.0.0.0/8"], header).resolve_origin(peer, said)


def test_only_trusted_proxies_are_believed() -> None:
    """A client that says how it has come is not."""
    said = {"x_forwarded_proto": "https", "x_forwarded_host": "a.example", "forwarded": "proto=https;host=a.example"}
    assert asked("203.0.113.5", **said) == (None, None)
    assert ClientAddressResolver().resolve_origin("10.1.1.1", ForwardedHeaders("", "https", "a.example")) == (
        None,
        None,
    )
    assert asked(**said) == ("https", "a.example")


def test_what_stands_left_of_a_stranger_is_the_strangers() -> None:
    """The element that counts is that of the last trusted proxy, which has seen the client."""
    forwarded = "for=6.6.6.6;proto=http;host=evil, for=192.0.2.1;proto=https;host=good, for=10.0.0.2;proto=http;host=in"
    assert asked(forwarded=forwarded) == ("https", "good")
    assert PROXIES.resolve_client("10.1.1.1", ForwardedHeaders(forwarded=forwarded)) == "192.0.2.1"
    assert asked(x_forwarded_for="6.6.6.6, 192.0.2.1", x_forwarded_proto="http, https") == ("https", None)


def test_the_header_that_proxies_do_not_write_is_not_looked_at() -> None:
    """It came through them as the client wrote it."""
    said = ForwardedHeaders(x_for="6.6.6.6", forwarded="for=192.0.2.1")
    assert ClientAddressResolver(["10.0.0.0/8"], "forwarded").resolve_client("10.1.1.1", said) == "192.0.2.1"
    assert ClientAddressResolver(["10.0.0.0/8"], "x-forwarded").resolve_client("10.1.1.1", said) == "6.6.6.6"
    assert (
        ClientAddressResolver(["10.0.0.0/8"], "x-forwarded").resolve_client(
            "10.1.1.1", ForwardedHeaders(forwarded="for=1.1.1.1")
        )
        == "10.1.1.1"
    )
    assert asked(forwarded="proto=https") == ("https", None)
    assert asked(header="x-forwarded", forwarded="proto=https") == (None, None)


@given(st.text(max_size=80), st.text(alphabet='for=;,"\\ 1.:[]%', max_size=60))
@settings(deadline=None)
def test_whatever_is_written_there_is_read_or_not(text: str, likely: str) -> None:
    """No header ends anything, and what a client writes to the left of a proxy's element changes nothing."""
    for claim in (text, likely):
        parse_lists(ForwardedHeaders(claim, claim, claim))
        parse_host(claim)
        parse_forwarded(claim)
        said = ForwardedHeaders(forwarded=f"{claim}, for=192.0.2.1")
        if claim.count('"') % 2 == 0 and "\\" not in claim:
            assert PROXIES.resolve_client("10.1.1.1", said) == "192.0.2.1"
