"""FastAPI on uvicorn with five sockets per user; see `app.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.machine import RESULTS, LeftOut
from bench.publisher import About, HttpWire, Wire
from bench.receiver import Plan
from bench.server import Server
from bench.ws_client import format_upgrade

FOLDER = Path(__file__).parent
VENV = RESULTS / "replaced"
TYPES = ("health", "dns_management", "security", "system", "admin")


class Replaced(Server):
    """An event goes to one of the five sockets of every user."""

    name = "replaced pattern"
    about = "FastAPI on uvicorn (uvloop, httptools), five sockets per user, `json.dumps` for each send"
    sockets = len(TYPES)

    @classmethod
    def prepare(cls) -> None:
        marker = VENV / "installed.txt"
        wanted = (FOLDER / "requirements.txt").read_text()
        if marker.exists() and marker.read_text() == wanted:
            return
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            [
                str(VENV / "bin/pip"),
                "install",
                "-q",
                "--disable-pip-version-check",
                "-r",
                str(FOLDER / "requirements.txt"),
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise LeftOut(
                    f"FastAPI could not be installed: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
                )
        marker.write_text(wanted)

    @classmethod
    def versions(cls) -> dict[str, str]:
        pins = dict(line.split("==") for line in (FOLDER / "requirements.txt").read_text().split() if "==" in line)
        # Solowire has some of these, too: the page names both.
        names = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "websockets")
        return {f"{name} (replaced pattern)": pins[name] for name in names}

    def command(self) -> Sequence[str]:
        options = f"--app-dir {FOLDER} --host 127.0.0.1 --port {self.port} --log-level warning --no-access-log"
        return [str(VENV / "bin/uvicorn"), "app:app", *options.split(), "--timeout-keep-alive", "600"]

    def plan(self, user: int) -> list[Plan]:
        return [
            Plan(self.port, format_upgrade(self.port, f"/api/websocket/ws/{kind}?token=u{user}"), streams=(n, n))
            for n, kind in enumerate(TYPES)
        ]

    def addressed(self, number: int) -> About:
        kind = number % len(TYPES)
        return About(kind, top=f'"socket":"{TYPES[kind]}",'.encode())

    def addressed_to(self, user: int) -> About:
        """To the same of its five sockets each time: only there has it an order."""
        return About(user, top=f'"socket":"{TYPES[user % len(TYPES)]}","user":"u{user}",'.encode())

    def wires(self, count: int) -> list[Wire]:
        return [HttpWire(self.port, "/publish") for _ in range(count)]
