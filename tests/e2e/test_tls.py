"""TLS at the gateway and the shards, as real clients speak it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from solowire import Client, Publisher
from tests.support.certificates import make_certificate, read_fingerprint, renew_certificate
from tests.support.system import READY_SECONDS, Session, System, open_session, ready, run, running, sockets_with

SECONDS = 30.0
EVENT: dict[str, Any] = {"type": "custom.note", "data": {"text": "over TLS"}}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, with its key, where the system reads it."""
    folder = tmp_path_factory.mktemp("tls")
    return make_certificate(folder, "127.0.0.1").rename(folder / "in-force.pem")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[System]:
    settings = {
        "LISTEN__TLS_CERTIFICATE_FILE": certificate,
        "LISTEN__TLS_KEY_FILE": certificate,
        "LISTEN__REQUEST_HEAD_TIMEOUT_S": 1,
        "LISTEN__WRITE_TIMEOUT_S": 3,
        "LISTEN__SEND_BUFFER_BYTES": 16 * 1024,
    }
    with running(tmp_path_factory.mktemp("tls") / "d", 2, settings) as made:
        yield made


def trust(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def shown_at(port: int) -> str:
    """The fingerprint of the certificate that is shown to who connects now."""
    return sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))).hexdigest()


def greet(port: int, *options: str, request: str = "") -> subprocess.CompletedProcess[str]:
    """What `openssl s_client` says."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(command, input=request, capture_output=True, text=True, timeout=SECONDS, check=False)


@contextlib.asynccontextmanager
async def relayed(system: System, user: str, trusted: ssl.SSLContext) -> AsyncIterator[Session]:
    url = f"wss://127.0.0.1:{system.port}/ws?token={system.token(user)}"
    async with open_session(url, ssl=trusted) as session:
        await session.ask("welcome", type="hello", subscriptions=["custom.*"])
        yield session


async def heard(system: System, *sessions: Session) -> None:
    """All of them hear of an event."""
    await system.publish(EVENT)
    for session in sessions:
        [event] = await session.events(1)
        assert event["data"] == EVENT["data"]


async def test_the_sdk_needs_the_ca_and_nothing_else(system: System, certificate: Path) -> None:
    """The gateway hands out wss://, and what a shard shows is trusted by the same file."""
    trusted = trust(certificate)
    async with (
        asyncio.timeout(SECONDS),
        Client(system.url, system.token("ann"), subscriptions=["custom.*"], ssl=trusted) as client,
        Publisher(system.url, system.token("p", "publisher"), ssl=trusted) as publisher,
    ):
        await publisher.publish_and_wait([EVENT])
        event = await anext(client)
        assert event.data == EVENT["data"]
    negotiated = await system.negotiate(system.token("ann"))
    assert negotiated["url"].startswith("wss://127.0.0.1:")


