"""Hosts and endpoints as they are written."""

from __future__ import annotations

import pytest

from solowire.algorithms.hosts import (
    bracket_host,
    find_own_address,
    is_http_url,
    is_loopback,
    is_wildcard,
    split_endpoint,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.5:7400", ("10.0.0.5", 7400)),
        ("router.example:1", ("router.example", 1)),
        ("[fd00::5]:65535", ("fd00::5", 65535)),
        ("[::]:7400", ("::", 7400)),
    ],
)
def test_endpoints(text: str, parts: tuple[str, int]) -> None:
    """An IPv6 address stands in brackets, which are no part of it."""
    assert split_endpoint(text) == parts


@pytest.mark.parametrize(
    "text", ["", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:+1", "::1:7400", "[::1]", "[h]:1", "a b:1"]
)
def test_what_is_no_endpoint(text: str) -> None:
    """Each is refused with how it is written."""
    with pytest.raises(ValueError, match=r"write|brackets|must be"):
        split_endpoint(text)


def test_what_stands_for_all_addresses_and_for_the_machine_itself() -> None:
    """By address, in each spelling; a name is only what it says."""
    assert [is_wildcard(h) for h in ("", "0.0.0.0", "::", "0::0", "10.0.0.5", "h")] == [True] * 4 + [False] * 2
    assert [is_loopback(h) for h in ("127.0.0.9", "::1", "localhost", "10.0.0.5", "h")] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("0::0", "[::1]"),
        ("fd00::5", "[fd00::5]"),
        ("10.0.0.5", "10.0.0.5"),
        ("router.example", "router.example"),
    ],
)
def test_where_a_server_of_this_machine_is_reached(host: str, shown: str) -> None:
    """One that listens on all addresses under the loopback one; as a URL has it."""
    assert bracket_host(find_own_address(host)) == shown


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("http://h", True),
        ("https://[fd00::5]:8000/x?y", True),
        ("ftp://h", False),
        ("http://", False),
        ("http://h:0", False),
        ("http://h:x", False),
        ("http://[fd00::x]", False),
        ("h:80", False),
        ("", False),
    ],
)
def test_urls_of_http(text: str, is_one: bool) -> None:
    """With a host, and a port that can be connected to; what can't be read is none."""
    assert is_http_url(text) is is_one
