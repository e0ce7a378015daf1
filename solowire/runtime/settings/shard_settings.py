"""The settings of a shard alone: its ports, its recent log, and when what is sent."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from solowire.model.events import Priority
from solowire.runtime.settings.section import Section, Table, make_conflict

_Number = Annotated[float, Field(ge=0, le=1e9)]
_NORMAL = Priority.normal  # an enumeration looks its members up by name, each time


class FlushSettings(Section):
    """How long an event may wait for company, by its priority; critical ones don't.

    Waiting only pays where frames are many: a shard waits `per_connection_ms` for each connection that it has, so that
    its frames cost a few percent of a core at the most, while with one connection an event goes out as it comes.
    """

    high_ms: float = Field(20.0, ge=0, le=10_000, description="longest that an event of high priority waits")
    normal_ms: float = Field(100.0, ge=0, le=10_000, description="the same of normal priority")
    low_ms: float = Field(1000.0, ge=0, le=60_000, description="the same of low priority")
    per_connection_ms: float = Field(
        1.0, ge=0, le=3_600_000, description="a shard waits this for each connection, up to those"
    )

    @model_validator(mode="after")
    def _agree(self) -> FlushSettings:
        if not self.high_ms <= self.normal_ms <= self.low_ms:
            raise make_conflict("{} ≤ {} ≤ {} must hold", "high_ms", "normal_ms", "low_ms")
        return self

    def delay_for(self, priority: Priority, connections: int) -> float:
        """Seconds, for a shard with so many connections."""
        # Nearly all are normal: the attribute's name is looked up only for the others.
        if priority is _NORMAL:
            longest = self.normal_ms
        elif priority is Priority.critical:
            return 0.0
        else:
            longest = self.high_ms if priority is Priority.high else self.low_ms
        shortest = connections * self.per_connection_ms
        return (shortest if shortest < longest else longest) / 1000


class AggregationSettings(Section):
    """Floods of telemetry, which are summed up."""

    events_per_s: float = Field(
        500.0, gt=0, le=1e9, description="telemetry of one type, for one feed, above which it is summed up"
    )
    type_events_per_s: Table[_Number] = Field(
        default_factory=dict,
        description="the same by event type",
    )
    interval_s: float = Field(1.0, ge=0.1, le=60, description="how often what is summed up is sent")

    def rate_for(self, name: str) -> float:
        """Events per second of one type."""
        return self.type_events_per_s.get(name, self.events_per_s)


class ConflationSettings(Section):
    """States, of which the newest counts."""

    interval_s: float = Field(
        30.0, ge=0, le=3600, description="a state's value is sent this often at most, unless critical; 0: as it comes"
    )
    type_interval_s: Table[_Number] = Field(
        default_factory=dict,
        description="the same by event type; of gateway_stats 0: `router.stats_interval_s` says how often it comes",
    )

    def interval_for(self, name: str) -> float:
        """Seconds, of one type."""
        found = self.type_interval_s.get(name)
        if found is not None:
            return found
        return 0.0 if name == "gateway_stats" else self.interval_s


class RecentLogSettings(Section):
    """What a shard keeps of the log in memory."""

    max_events: int = Field(
        100_000,
        ge=100,
        le=10**12,
        description="events in a shard's recent log; of durable ones a quarter more, for slow readers",
    )
    max_bytes: int = Field(
        128 * 2**20,
        ge=2**20,
        le=2**50,
        description="what a shard's recent log takes in memory; older durable events and written ones, a quarter each",
    )


class ShardSettings(Section):
    """Shards."""

    port: int | None = Field(None, ge=0, le=65535, description="one shard's port; default: the flat port + 1 + index")
    api_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="the first shard's API port, others' after it; default: Unix sockets in the data directory",
    )
    credit_events: int = Field(10_000, ge=100, le=10**7, description="events that may be under way to a shard")
    rebalance_users_per_s: float = Field(
        500.0, gt=0, le=1e9, description="users sent away, or let back, per second when the ring changes"
    )
    merge_memory: bool = Field(
        False,
        description="shards offer their memory to same-page merging: 1 KB less of some 26 for a silent connection",
    )
    flush: FlushSettings = FlushSettings()
    aggregation: AggregationSettings = AggregationSettings()
    conflation: ConflationSettings = ConflationSettings()
    recent_log: RecentLogSettings = RecentLogSettings()
