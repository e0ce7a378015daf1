"""The seam to Granian: what its sends return, and what it means."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from solowire.access import Identity
from solowire.client_protocol import Codec
from workers.asgi import GranianSockets, Socket
from workers.connection import Connection


class Ended:
    """What Granian returns for a send after the connection's end: it can be awaited, and nothing else."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]


async def test_a_send_after_the_end_of_a_connection_is_no_fault() -> None:
    """A client that has gone a moment ago costs the shard nothing: its socket is free, and can be closed."""
    asked: list[dict[str, Any]] = []

    def send(message: dict[str, Any]) -> Any:
        asked.append(message)
        return Ended()

    accepted = asyncio.get_running_loop().create_future()
    accepted.set_result(None)
    socket = Socket(send, accepted, None)
    connection = Connection("s", Identity("ann", "viewer", ()), Codec.json, socket)
    sockets = GranianSockets()
    sockets.queue("frame", connection)
    assert not sockets.busy(connection)
    assert sockets.send("frame", [connection]) == []
    sockets.close(connection, 4413, "too slow")
    await socket.finish(0.1)
    assert [message["type"] for message in asked] == ["websocket.send", "websocket.send", "websocket.close"]
