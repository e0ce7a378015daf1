"""The edge's configuration as nginx reads it: of every case, and with TLS of its own."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helm.cases import CASES
from tests.support.certificates import make_certificate
from tests.support.chart import find, render
from tests.support.edge_system import NGINX, start_nginx
from tests.support.requirements import needs
from tests.support.system import ANSWER_SECONDS, end, free_ports, has_ipv6

OWN_TLS = {"expose": {"type": "loadBalancer"}}
PROXY = {"expose": {"type": "loadBalancer", "loadBalancer": {"proxyProtocol": True}}, "tls": {"enabled": False}}
BEHIND_PROXIES = {"edge": {"trustedProxies": ["127.0.0.0/8"]}}

pytestmark = needs("nginx")


def localize(values: dict[str, Any], place: Path, gateway_port: int = 9) -> tuple[str, int]:
    """The configuration at home on loopback, and its first port: plain HTTP, then health, then TLS."""
    port = free_ports(3)
    text: str = find(render(values), "ConfigMap", "edge")["data"]["nginx.conf"]
    text = text.replace("/tmp/", f"{place}/").replace("/etc/solowire-tls", str(place))
    text = text.replace("server solowire-gateway:8000", f"server 127.0.0.1:{gateway_port}")
    for number, inside in enumerate((8080, 8081, 8443)):
        text = text.replace(f"listen {inside}", f"listen 127.0.0.1:{port + number}")
        text = text.replace(f"listen [::]:{inside}", f"listen [::1]:{port + number}")
    return text, port


@pytest.mark.parametrize("values", [*CASES.values(), OWN_TLS, PROXY, BEHIND_PROXIES])
def test_nginx_takes_it(values: dict[str, Any], tmp_path: Path) -> None:
    """`nginx -t` has nothing to say against it."""
    text, _ = localize(values, tmp_path)
    if "[::1]" in text and not has_ipv6():
        text = re.sub(r"listen \[::1\][^;]*;", "", text)
    (tmp_path / "nginx.conf").write_text(text)
    command = [NGINX, "-t", "-q", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if "setrlimit" not in line]
    assert (done.returncode, faults) == (0, [])


@asynccontextmanager
async def edge_before_nothing(values: dict[str, Any], place: Path) -> AsyncIterator[tuple[int, list[str]]]:
    """nginx before a gateway that answers 200 to all; its first port, and the heads of the requests that come."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as gateway:
        text, port = localize(values, place, gateway.sockets[0].getsockname()[1])
        if os.geteuid() == 0:  # its workers are to read the certificate: in a pod nobody changes users
            text = f"user root;\n{text}"
        nginx = start_nginx(place, text)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while not await is_healthy(port + 1):
                    assert nginx.poll() is None, (place / "edge.log").read_text()
                    await asyncio.sleep(0.02)
            yield port, heads
        finally:
            await asyncio.to_thread(end, nginx)


async def is_healthy(port: int) -> bool:
    try:
        return (await ask(port)).startswith("HTTP/1.1 200")
    except OSError:
        return False


async def ask(port: int, first: bytes = b"", *headers: str, tls: ssl.SSLContext | None = None) -> str:
    """The head of what GET /healthz answers. first: what is sent before the request."""
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    lines = ["GET /healthz HTTP/1.1", "Host: live.example.com", "Connection: close", *headers, "", ""]
    writer.write(first + "\r\n".join(lines).encode())
    async with asyncio.timeout(ANSWER_SECONDS):
        answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_tls_is_the_edges_own(tmp_path: Path) -> None:
    """A load balancer's edge speaks TLS, sends plain HTTP there, and takes up a renewed certificate by itself."""

    def renew() -> str:
        pem = make_certificate(tmp_path, "localhost").read_text()
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_text(pem)
        return pem

    first = renew()
    async with edge_before_nothing(OWN_TLS, tmp_path) as (port, heads):
        assert "308" in (answer := await ask(port))
        assert "Location: https://live.example.com/healthz" in answer
        assert (await ask(port + 2, tls=ssl.create_default_context(cadata=first))).startswith("HTTP/1.1 200")
        assert "x-forwarded-proto: https" in heads[-1]
        assert renew() != first
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                try:
                    await ask(port + 2, tls=ssl.create_default_context(cadata=(tmp_path / "tls.crt").read_text()))
                    break
                except ssl.SSLError:
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("values", "first", "header", "address"),
    [
        ({"expose": {"type": "none"}}, b"", "X-Forwarded-For: 192.0.2.1", "127.0.0.1"),
        ({"network": {"podNetworks": ["127.0.0.0/8"]}}, b"", "X-Forwarded-For: 192.0.2.7, 192.0.2.1", "192.0.2.1"),
        ({"network": {"podNetworks": ["127.0.0.0/8"]}}, b"", "X-Forwarded-For: 192.0.2.7, 127.0.0.9", "127.0.0.9"),
        (BEHIND_PROXIES, b"", "X-Forwarded-For: 192.0.2.7, 192.0.2.1, 127.0.0.9", "192.0.2.1"),
        (PROXY, b"PROXY TCP4 192.0.2.1 192.0.2.2 4242 443\r\n", "X-Forwarded-For: 192.0.2.7", "192.0.2.1"),
    ],
    ids=["nobody", "one proxy", "one proxy, a client of ours", "two proxies", "PROXY protocol"],
)
async def test_the_clients_address(
    values: dict[str, Any], first: bytes, header: str, address: str, tmp_path: Path
) -> None:
    """A gateway is told who came, or what a proxy that is believed says of it, and never what a client says."""
    async with edge_before_nothing(values, tmp_path) as (port, heads):
        assert (await ask(port, first, header)).startswith("HTTP/1.1 200")
        assert re.findall(r"x-forwarded-for: (.*)\r", heads[-1]) == [address]
