"""What one shard allows."""

from __future__ import annotations

import msgspec

from solowire.fanout.aggregation import AggregationLimits
from solowire.fanout.conflation import ConflationIntervals
from solowire.fanout.feed import FlushDelays


class HistoryLimits(msgspec.Struct, frozen=True):
    """rate: pages per second of one user, burst: at once. timeout: seconds for a page. page_events: its limit's."""

    rate: float = 10.0
    burst: float = 50.0
    per_user: int = 2
    concurrent: int = 4
    timeout: float = 5.0
    page_events: int = 5_000


class ShardConfig(msgspec.Struct, frozen=True):
    """What one shard allows. Times in seconds, rates per second. capacity: of its process, in connections."""

    on_duplicate: str = "replace"
    hello_timeout: float = 2.0
    heartbeat: float = 25.0
    expiry_notice: float = 60.0
    stalled: float = 30.0
    message_rate: float = 20.0
    message_burst: float = 60.0
    subscription_rate: float = 10.0
    subscription_burst: float = 60.0
    per_user: int = 1
    per_address: int | None = None
    capacity: int = 0
    group_by: str = "role"
    reconnect_min_ms: int = 500
    reconnect_max_ms: int = 20_000
    moves_per_second: float = 500.0
    replay_bytes: int = 32 * 2**20
    replays: int = 8
    replay_rate: float = 5_000.0
    replay_burst: float = 1_000_000.0
    replay_timeout: float = 60.0
    history: HistoryLimits = HistoryLimits()
    flush: FlushDelays = FlushDelays()
    telemetry: AggregationLimits = AggregationLimits()
    states: ConflationIntervals = ConflationIntervals()
