"""The settings of what clients that come back may get again."""

from __future__ import annotations

from pydantic import Field

from solowire.runtime.settings.section import Section


class ReplaySettings(Section):
    """What clients that come back may get again."""

    max_bytes: int = Field(
        32 * 2**20,
        ge=2**16,
        le=2**50,
        description="what one client may get again when it comes back; more is `too_much`",
    )
    max_concurrent: int = Field(
        8, ge=1, le=10**4, description="replays from the router's log that a shard does at a time"
    )
    rate: float = Field(
        5_000.0, gt=0, le=1e9, description="events of the log that one user may have read per second when it comes back"
    )
    burst: float = Field(1_000_000.0, ge=1, le=1e9, description="the same at once, whatever it gets of them")
    timeout_s: float = Field(
        60.0, ge=1, le=600, description="how long a client that comes back may wait for all it missed, else `too_much`"
    )