def test_commands_take_the_ca_by_an_option(system: System, certificate: Path, tmp_path: Path) -> None:
    options = ("--url", system.url, "--data-dir", str(system.data_dir))
    event = (EVENT["type"], json.dumps(EVENT["data"]))
    done = run("publish", *event, *options, "--ca-file", str(certificate), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    failed = run("publish", *event, *options, cwd=tmp_path)
    assert failed.returncode != 0
    assert "--ca-file" in failed.stderr


async def test_relayed_and_direct_sockets_get_the_same(system: System, certificate: Path) -> None:
    trusted = trust(certificate)
    hello = {"subscriptions": ["custom.*"]}
    async with (
        relayed(system, system.user_on(0, "r"), trusted) as first,
        relayed(system, system.user_on(1, "r"), trusted) as second,
        system.session(system.token("direct"), hello, ssl=trusted) as third,
    ):
        await heard(system, first, second, third)


async def test_a_reader_that_never_reads_leaves_nothing_behind(system: System, certificate: Path) -> None:
    """At its shard as by the relay: it is closed when it has taken nothing for the time of a write."""
    user, trusted = system.user_on(0, "stuck"), trust(certificate)
    shard, gateway = system.pid_of("shard", "--index", "0"), system.pid_of("gateway")
    negotiated = (await system.negotiate(system.token(user)))["url"]
    relayed_url = f"wss://127.0.0.1:{system.port}/ws?token={system.token(system.user_on(0, 'other'))}"
    async with contextlib.AsyncExitStack() as stack:
        sessions = []
        for url in (negotiated, relayed_url):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.connect((urlsplit(url).hostname, urlsplit(url).port))
            sock.setblocking(False)
            session = await stack.enter_async_context(open_session(url, sock=sock, ssl=trusted, max_queue=1))
            await session.ask("welcome", type="hello", subscriptions=["custom.*"])
            sessions.append(session)
        direct, relay = (session.port for session in sessions)
        assert (sockets_with(shard, direct), sockets_with(gateway, relay)) == (1, 1)
        large = [{"type": "custom.stuck", "data": {"x": "x" * 30_000}} for _ in range(5)]
        for _ in range(10):
            await system.publish(*large)
        async with asyncio.timeout(SECONDS):
            while sockets_with(shard, direct) or sockets_with(gateway, relay):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("which", [0, 1], ids=["gateway", "shard"])
def test_openssl_is_answered_by_what_is_safe_alone(system: System, which: int) -> None:
    """TLS 1.2 and 1.3, HTTP/1.1, nothing older and no other protocol."""
    port = system.port + which
    request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for version in ("-tls1_2", "-tls1_3"):
        done = greet(port, version, "-ign_eof", "-alpn", "h2,http/1.1", request=request)
        assert "ALPN protocol: http/1.1" in done.stdout
        assert "HTTP/1.1 200 OK" in done.stdout
        assert "prime256v1" in done.stdout
    assert "ALPN protocol" not in greet(port, "-alpn", "h2").stdout
    for old in ("-tls1_1", "-tls1"):
        assert "alert" in greet(port, old, "-cipher", "ALL:@SECLEVEL=0").stderr
    # What would take the loop's time is not done, whoever asks for it.
    assert "handshake failure" in greet(port, "-groups", "ffdhe8192").stderr
    # What asks for a key exchange without forward secrecy has no cipher in common.
    assert "handshake failure" in greet(port, "-tls1_2", "-cipher", "AES128-GCM-SHA256").stderr


@pytest.mark.parametrize("which", [0, 1], ids=["gateway", "shard"])
async def test_plain_http_is_told_what_is_spoken(system: System, which: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{system.port + which}/healthz")
    assert answer.status_code == 400
    assert answer.json()["code"] == "tls_required"
    assert "https://" in answer.json()["hint"]


@pytest.mark.parametrize("which", [0, 1], ids=["gateway", "shard"])
async def test_a_handshake_that_is_never_finished_is_cut(system: System, which: int) -> None:
    """Whoever says nothing, or begins and says no more, has the time of a head."""
    for greeting in (b"", b"\x16\x03\x01\x02\x00\x01"):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port + which)
        writer.write(greeting)
        async with asyncio.timeout(SECONDS):
            assert await reader.read() == b""
        writer.close()


def test_curl_sends_and_gets_much(system: System, certificate: Path, tmp_path: Path) -> None:
    """Bodies of many records, both ways, one request after the other on one connection."""
    events = [{"type": "custom.large", "data": {"text": "x" * 10_000}} for _ in range(50)]
    (tmp_path / "body").write_text(json.dumps(events))
    common = ("--cacert", str(certificate), "-H", f"authorization: Bearer {system.token('p')}", "-w", "%{num_connects}")
    post = ("-H", "content-type: application/json", "--data-binary", "@body", f"{system.url}/v1/events")
    done = subprocess.run(
        ["curl", "-sS", *common, *post, "--next", "-sS", *common, "-o", "got", f"{system.url}/v1/catalog"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"accepted":50' in done.stdout
    assert done.stdout.endswith("}10"), "one new connection for the first request, none for the second"
    assert (tmp_path / "got").stat().st_size > 20_000


async def test_a_renewed_certificate_is_taken_up_without_a_restart(system: System, certificate: Path) -> None:
    """What is open goes on; who comes anew sees the new one, at the gateway, at the shards, and by the relay."""
    ports = range(system.port, system.port + 3)
    old = trust(certificate)
    async with relayed(system, "stays", old) as relay, system.session(system.token("open"), {}, ssl=old) as direct:
        await direct.ask("subscriptions", type="subscribe", event_types=["custom.*"])
        fresh = renew_certificate(certificate)
        async with asyncio.timeout(SECONDS):
            for port in ports:
                while await asyncio.to_thread(shown_at, port) != fresh:
                    await asyncio.sleep(0.1)
        async with relayed(system, "comes", trust(certificate)) as new:
            await heard(system, relay, direct, new)


def test_files_that_fit_not_leave_the_old_one_in_force(system: System, certificate: Path) -> None:
    """A file that holds nothing is said, at SIGHUP as well, and the next good one is taken up by SIGHUP at once."""
    before = read_fingerprint(certificate)
    kept = certificate.with_suffix(".kept")
    shutil.copy(certificate, kept)
    seen = len(system.said())
    certificate.write_text("no certificate")

    def rejections() -> list[str]:
        return [line for line in system.said()[seen:] if "certificate_rejected" in line]

    system.wait_until(lambda: len(rejections()) >= 3, "the gateway and both shards say so")
    assert "there is no certificate in it" in rejections()[0]
    assert shown_at(system.port) == shown_at(system.port + 1) == before
    kept.rename(certificate)
    fresh = renew_certificate(certificate)
    assert system.process is not None
    system.process.send_signal(signal.SIGHUP)
    system.wait_until(lambda: {shown_at(system.port + i) for i in range(3)} == {fresh}, "all have it")


async def test_the_end_of_the_certificate_is_a_metric(system: System, certificate: Path) -> None:
    end = ssl.cert_time_to_seconds(_dates(certificate))
    async with system.http(system.token("admin")) as http, system.api(0) as api:
        for answer in (await http.get("/metrics"), await api.get("/metrics")):
            [line] = [line for line in answer.text.splitlines() if line.startswith("solowire_certificate_expiry")]
            assert float(line.split()[-1]) == end
            assert "tls_handshakes_total" in answer.text


def _dates(certificate: Path) -> str:
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().partition("=")[2]


async def test_who_is_sent_away_hears_the_code_before_the_end(system: System, certificate: Path) -> None:
    """By the relay, whose gateway ends, and at a shard that ends."""
    trusted = trust(certificate)
    user = system.user_on(0, "leaves")
    async with relayed(system, user, trusted) as relay:
        os.kill(system.pid_of("gateway"), signal.SIGTERM)
        assert (await relay.closed())[0] == 1012
    system.wait_until(lambda: ready(system.url), "the gateway is there again")
    async with system.session(system.token(user), {}, ssl=trusted) as direct:
        os.kill(system.pid_of("shard", "--index", "0"), signal.SIGTERM)
        assert (await direct.hear("reconnect"))["reason"] == "draining"
        assert (await direct.closed())[0] in (1001, 1012)


@pytest.mark.parametrize(
    ("command", "days", "key", "fault"),
    [
        (("up",), -1, None, "the certificate has expired"),
        (("gateway",), 1, "other", "the key is not that of"),
        (("shard", "--index", "0"), 1, "missing", "the key can't be read: No such file"),
    ],
)
def test_what_can_not_be_used_is_one_line_at_start(
    tmp_path: Path, command: tuple[str, ...], days: int, key: str | None, fault: str
) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1", days)
    keys = {None: certificate, "other": make_certificate(tmp_path, "127.0.0.2"), "missing": tmp_path / "none"}
    settings = {"LISTEN__TLS_CERTIFICATE_FILE": certificate, "LISTEN__TLS_KEY_FILE": keys[key]}
    done = run(*command, "--data-dir", "d", cwd=tmp_path, settings=settings, seconds=READY_SECONDS)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "secret_made" not in line]
    assert fault in line
