"""Socket.IO on Node; see `server.js`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.machine import RESULTS, LeftOut
from bench.publisher import HttpWire, Wire
from bench.receiver import Plan, Style
from bench.server import Server
from bench.ws_client import client_frame, format_upgrade

FOLDER = Path(__file__).parent
PLACE = RESULTS / "socketio"


class SocketIo(Server):
    """Engine.IO 4 over WebSocket: 40 joins the namespace, 2 is a ping and 3 its answer, 42 an event."""

    name = "Socket.IO"
    about = "Socket.IO on Node, WebSocket only, with bufferutil and utf-8-validate; `io.emit` in its own process"
    style = Style(ready=b'40{"sid"', ping=b"2", pong=client_frame(b"3"))

    @classmethod
    def prepare(cls) -> None:
        if not shutil.which("npm") or not shutil.which("node"):
            raise LeftOut("there is no Node with npm")
        PLACE.mkdir(parents=True, exist_ok=True)
        lock = (FOLDER / "package-lock.json").read_bytes()
        kept = PLACE / "package-lock.json"
        if not (PLACE / "node_modules" / "socket.io").exists() or kept.read_bytes() != lock:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(FOLDER / name, PLACE)
            done = subprocess.run(["npm", "ci", "--no-progress"], cwd=PLACE, capture_output=True, text=True)
            if done.returncode:
                raise LeftOut(f"npm ci: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")
        shutil.copy(FOLDER / "server.js", PLACE)

    @classmethod
    def versions(cls) -> dict[str, str]:
        packages = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
        node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
        found = {
            name: packages[f"node_modules/{name}"]["version"]
            for name in ("socket.io", "ws", "bufferutil", "utf-8-validate")
        }
        return {"node": node, **found}

    def command(self) -> Sequence[str]:
        return ["node", str(PLACE / "server.js"), str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "NODE_ENV": "production"}

    def plan(self, user: int) -> list[Plan]:
        request = format_upgrade(self.port, "/socket.io/?EIO=4&transport=websocket")
        return [Plan(self.port, request, client_frame(b'40{"user":"u%d"}' % user if self.has_own else b"40"))]

    def wires(self, count: int) -> list[Wire]:
        return [HttpWire(self.port) for _ in range(count)]
