"""The chart's pods on loopback, each at an address of its own: what a kubelet would start, without containers.

Arguments, variables, settings files, ports and nginx's configuration are those that the chart renders. Only names of
Services, the address for all, and folders are others, as each pod has its own of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.certificates import make_certificate
from tests.support.chart import SECRETS, find, find_workload, merge, read_environment, render
from tests.support.requirements import find_program
from tests.support.system import ANSWER_SECONDS, System, end, environment, ready

NGINX = find_program("nginx") or "nginx"
WS_PORT, API_PORT, HTTP_PORT, HTTPS_PORT, HEALTH_PORT, GATEWAY_PORT = 8001, 9000, 8080, 8443, 8081, 8000
PLACES = {"router": 1, "shard": 2, "gateway": 10, "edge": 20}
"""The last byte of the address of a role's first pod."""


def find_network() -> str:
    """Three bytes of loopback addresses at which nobody listens."""
    while True:
        network = f"127.{random.randrange(64, 250)}.{random.randrange(1, 255)}"
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in (WS_PORT, HTTP_PORT):
                sock = held.enter_context(socket.socket())
                sock.bind((f"{network}.{PLACES['shard']}", port))
            return network


class FrontedSystem(System):
    """A system with a proxy in front of it, which clients come to."""

    edge_url: str


class EdgeSystem(FrontedSystem):
    """A router, two shards, a gateway and an edge, of a release with these values."""

    def __init__(self, directory: Path, values: Mapping[str, Any]) -> None:
        super().__init__(directory / "data", shards=2)
        self.network = find_network()
        self.edge_host = self.find_address("edge")
        self.edge_url = f"http://{self.edge_host}:{HTTP_PORT}"
        self.url = f"http://{self.find_address('gateway')}:{GATEWAY_PORT}"
        self.directory = directory
        self.started: dict[str, subprocess.Popen[str]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        own = {
            "host": self.edge_host,
            "tls": {"enabled": False},
            "expose": {"type": "none"},
            "network": {"podNetworks": [f"{self.network}.0/24"]},
            "settings": {"gateway": {"shard_url": f"ws://{self.edge_host}:{HTTP_PORT}/s/{{shard}}/ws"}},
        }
        self.manifests = render(merge(own, values))

    def find_address(self, role: str, index: int = 0) -> str:
        return f"{self.network}.{PLACES[role] + index}"

    @property
    def secret(self) -> str:
        return SECRETS["secret"]

    def start(self) -> None:
        """Returns when the edge lets users in."""
        for role, index in (("shard", 0), ("gateway", 0), ("router", 0), ("shard", 1)):  # in any order
            self.start_pod(role, index)
        place = self.directory / "e"
        place.mkdir()
        pem = make_certificate(place, self.edge_host).read_text()
        for name in ("tls.crt", "tls.key"):
            (place / name).write_text(pem)
        self.started["edge-0"] = start_nginx(place, self.render_configuration(place))
        self.wait_until(lambda: self._is_edge_healthy() and all(map(ready, self._list_probes())), "all pods are ready")

    def _list_probes(self) -> list[str]:
        shards = [f"http://{self.find_address('shard', index)}:{API_PORT}" for index in range(self.shards)]
        return [*shards, f"http://{self.find_address('router')}:{API_PORT}", self.url]

    def _is_edge_healthy(self) -> bool:
        try:
            url = f"http://{self.edge_host}:{HEALTH_PORT}/healthz"
            return httpx.get(url, timeout=2, trust_env=False, verify=False).is_success
        except httpx.HTTPError:
            return False

    def start_pod(self, role: str, index: int) -> None:
        """As a kubelet starts its container."""
        place, address = self.directory / f"{role[0]}{index}", self.find_address(role, index)
        place.mkdir(exist_ok=True)
        [container] = find_workload(self.manifests, role)["spec"]["template"]["spec"]["containers"]
        fields = {
            "metadata.name": f"solowire-{role}-{index}",
            "status.podIP": address,
            "metadata.labels['apps.kubernetes.io/pod-index']": str(index),
        }

        def localize(text: str) -> str:
            text = text.replace("solowire-router", self.find_address("router")).replace("0.0.0.0", address)
            return text.replace("/data/", f"{place}/").replace("/etc/solowire/", f"{place}/")

        for name, text in find(self.manifests, "ConfigMap", role)["data"].items():
            (place / name).write_text(text)
        variables = {name: localize(value) for name, value in read_environment(container, fields).items()}
        self.environments[f"{role}-{index}"] = environment() | variables
        with self.output.open("a") as log:
            self.started[f"{role}-{index}"] = subprocess.Popen(
                [sys.executable, "-m", "solowire", *map(localize, container["args"])],
                env=self.environments[f"{role}-{index}"],
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def render_configuration(self, place: Path) -> str:
        """The chart's nginx.conf, at home on loopback."""
        text: str = find(self.manifests, "ConfigMap", "edge")["data"]["nginx.conf"]
        gateway = self.find_address("gateway")
        own_tls = text.count("/etc/solowire-tls")
        for old, new, count in (
            ("/tmp/", f"{place}/", 6),
            ("/etc/solowire-tls", str(place), own_tls),
            (f"listen {HTTPS_PORT} ", f"listen {self.edge_host}:{HTTPS_PORT} ", own_tls),
            (f"listen {HTTP_PORT} ", f"listen {self.edge_host}:{HTTP_PORT} ", 1),
            (f"listen {HEALTH_PORT};", f"listen {self.edge_host}:{HEALTH_PORT};", 1),
            ("server solowire-gateway:", f"server {gateway}:", 2),
        ):
            assert text.count(old) == count, old
            text = text.replace(old, new)
        if os.geteuid() == 0:  # its workers are to read the certificate: in a pod nobody changes users
            text = f"user root;\n{text}"
        return text

    def api(self, shard: int, token: str | None = None) -> httpx.AsyncClient:
        """The HTTP API of a shard."""
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        url = f"http://{self.find_address('shard', shard)}:{API_PORT}"
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False, verify=False)

    def stop(self) -> int:
        return max(end(process) for process in reversed(self.started.values()))


def start_nginx(place: Path, configuration: str) -> subprocess.Popen[str]:
    """nginx with this configuration; what it says goes to edge.log."""
    (place / "nginx.conf").write_text(configuration)
    with (place / "edge.log").open("a") as log:
        return subprocess.Popen([NGINX, "-e", "stderr", "-c", str(place / "nginx.conf")], stderr=log, text=True)
