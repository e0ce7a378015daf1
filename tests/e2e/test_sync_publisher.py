"""The publisher for programs without an event loop, in programs like those that use it, with a real system."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from solowire.sdk.client import Client
from tests.support.system import READY_SECONDS, System

PREFORK = """
import os, signal, sys
from solowire import SyncPublisher

publisher = SyncPublisher(sys.argv[1], sys.argv[2])  # with the application, before the workers
publisher.publish("custom.sync", {"worker": "master", "n": 0})

workers = []
for name in ("a", "b", "c"):
    pid = os.fork()
    if pid == 0:
        with publisher.bulk("import", total=50, operation_id=name) as operation:
            for n in range(50):
                publisher.publish("custom.sync", {"worker": name, "n": n})
                operation.add_succeeded()
        if name == "a":  # as Celery's: told that it ends, and ended by force
            publisher.close()
            os._exit(0)
        sys.exit()  # as gunicorn's
    workers.append(pid)
status = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers}
publisher.publish("custom.sync", {"worker": "master", "n": 1})
sys.exit(max(status))
"""


async def test_a_server_that_forks_its_workers(system: System, tmp_path: Path) -> None:
    """What the master and each of its workers published is in the log once, in each one's order."""
    program = tmp_path / "prefork.py"
    program.write_text(PREFORK)
    heard: dict[str, list[int]] = {}
    ends: dict[Any, Any] = {}
    token = system.token("ann", "admin")
    types = ["custom.*", "bulk_started", "bulk_completed"]
    async with asyncio.timeout(READY_SECONDS), Client(system.url, token, subscriptions=types) as client:
        writer = system.token("agent", "publisher")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore:This process", str(program), system.url, writer
        )
        async for event in client:
            data = event.data
            if event.type == "custom.sync":
                heard.setdefault(data["worker"], []).append(data["n"])
            elif event.type == "bulk_completed":
                ends[data["operation_id"]] = data["processed"]
            if heard.get("master") == [0, 1]:
                break
        assert await process.wait() == 0
    assert heard == {"master": [0, 1]} | {name: list(range(50)) for name in "abc"}
    assert ends == {"a": 50, "b": 50, "c": 50}
