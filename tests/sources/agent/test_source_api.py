"""The web server of a source: its probes and its metrics."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import httpx

from solowire.sources.agent.source_api import serve_api
from solowire.sources.agent.source_status import StatusReporter
from tests.support.recorded_outlet import RecordedOutlet


async def test_it_is_ready_when_each_part_has_begun(logged: Callable[[], set[str]]) -> None:
    """And tells the parts' counts; where it listens is in the log."""
    source = StatusReporter("host", RecordedOutlet())
    part = source.add_part("host")
    sock = socket.create_server(("127.0.0.1", 0))
    server = serve_api(source, sock)
    try:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            async with asyncio.timeout(60):
                while (answer := await http.get("/readyz")).status_code != 503:
                    await asyncio.sleep(0.05)
            assert "starting" in answer.text
            part.set_running()
            part.read_count = 7
            assert (await http.get("/readyz")).status_code == 200
            assert (
                'solowire_source_events_read_total{kind="host",part="host",server="ns1"} 7.0'
                in (await http.get("/metrics")).text
            )
    finally:
        await server.finish()
        sock.close()
    assert "source_listening" in logged()
