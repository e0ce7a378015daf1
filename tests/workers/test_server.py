"""What a shard's process makes of its settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.fanout.aggregation import AggregationLimits
from solowire.fanout.conflation import ConflationIntervals
from solowire.fanout.feed import FlushDelays
from solowire.model.access import ROLES
from solowire.runtime import process
from solowire.runtime.settings import Settings, make_directories
from solowire.workers import server
from solowire.workers.config import ShardConfig
from solowire.workers.server import build_shard_config, compute_capacity
from solowire.workers.shard import Shard


def test_all_that_is_set_reaches_the_shard() -> None:
    """Each limit of a shard is what its setting says: none keeps its default when it is set."""
    settings = Settings(
        on_duplicate="reject",
        hello_timeout_s=3,
        heartbeat_s=4,
        expiry_notice_s=5,
        stalled_s=6,
        message_rate=7,
        message_burst=8,
        subscription_rate=9,
        subscription_burst=11,
        max_connections_per_user=12,
        max_connections_per_address=13,
        group_by="tenant",
        reconnect_min_ms=14,
        reconnect_max_ms=15,
        moves_per_s=16,
        replay_bytes=2**17,
        replays=18,
        replay_rate=29,
        replay_burst=30,
        replay_timeout_s=31,
        flush_high_ms=19,
        flush_normal_ms=21,
        flush_low_ms=22,
        flush_per_connection_ms=23,
        telemetry_per_s=24,
        telemetry_types_per_s={"rpz_hit": 25},
        telemetry_interval_s=26,
        state_interval_s=27,
        state_intervals_s={"bulk_progress": 28},
    )
    limits = build_shard_config(settings)
    assert limits.capacity == compute_capacity(process.raise_file_limit())
    assert structs.replace(limits, capacity=0) == ShardConfig(
        on_duplicate="reject",
        hello_timeout=3,
        heartbeat=4,
        expiry_notice=5,
        stalled=6,
        message_rate=7,
        message_burst=8,
        subscription_rate=9,
        subscription_burst=11,
        per_user=12,
        per_address=13,
        group_by="tenant",
        reconnect_min_ms=14,
        reconnect_max_ms=15,
        moves_per_second=16,
        replay_bytes=2**17,
        replays=18,
        replay_rate=29,
        replay_burst=30,
        replay_timeout=31,
        flush=FlushDelays(high=0.019, normal=0.021, low=0.022, per_connection=0.023),
        telemetry=AggregationLimits(24, {"rpz_hit": 25}, interval=26),
        states=ConflationIntervals(27, {"gateway_stats": 0, "bulk_progress": 28}),
    )
    default = structs.asdict(ShardConfig())
    assert [name for name, value in structs.asdict(limits).items() if value == default[name]] == []


@pytest.mark.parametrize("fails", ["set_clock", "run"])
async def test_a_tick_that_fails_is_logged_and_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A fault in what is done each second is an error in the log; the process goes on, and ends in order."""
    monkeypatch.setattr(server, "TICK_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path, port=0, audit="off", merge_memory=False)
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
            status = await server._ShardServer(settings, 0, Tokens("s" * 32, ROLES, domain=DNS), ROLES).main(stop)
    failed = [(line["log_level"], line["exc_info"]) for line in lines if line["event"] == "tick_failed"]
    assert failed == [("error", True)] * 3
    assert status == 0
