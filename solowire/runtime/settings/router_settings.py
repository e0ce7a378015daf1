"""The settings of the router: its log, and what it says of the system."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from solowire.runtime.settings.section import Section


class RouterSettings(Section):
    """The router."""

    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="the router's port for /metrics; default: port + 257, after 256 shards'"
    )
    stats_interval_s: float = Field(30.0, ge=0, le=1e9, description="a gateway_stats event this often; 0: never")


class JournalSettings(Section):
    """The router's log."""

    storage: Literal["sqlite", "memory"] = Field("sqlite", description="where the router keeps its log")
    max_age_s: float = Field(24 * 3600.0, gt=0, le=1e9, description="how long the router keeps an event, in seconds")
    max_events: int = Field(5_000_000, ge=100, le=10**12, description="events in the router's log")
    max_bytes: int = Field(2 * 2**30, ge=2**20, le=2**50, description="size of the router's log")
    duplicate_window_s: float = Field(600.0, ge=0, le=1e9, description="how long an event's id is remembered")


class AlertSettings(Section):
    """Alerts: above which number, and for how long."""

    raise_after_s: float = Field(
        3.0, ge=0, le=1e9, description="an alert begins when a number was too high for so long"
    )
    clear_after_s: float = Field(10.0, ge=0, le=1e9, description="it ends below 80 % of the threshold for so long")
    lag_s: float = Field(2.0, gt=0, le=1e9, description="age of the oldest event that a shard has not acknowledged")
    connection_lag_s: float = Field(
        10.0, gt=0, le=1e9, description="age of the event that the slowest connection gets next"
    )
    loop_lag_s: float = Field(0.5, gt=0, le=1e9, description="lateness of a timer in a process")
    memory_bytes: int = Field(4 * 2**30, ge=2**20, le=2**50, description="memory of a process")
    lease_use_percent: int = Field(95, ge=1, le=100, description="how much of its lease a shard uses")
    refused_per_s: float = Field(20.0, gt=0, le=1e9, description="connections refused, by all processes")
