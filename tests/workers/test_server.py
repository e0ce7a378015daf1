"""What a shard's process makes of its settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.model.access import ROLES
from solowire.runtime.data_directory import make_directories
from solowire.runtime.settings import Settings
from solowire.runtime.settings.process_settings import AuditSettings
from solowire.workers import server
from solowire.workers.shard import Shard


@pytest.mark.parametrize("fails", ["set_clock", "run"])
async def test_a_tick_that_fails_is_logged_and_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A fault in what is done each second is an error in the log; the process goes on, and ends in order."""
    monkeypatch.setattr(server, "TICK_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path, port=0, audit=AuditSettings(output="off"))
    make_directories(settings)
    stop, ticks = asyncio.Event(), 0

    def fail(*_: object) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            stop.set()
        raise ValueError("this second is no good")

    monkeypatch.setattr(Shard, fails, fail)
    with capture_logs() as lines:
        async with asyncio.timeout(30):
            status = await server._ShardServer(settings, 0, Tokens("s" * 32, ROLES, domain=DNS), ROLES, None).main(stop)
    failed = [(line["log_level"], line["exc_info"]) for line in lines if line["event"] == "tick_failed"]
    assert failed == [("error", True)] * 3
    assert status == 0
