"""The relay and a shard that has said all before it is asked."""

from __future__ import annotations

import asyncio
import socket
import socketserver
from pathlib import Path
from threading import Thread
from typing import Any

import uvloop

from solowire.backplane.messages import ShardAddress
from solowire.gateway.front.http_front import SEND_BUFFER_BYTES, HttpFront
from solowire.workers.net.client_listener import FULL_RESPONSES
from tests.support.relay_harness import SECONDS, OneShardGateway, relay_front

HANDSHAKE = b"GET /ws?token=t HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class FullShard(socketserver.BaseRequestHandler):
    """Turns a connection away as soon as it is there."""

    def handle(self) -> None:
        self.request.sendall(FULL_RESPONSES["total"])


class AcceptingShard(socketserver.BaseRequestHandler):
    """Accepts whoever comes, and waits for its end."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        while self.request.recv(4096):
            pass


def test_only_who_has_been_accepted_has_a_large_send_buffer(tmp_path: Path) -> None:
    """What the kernel keeps for those that don't read is the machine's memory, whoever they are."""
    wanted = 4 * SEND_BUFFER_BYTES

    async def main() -> list[int]:
        address = ShardAddress(0, "127.0.0.1", shard.server_address[1], "boot")
        fronts: list[HttpFront] = []
        async with (
            relay_front(OneShardGateway(address), tmp_path, send_buffer=wanted, fronts=fronts) as port,
            asyncio.timeout(SECONDS),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while not fronts[0].context.registry.clients:
                await asyncio.sleep(0.01)
            [client] = fronts[0].context.registry.clients
            used = client.transport.get_extra_info("socket")
            sizes = [used.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)]
            writer.write(HANDSHAKE)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            sizes.append(used.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
            writer.close()
            return sizes

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), AcceptingShard) as shard:
        Thread(target=shard.serve_forever, kwargs={"poll_interval": 0.01}).start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sizes = runner.run(main())
        shard.shutdown()
    assert sizes == [2 * SEND_BUFFER_BYTES, 2 * wanted], "the kernel doubles what it is told"


def test_a_shard_that_refuses_before_it_is_asked(tmp_path: Path) -> None:
    """As a full one does: its clients get that answer, or one that says as much, and their connection ends.

    On uvloop, as in production, where what the shard says may come before the connection to it is there.
    """
    faults: list[dict[str, Any]] = []

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> list[bytes]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        address = ShardAddress(0, "127.0.0.1", shard.server_address[1], "boot")
        async with relay_front(OneShardGateway(address), tmp_path) as port, asyncio.timeout(SECONDS):
            return [answer for _ in range(10) for answer in await asyncio.gather(*(ask(port) for _ in range(20)))]

    with socketserver.TCPServer(("127.0.0.1", 0), FullShard) as shard:
        serving = Thread(target=shard.serve_forever, kwargs={"poll_interval": 0.01})  # at the same time as the gateway
        serving.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answers = runner.run(main())
        shard.shutdown()
        serving.join()
    assert faults == []
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1
