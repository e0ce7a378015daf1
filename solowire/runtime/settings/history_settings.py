"""The settings of questions about history."""

from __future__ import annotations

from pydantic import Field

from solowire.runtime.settings.section import Section


class HistorySettings(Section):
    """What may be asked about history."""

    rate: float = Field(10.0, gt=0, le=1e9, description="pages of history per second of one user")
    burst: float = Field(50.0, ge=1, le=1e9, description="the same at once")
    max_per_user: int = Field(2, ge=1, le=10**4, description="questions about history of one user under way at a time")
    max_concurrent: int = Field(
        4, ge=1, le=10**4, description="questions about history that a shard works on at a time"
    )
    timeout_s: float = Field(
        5.0, ge=0.1, le=60, description="how long a page of history is made; then it ends with what was found"
    )
    max_wait_s: float = Field(
        5.0, ge=0.1, le=60, description="how long a question waits for its turn to begin; then it is refused with 503"
    )
    page_events: int = Field(  # 1,000 is what clients may ask for without a question
        5_000, ge=1_000, le=50_000, description="events in one page of history, at most"
    )
