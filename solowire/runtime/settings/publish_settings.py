"""The settings of publishing: how much is taken at a time and of whom, and when publishers are slowed."""

from __future__ import annotations

from pydantic import Field, model_validator

from solowire.runtime.settings.section import Section, make_conflict


class PublishSettings(Section):
    """Publishing, and backpressure on publishers."""

    max_request_bytes: int = Field(4 * 2**20, ge=1024, le=2**30, description="one publish request")
    max_request_events: int = Field(5_000, ge=1, le=10**6, description="events in one publish request")
    max_event_bytes: int = Field(32 * 1024, ge=256, le=60 * 1024, description="one event's data as JSON")
    timeout_s: float = Field(5.0, gt=0, le=600, description="how long a gateway waits for the router's answer")
    rate: float = Field(
        20_000.0,
        gt=0,
        le=1e9,
        description="events per second from one publisher, at each gateway; one of more than 1 KB counts as several",
    )
    burst: float = Field(40_000.0, ge=1, le=1e9, description="events that one publisher may send at once")
    bytes_per_s: float = Field(
        12.0 * 2**20,
        gt=0,
        le=1e12,
        description="what the log takes per second from one publisher, over all gateways: its events as they are kept",
    )
    burst_bytes: float = Field(32.0 * 2**20, ge=1, le=1e12, description="bytes that one publisher may send at once")
    critical_rate: float = Field(
        50.0,
        gt=0,
        le=1e9,
        description="events per second of priority critical from one publisher, at each gateway; those beyond are high",
    )
    critical_burst: float = Field(
        500.0, ge=1, le=1e9, description="critical events that one publisher may send at once"
    )
    max_held_requests: int = Field(1_000, ge=1, le=10**6, description="publish requests that a gateway holds at a time")
    max_held_bytes: int = Field(32 * 2**20, ge=2**16, le=2**40, description="their size together")
    min_body_bytes_per_s: float = Field(
        4096.0, ge=0, le=1e9, description="a publish request that comes more slowly is ended (408); 0: within a minute"
    )
    body_grace_s: float = Field(
        5.0, gt=0, le=60, description="how long one may fall silent, and how far behind that pace it may fall"
    )
    lag_soft_s: float = Field(
        1.0, gt=0, le=3600, description="publishers are slowed when a live shard is so far behind the log"
    )
    lag_hard_s: float = Field(5.0, gt=0, le=3600, description="and refused when it is so far")

    @model_validator(mode="after")
    def _agree(self) -> PublishSettings:
        if self.max_request_bytes < self.max_event_bytes:
            raise make_conflict(
                "{} must not be below {}: one event would not fit", "max_request_bytes", "max_event_bytes"
            )
        if self.max_held_bytes < self.max_request_bytes:
            raise make_conflict(
                "{} must not be below {}: one request would not fit", "max_held_bytes", "max_request_bytes"
            )
        if self.lag_soft_s >= self.lag_hard_s:
            raise make_conflict("{} must be below {}", "lag_soft_s", "lag_hard_s")
        return self
