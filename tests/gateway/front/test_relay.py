"""The relay and a shard that has said all before it is asked."""

from __future__ import annotations

import asyncio
import socketserver
from pathlib import Path
from threading import Thread
from typing import Any

import uvloop

from solowire.backplane.messages import ShardAddress
from solowire.workers.net.client_listener import FULL_RESPONSES
from tests.gateway.relay_harness import SECONDS, OneShardGateway, relay_front

HANDSHAKE = b"GET /ws?token=t HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class FullShard(socketserver.BaseRequestHandler):
    """Turns a connection away as soon as it is there."""

    def handle(self) -> None:
        self.request.sendall(FULL_RESPONSES["total"])


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
