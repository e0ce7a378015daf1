"""Clients for the HTTP APIs of the system's own processes, which listen on Unix sockets or on TCP."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from solowire.algorithms.hosts import bracket_host

UNIX = "unix:"


def api_address(place: tuple[str, int] | Path) -> str:
    """The address of an API that listens on host and port, or on a Unix socket."""
    if isinstance(place, Path):
        return f"{UNIX}{place}"
    host, port = place
    return f"{bracket_host(host)}:{port}"


def api_client(address: str, *, timeout: float, scheme: str = "http") -> httpx.AsyncClient:
    """A client for the API at `address`: as `api_address` makes it. timeout: seconds.

    scheme: https for the port of a process of this machine that speaks TLS, whatever name its certificate has.
    """
    # Else httpx would read all certificates of the machine for each client, some 30 ms in which the process does
    # nothing else.
    no_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if scheme == "https":
        no_certificates.check_hostname = False
        no_certificates.verify_mode = ssl.CERT_NONE
    if address.startswith(UNIX):
        transport = httpx.AsyncHTTPTransport(uds=address.removeprefix(UNIX), verify=no_certificates)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=timeout)
    return httpx.AsyncClient(base_url=f"{scheme}://{address}", timeout=timeout, trust_env=False, verify=no_certificates)
