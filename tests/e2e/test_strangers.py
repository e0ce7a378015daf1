"""Nobody's bytes reach a stranger: whatever a peer does around its handshake, it gets its own, or a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solowire.errors import ConnectionEnded
from solowire.sdk.client import Client
from tests.support.requirements import need_program
from tests.support.system import ANSWER_SECONDS, System, end, free_ports, open_session, refusal, running

HELLO = {"subscriptions": ["custom.*"]}
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
UPGRADE = f"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
STRANGER = "127.0.0.77"
"""An address whose ports no other test uses up."""


def masked(text: str) -> bytes:
    """A short text frame of a client, masked with zeros."""
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text.encode()


@contextlib.asynccontextmanager
async def opened(port: int, data: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection on which this was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)).decode()


async def answer_of(port: int, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and problem of the answer, behind which the connection is closed."""
    async with opened(port, data) as (reader, _):
        raw = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), msgspec.json.decode(body)


async def message_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message of the server."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            opcode, size = await reader.readexactly(2)
            if size >= 126:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
            payload = await reader.readexactly(size)
            if opcode == 0x81:
                message: dict[str, Any] = msgspec.json.decode(payload)
                return message


async def test_handshakes_of_http_1_0_leave_nothing_behind(system: System) -> None:
    """Hundreds of them, with plain requests in between, while an operator works: each is refused, and reads no other's.

    Debian's nginx speaks HTTP/1.0 if nobody says otherwise.
    """
    user = system.user_on(0, "operator")
    async with system.session(system.token(user), HELLO) as operator:
        for n in range(300):
            ticket = (
                (await system.negotiate(system.token(system.user_on(0, f"old{n % 7}"))))["ticket"] if n < 20 else "x"
            )
            status, problem = await answer_of(
                system.port + 1, f"GET /ws?ticket={ticket} HTTP/1.0\r\n{UPGRADE}".encode()
            )
            assert (status, problem["code"]) == (505, "http_version_not_supported")
            async with opened(system.port + 1, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n") as (reader, _):
                if n % 10 == 0:
                    await system.publish({"type": "custom.secret", "data": {"n": n}})
                    assert (await operator.events(1))[0]["data"] == {"n": n}
                raw = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
            assert raw.endswith(b'{"status":"ok"}')
            assert raw.count(b"HTTP/1.1") == 1


async def test_a_stranger_on_the_port_of_a_handshake_that_was_reset_reads_nothing(system: System) -> None:
    """An administrator's handshake is reset, and someone without a token comes from the same port at once."""
    user = system.user_on(0, "admin")
    loop = asyncio.get_running_loop()
    came = 0
    for n in range(150):
        ticket = (await system.negotiate(system.token(user)))["ticket"]
        first = socket.socket()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind((STRANGER, 0))
        first.connect(("127.0.0.1", system.port + 1))
        address = first.getsockname()
        first.sendall(f"GET /ws?ticket={ticket} HTTP/1.1\r\n{UPGRADE}".encode())
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # somebody else on this machine has the port now
                again.bind(address)
                again.connect(("127.0.0.1", system.port + 1))
                again.setblocking(False)
                came += 1
                if n % 2:  # half of them say nothing until everything was published
                    await loop.sock_sendall(again, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                await system.publish({"type": "custom.secret", "data": {"n": n}})
                if not n % 2:
                    await loop.sock_sendall(again, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                read = b""
                async with asyncio.timeout(ANSWER_SECONDS):
                    while piece := await loop.sock_recv(again, 65536):
                        read += piece
                assert read.endswith(b'{"status":"ok"}')
                assert read.startswith(b"HTTP/1.1 200 OK\r\n")
                assert read.count(b"\r\n\r\n") == 1
    assert came > 50


async def test_who_says_nothing_at_all_gets_no_events(tmp_path: Path) -> None:
    """Not even the answer to a ping that every WebSocket library gives by itself: so it gets nothing but the ping.

    One who speaks WebSocket and says no hello gets its role's defaults, and so does one who only says something later.
    """
    with running(tmp_path / "data", shards=1, settings={"SESSION__HELLO_TIMEOUT_S": 0.2}) as system:
        url = (await system.negotiate(system.token("mute")))["url"]
        target = url.partition(f":{system.port + 1}")[2]
        async with opened(system.port + 1, f"GET {target} HTTP/1.1\r\n{UPGRADE}".encode()) as (reader, writer):
            assert (await head_of(reader)).startswith("HTTP/1.1 101 ")
            assert await asyncio.wait_for(reader.readexactly(2), ANSWER_SECONDS) == b"\x89\x00"
            async with open_session((await system.negotiate(system.token("library")))["url"]) as session:
                assert "zone_created" in (await session.hear("welcome"))["subscriptions"]
                await system.publish({"type": "zone_created", "data": {"zone": "example.com"}})
                await session.events(1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.5)
            writer.write(masked('{"type":"ping"}'))
            assert (await message_of(reader))["type"] == "pong"
            assert "zone_created" in (await message_of(reader))["subscriptions"]


@pytest.mark.parametrize("way", ["direct", "relayed"])
async def test_frames_sent_together_with_the_handshake_are_heard(system: System, way: str) -> None:
    """A client that doesn't wait for the 101 is not told to, and loses nothing; the 101 names the shard."""
    user = system.user_on(1, f"hasty-{way}")
    if way == "direct":
        url = (await system.negotiate(system.token(user)))["url"]
        port, target = system.port + 2, "/ws" + url.partition("/ws")[2]
    else:
        port, target = system.port, f"/ws?token={system.token(user)}"
    hello = masked('{"type":"hello","subscriptions":["custom.*"]}') + masked('{"type":"ping","id":7}')
    async with opened(port, f"GET {target} HTTP/1.1\r\n{UPGRADE}".encode() + hello) as (reader, _):
        head = await head_of(reader)
        assert head.startswith("HTTP/1.1 101 ")
        assert "x-solowire-shard: 1\r\n" in head.lower()
        assert (await message_of(reader))["subscriptions"] == ["custom.*"]
        assert (await message_of(reader))["id"] == 7


async def test_an_upgrade_on_a_connection_that_was_kept_alive(system: System) -> None:
    """After other requests, with their bodies, and even sent before they are answered: each has its answer in turn."""
    token = system.token("keeper", "operator")
    event = b'{"type":"custom.kept","data":{}}'
    post = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {system.token('pub', 'publisher')}\r\n"
    whole = post.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(event), event)
    chunked = post.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        event[:5],
        len(event) - 5,
        event[5:],
    )
    head = b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    upgrade = f"GET /ws?token={token} HTTP/1.1\r\n{UPGRADE}".encode() + masked('{"type":"hello"}')
    for at_once in (False, True):
        async with opened(system.port, whole + chunked + head + upgrade if at_once else whole) as (reader, writer):
            for further in (chunked, head, upgrade):
                answer = await head_of(reader)
                assert answer.startswith("HTTP/1.1 200 "), answer
                if "application/json" in answer and "date" in answer and further is not upgrade:
                    size = int(answer.lower().partition("content-length: ")[2].split()[0])
                    assert msgspec.json.decode(await reader.readexactly(size))["accepted"] == 1
                if not at_once:
                    writer.write(further)
            assert (await head_of(reader)).startswith("HTTP/1.1 101 ")
            assert (await message_of(reader))["type"] == "welcome"


WRONG_HANDSHAKES = {
    "no version": (UPGRADE.replace("Sec-WebSocket-Version: 13\r\n", ""), 400, "bad_handshake"),
    "another version": (UPGRADE.replace(": 13", ": 8"), 426, "websocket_version_not_supported"),
    "no key": (UPGRADE.replace(f"{KEY}\r\n", ""), 400, "bad_handshake"),
    "two keys": (UPGRADE.replace(KEY, f"{KEY}\r\n{KEY}"), 400, "bad_handshake"),
    "a short key": (UPGRADE.replace("AAAAAAAAAAAAAAAAAAAAAA==", "AAAA"), 400, "bad_handshake"),
    "no host": (UPGRADE.replace("Host: x\r\n", ""), 400, "bad_handshake"),
    "two hosts": (UPGRADE.replace("Host: x", "Host: x\r\nHost: y"), 400, "bad_handshake"),
    "no connection": (UPGRADE.replace("Connection: Upgrade\r\n", ""), 426, "upgrade_required"),
    "a body": (UPGRADE.replace("Host: x", "Host: x\r\nContent-Length: 5"), 400, "bad_handshake"),
    "a folded header": (UPGRADE.replace("Host: x", "Host: x\r\n y"), 400, "bad_handshake"),
    "another site": (UPGRADE.replace("Host: x", "Host: x\r\nOrigin: https://evil.example"), 403, "origin_not_allowed"),
    "a huge head": (UPGRADE.replace("Host: x", "Host: x\r\nA: " + "a" * 17_000), 431, "head_too_large"),
}


@pytest.mark.parametrize("way", ["direct", "relayed"])
@pytest.mark.parametrize("fault", WRONG_HANDSHAKES)
async def test_a_handshake_that_is_none_is_refused(system: System, fault: str, way: str) -> None:
    """As RFC 6455 asks, with the reason as a problem, and the ticket is not used up by it."""
    headers, status, code = WRONG_HANDSHAKES[fault]
    token = system.token(system.user_on(0, "wrong"))
    url = (await system.negotiate(token))["url"]
    direct = way == "direct"
    port, target = (system.port + 1, "/ws" + url.partition("/ws")[2]) if direct else (system.port, f"/ws?token={token}")
    seen, problem = await answer_of(port, f"GET {target} HTTP/1.1\r\n{headers}".encode())
    assert (seen, problem["code"]) == (status, code)
    if direct:
        async with open_session(url) as session:
            await session.ask("welcome", type="hello", **HELLO)


TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize("way", ["gateway", "shard"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TLS_HELLO, "TLS is not spoken here"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n", "PROXY protocol"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        (b"\x00\x01", "no HTTP request"),
        (b"\r\n\r\n\x00\r\nQUIT\n", "no HTTP request"),
    ],
    ids=["tls", "proxy-1", "http-2", "binary", "proxy-2"],
)
async def test_what_is_no_http_is_told_so_at_once(system: System, data: bytes, words: str, way: str) -> None:
    """Its sender is not left waiting for the time of a handshake, which looks like a slow network."""
    if (data[:2], way) == (b"\r\n", "shard"):
        pytest.skip("there an empty line is an empty head, and refused as such")
    status, problem = await answer_of(system.port + (way == "shard"), data)
    assert (status, problem["code"]) == (400, "not_http")
    assert words in problem["detail"]
    assert problem["hint"]


async def test_https_to_the_plain_port_is_told_by_the_sdk(system: System) -> None:
    """A wrong scheme ends a client's first attempt with the way out, and does not time out for ever."""
    with pytest.raises(ConnectionEnded, match="is it http://"):
        await Client(f"https://127.0.0.1:{system.port}", "tok", connect_timeout=ANSWER_SECONDS).__aenter__()


@pytest.fixture
def nginx(system: System, tmp_path: Path) -> Iterator[int]:
    """The port of Debian's nginx in front of the gateway, configured as little as it can be."""
    program = need_program("nginx")
    port = free_ports(1)
    upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;\nevents {{}}\nhttp {{\n"
        f"access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; "
        f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
        f"server {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{system.port}; }}\n"
        f"location /shard {{ rewrite ^/shard(.*) $1 break; proxy_pass http://127.0.0.1:{system.port + 1};\n"
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }\n"
        f"location /right {{ rewrite ^/right(.*) $1 break; proxy_pass http://127.0.0.1:{system.port}; {upgrade} }}\n"
        "} }\n"
    )
    with (tmp_path / "nginx.log").open("w") as log:
        process = subprocess.Popen([program, "-c", str(tmp_path / "nginx.conf")], stdout=log, stderr=log, text=True)
    try:
        system.wait_until(lambda: _listens(port), "nginx listens")
        yield port
    finally:
        end(process)


async def test_behind_an_nginx_that_nobody_configured_everybody_is_told(system: System, nginx: int) -> None:
    """Forty logins by HTTP/1.0, without and with the upgrade's headers, and an operator beside them who hears his own.

    The problem says what the proxy lacks; configured rightly it works.
    """
    user = system.user_on(0, "operator")
    async with system.session(system.token(user), HELLO) as operator:
        for n in range(40):
            proxied = system.user_on(0, f"proxied{n}")
            token = system.token(proxied, "viewer")
            status, problem = await refusal(f"ws://127.0.0.1:{nginx}/ws?token={token}")
            assert (status, problem["code"]) == (426, "upgrade_required")
            assert "proxy_http_version" in problem["hint"]
            ticket = (await system.negotiate(token))["ticket"]
            status, problem = await refusal(f"ws://127.0.0.1:{nginx}/shard/ws?ticket={ticket}")
            assert (status, problem["code"]) == (505, "http_version_not_supported")
            await system.publish({"type": "custom.mine", "data": {"n": n}})
            assert (await operator.events(1))[0]["data"] == {"n": n}
            async with open_session(f"ws://127.0.0.1:{nginx}/right/ws?token={token}") as session:
                assert (await session.ask("welcome", type="hello", **HELLO))["user"] == proxied


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
