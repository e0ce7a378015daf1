"""Swagger UI's files: whole for whoever reads, and next to nothing for whoever doesn't."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from solowire.gateway.http.assets import HEADS, PIECE_BYTES, Assets
from solowire.gateway.http.openapi import ASSETS
from tests.gateway.front.test_http_front import SECONDS, Site, answer_from, connected, site

LARGE = bytes(range(256)) * 80_000  # more than any socket takes
GET = f"GET {ASSETS}/large.js HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large.js").write_bytes(LARGE)
    (tmp_path / "secret").write_bytes(b"secret")
    return Assets(folder)


def serve(made: Site, assets: Assets) -> None:
    made.front.context.can_tunnel, made.front.context.open_tunnel, made.front.context.plain_heads = (
        assets.can_handle,
        assets.serve_file,
        HEADS,
    )


async def test_a_file_comes_whole_and_ends_the_connection(tmp_path: Path, assets: Assets) -> None:
    """Also for who closes its half behind the request; HEAD has the same head alone."""
    async with site(tmp_path) as made:
        serve(made, assets)
        for closes in (False, True):
            async with connected(made, GET) as (reader, writer):
                if closes:
                    writer.write_eof()
                assert await answer_from(reader) == (200, LARGE)
                assert await reader.read() == b""
        async with connected(made, GET.replace(b"GET", b"HEAD", 1)) as (reader, _):
            head = await reader.read()
            assert b"content-length: %d\r\n" % len(LARGE) in head
            assert head.endswith(b"\r\n\r\n")


async def test_who_does_not_read_has_one_piece_waiting(tmp_path: Path, assets: Assets) -> None:
    """900 connections that read nothing took a gateway from 0.1 to 2 GB, without a token."""
    async with site(tmp_path) as made:
        serve(made, assets)
        silent = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(10)]
        for sock in silent:
            sock.sendall(GET)
        while not any(client.transport.get_write_buffer_size() for client in made.front.context.registry.clients):
            await asyncio.sleep(0.005)
        for _ in range(50):
            await asyncio.sleep(0)
            assert all(
                client.transport.get_write_buffer_size() <= PIECE_BYTES
                for client in made.front.context.registry.clients
            )
        loop, [last, *others] = asyncio.get_running_loop(), silent
        for sock in others:
            sock.close()
        last.setblocking(False)
        size = 0
        while part := await loop.sock_recv(last, 1 << 20):
            size += len(part)
        assert size > len(LARGE)
        last.close()
        async with asyncio.timeout(SECONDS):
            while made.front.context.registry.clients:
                await asyncio.sleep(0.005)
        assert len(made.front.context.registry.limiter) == 0


@pytest.mark.parametrize("path", ["", "/", "/nothing.js", "/../secret", "/%2e%2e/secret", "/large.js/", "/large%2ejs"])
async def test_nothing_else_is_there(tmp_path: Path, assets: Assets, path: str) -> None:
    """It is not taken, so that whatever is behind the port says what it says of any other path."""
    async with site(tmp_path) as made:
        serve(made, assets)
        async with connected(made, GET.replace(b"/large.js", path.encode())) as (reader, _):
            await answer_from(reader)
        assert len(made.seen) == 1
