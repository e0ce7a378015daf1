"""The pattern that Solowire replaces, as the old system did it: five sockets per user, and a dumps for each send.

One process, because its users are in its memory. POST /publish takes an array of events; each goes to the sockets of
its own type, one after the other, awaited, or to that of its user. (What the old system did wrong beside, such as one
lock around accept and send, is not repeated here.)
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect

TYPES = ("health", "dns_management", "security", "system", "admin")


class Connections:
    """The sockets by type, and those of a user by type and user."""

    def __init__(self) -> None:
        self._by_type: dict[str, list[WebSocket]] = {name: [] for name in TYPES}
        self._by_user: dict[tuple[str, str], WebSocket] = {}

    async def add(self, kind: str, user: str, socket: WebSocket) -> None:
        await socket.accept()
        self._by_type[kind].append(socket)
        self._by_user[kind, user] = socket

    def remove(self, kind: str, socket: WebSocket) -> None:
        if socket in self._by_type[kind]:
            self._by_type[kind].remove(socket)

    def leave(self, kind: str, user: str, socket: WebSocket) -> None:
        self.remove(kind, socket)
        if self._by_user.get((kind, user)) is socket:
            del self._by_user[kind, user]

    async def send(self, kind: str, user: str, message: dict[str, Any]) -> None:
        if socket := self._by_user.get((kind, user)):
            try:
                await socket.send_text(json.dumps(message))
            except (RuntimeError, WebSocketDisconnect):
                self._by_user.pop((kind, user), None)

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
async def connect(socket: WebSocket, kind: str, token: str) -> None:
    await connections.add(kind, token, socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        connections.leave(kind, token, socket)


@app.post("/publish")
async def publish(events: list[dict[str, Any]]) -> Response:
    for event in events:
        kind, user = event.pop("socket"), event.pop("user", None)
        await (connections.send(kind, user, event) if user else connections.broadcast(kind, event))
    return Response()
