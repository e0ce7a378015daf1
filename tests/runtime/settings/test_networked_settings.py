"""The addresses that a process of a system on several hosts listens on, and those that others are told."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.errors import ConfigError
from solowire.runtime.settings import load

TCP = "tcp://router.example:7400"


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
