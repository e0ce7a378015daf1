"""Whom the SDK and the commands believe that it is the gateway, over real TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from solowire import Client, ConnectionEnded
from solowire.errors import ConfigError, PublishRefused
from solowire.sdk.publisher import Publisher
from solowire.sdk.trusted_certificates import make_context
from tests.support.certificates import make_certificate
from tests.support.publish_gateway import Gateway, page

DEADLINE_S = 60.0


def serve_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path, "127.0.0.1")


@pytest.fixture
async def gateway(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    async with asyncio.timeout(DEADLINE_S), Gateway().running(serve_with(certificate)) as gateway:
        yield gateway


async def publish(url: str) -> None:
    async with Publisher(url, "tok") as publisher:
        await publisher.publish_and_wait({"type": "custom.a", "data": {}})


async def test_a_ca_is_named_as_for_other_programs(
    gateway: Gateway, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has none is told how; SSL_CERT_FILE is that of curl."""
    with pytest.raises(PublishRefused, match="SSL_CERT_FILE; commands take it by --ca-file or SOLOWIRE_CA_FILE"):
        await publish(gateway.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    await publish(gateway.url)
    assert len(gateway.log) == 1


async def test_a_client_trusts_as_a_publisher_does(
    gateway: Gateway, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests do, and its WebSockets have the same context."""
    gateway.judge = lambda events: page(404)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client = Client(gateway.url, "tok")
    async with client._open_http() as http:
        headers = {"authorization": "Bearer tok"}
        assert (await http.post(f"{gateway.url}/v1/events", json=[], headers=headers)).status_code == 404
    assert client._ssl is not None
    assert [one["subject"] for one in client._ssl.get_ca_certs()] == [((("commonName", "the gateway"),),)]
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectionEnded, match="SSL_CERT_FILE"):
        async with Client(gateway.url, "tok"):
            pass


@pytest.mark.parametrize(
    ("name", "days", "way_out"),
    [("localhost", 1, "use a name that the certificate is made for"), ("127.0.0.1", -1, "renew the certificate there")],
)
async def test_what_is_wrong_with_a_certificate_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, days: int, way_out: str
) -> None:
    """A CA helps neither against another name nor against an end."""
    certificate = make_certificate(tmp_path, name, days)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with asyncio.timeout(DEADLINE_S), Gateway().running(serve_with(certificate)) as gateway:
        with pytest.raises(PublishRefused, match=way_out):
            await publish(gateway.url)


def test_a_file_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that it was given by; where there is no TLS it is not looked at."""
    for text, words in ((None, "No such file"), ("no certificate", "there is no certificate in it")):
        path = tmp_path / "ca.pem"
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(ConfigError, match=f"SSL_CERT_FILE={path}.*{words}"):
            make_context("https://gateway.example")
        make_context("http://gateway.example")


def test_a_machine_without_certificates_trusts_the_public_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container without ca-certificates; a directory that is named has all that are trusted."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert make_context("https://gateway.example").cert_store_stats()["x509_ca"] > 50
    public = {one["serialNumber"] for one in make_context("https://gateway.example").get_ca_certs()}
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert {one["serialNumber"] for one in make_context("https://gateway.example").get_ca_certs()} <= public


@pytest.mark.parametrize("way", ["--ca-file", "SOLOWIRE_CA_FILE", "SSL_CERT_FILE"])
async def test_commands_take_a_ca(gateway: Gateway, certificate: Path, tmp_path: Path, way: str) -> None:
    """By an option, a setting, or the usual variable; without them they say so in one line."""
    arguments = ["publish", "custom.a", "{}", "--url", gateway.url, "--token", "tok"]
    status, said = await run(tmp_path, *arguments)
    assert (status, said.count("\n")) == (1, 1)
    assert "--ca-file" in said
    if way == "--ca-file":
        assert await run(tmp_path, *arguments, way, str(certificate)) == (0, "1\n")
        status, said = await run(tmp_path, *arguments, way, "/nope.pem")
        assert (status, said.count("\n")) == (2, 1)
        assert "/nope.pem" in said
    else:
        assert await run(tmp_path, *arguments, **{way: str(certificate)}) == (0, "1\n")


async def run(directory: Path, *arguments: str, **variables: str) -> tuple[int | None, str]:
    """A command's status, and all that it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SOLOWIRE_", "SSL_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "solowire", *arguments),
        env=environment | variables,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
