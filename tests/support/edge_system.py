"""Single processes behind nginx, with the configuration that the chart gives to its edge.

Nothing of the configuration is changed but addresses and folders: two shards listen on the same port, as two pods do,
each at a loopback address of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.chart import find, merge, render
from tests.support.system import System, end, free_ports, ready

NGINX = "/usr/sbin/nginx"
VALUES: Mapping[str, Any] = {
    "host": "127.0.0.1",
    "tls": {"enabled": False},
    "expose": {"type": "none"},
    "network": {"podNetworks": ["127.0.0.0/8"]},
}


class EdgeSystem(System):
    """Two shards, a gateway and an nginx on loopback. settings: as of System; values: of the chart."""

    def __init__(self, directory: Path, settings: Mapping[str, object], values: Mapping[str, Any]) -> None:
        self.edge_port = free_ports(2)
        self.edge_url = f"http://127.0.0.1:{self.edge_port}"
        super().__init__(
            directory / "data",
            shards=2,
            settings={"GATEWAY__SHARD_URL": f"ws://127.0.0.1:{self.edge_port}/s/{{shard}}/ws", **settings},
        )
        self.shard_port = self.port + 1
        self.environment |= {
            "SOLOWIRE_PORT": str(self.port),
            "SOLOWIRE_SHARD__PORT": str(self.shard_port),
            "SOLOWIRE_ROUTER__METRICS_PORT": "0",
            "SOLOWIRE_LISTEN__TRUSTED_PROXIES": "127.0.0.0/8",
        }
        self.place = directory / "nginx"
        self.place.mkdir()
        self.started: dict[str, subprocess.Popen[str]] = {}
        self._values = merge(VALUES, values)

    def start(self) -> None:
        """Returns when the edge lets users in."""
        self.started["router"] = self.spawn("router")
        for index in range(self.shards):
            self.start_shard(index)
        self.started["gateway"] = self.spawn("gateway")
        self.started["edge"] = start_nginx(self.place, self.render_configuration(self.port))
        urls = [self.edge_url, *(f"http://{self.shard_host(index)}:{self.shard_port}" for index in range(self.shards))]
        self.wait_until(lambda: all(map(ready, urls)), "the edge and its shards are ready")

    def start_shard(self, index: int) -> None:
        arguments = ("shard", "--index", str(index), "--host", self.shard_host(index))
        self.started[f"shard-{index}"] = self.spawn(*arguments)

    @staticmethod
    def shard_host(index: int) -> str:
        return f"127.0.0.{2 + index}"

    def render_configuration(self, gateway_port: int, edge_port: int | None = None) -> str:
        """The chart's nginx.conf, at home on loopback."""
        edge_port = self.edge_port if edge_port is None else edge_port
        text: str = find(render(self._values), "ConfigMap", "edge")["data"]["nginx.conf"]
        for old, new, count in (
            ("/tmp/", f"{self.place}/", 6),
            ("listen 8080 ", f"listen 127.0.0.1:{edge_port} ", 1),
            ("listen 8081;", f"listen 127.0.0.1:{edge_port + 1};", 1),
            ("server solowire-gateway:8000 ", f"server 127.0.0.1:{gateway_port} ", 2),
            (":8001$", f":{self.shard_port}$", 1),
        ):
            assert text.count(old) == count, old
            text = text.replace(old, new)
        return text

    def stop(self) -> int:
        return max(end(process) for process in reversed(self.started.values()))


def start_nginx(place: Path, configuration: str) -> subprocess.Popen[str]:
    """nginx with this configuration; what it says goes to edge.log."""
    (place / "nginx.conf").write_text(configuration)
    with (place / "edge.log").open("a") as log:
        return subprocess.Popen([NGINX, "-e", "stderr", "-c", str(place / "nginx.conf")], stderr=log, text=True)
