"""Hosts and endpoints as they are written, and which address others are told."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.errors import ConfigError
from solowire.runtime.settings import load
from solowire.runtime.settings.hosts import is_loopback, is_wildcard, split_endpoint

TCP = "tcp://router.example:7400"


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
    ("options", "host"),
    [
        ({"host": "10.0.0.5", "backplane": TCP}, "10.0.0.5"),
        ({"host": "0.0.0.0", "backplane": TCP, "listen": {"advertised_host": "[fd00::5]"}}, "fd00::5"),
        ({"host": "127.0.0.1", "backplane": TCP, "listen": {"advertised_host": "shard-0.example"}}, "shard-0.example"),
        ({"host": "127.0.0.1", "backplane": "tcp://127.0.0.1:7400"}, "127.0.0.1"),
        ({"host": "127.0.0.1"}, "127.0.0.1"),
        ({"host": "0.0.0.0"}, "127.0.0.1"),
        ({"host": "::"}, "::1"),
        ({"host": "[fd00::5]", "backplane": TCP}, "fd00::5"),
    ],
)
def test_the_address_that_others_are_told(options: dict[str, Any], host: str) -> None:
    """That which is set, or the one that is listened on; on one machine that is always one that can be reached."""
    assert load(**options).find_advertised_host() == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "localhost"])
def test_an_address_that_other_hosts_cant_reach(host: str) -> None:
    """It is refused where there are others, with the setting that says another."""
    with pytest.raises(ConfigError, match=rf"--host: {host} .*SOLOWIRE_LISTEN__ADVERTISED_HOST"):
        load(host=host, backplane=TCP).find_advertised_host()


def test_api_ports() -> None:
    """Of one process alone as set; of a shard that gateways of other hosts ask never a file."""
    networked = load(host="10.0.0.5", backplane=TCP)
    assert networked.find_shard_api(3) == ("10.0.0.5", 0)
    assert load(backplane=TCP, listen={"api_host": "::", "api_port": 9000}).find_shard_api(3) == ("::", 9000)
    assert load(shard={"api_port": 9000}).find_shard_api(3) == ("127.0.0.1", 9003)
    assert load(listen={"api_port": 9000}).router_metrics_port == 9000
    assert load(router={"metrics_port": 9001}).router_metrics_port == 9001
