"""The pattern that Solowire replaces, as the old system did it: five sockets per user, and a dumps for each send.

One process, because its users are in its memory. POST /publish takes an array of events; each goes to the sockets of
its own type, one after the other, awaited. (What the old system did wrong beside, such as one lock around accept and
send, is not repeated here.)
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect

TYPES = ("health", "dns_management", "security", "system", "admin")


class Connections:
    """The sockets by type."""

    def __init__(self) -> None:
        self._by_type: dict[str, list[WebSocket]] = {name: [] for name in TYPES}

    async def add(self, kind: str, socket: WebSocket) -> None:
        await socket.accept()
        self._by_type[kind].append(socket)

    def remove(self, kind: str, socket: WebSocket) -> None:
        if socket in self._by_type[kind]:
            self._by_type[kind].remove(socket)

    async def broadcast(self, kind: str, message: dict[str, Any]) -> None:
        gone = []
        for socket in list(self._by_type[kind]):
            try:
                await socket.send_text(json.dumps(message))
            except (RuntimeError, WebSocketDisconnect):
                gone.append(socket)
        for socket in gone:
            self.remove(kind, socket)


app = FastAPI()
connections = Connections()


@app.websocket("/api/websocket/ws/{kind}")
async def connect(socket: WebSocket, kind: str) -> None:
    await connections.add(kind, socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        connections.remove(kind, socket)


@app.post("/publish")
async def publish(events: list[dict[str, Any]]) -> Response:
    for event in events:
        await connections.broadcast(event.pop("socket"), event)
    return Response()
