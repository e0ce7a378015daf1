"""The settings of a client's connection: what it may say, and how often it hears of us."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from solowire.runtime.settings.section import Section, make_conflict


class SessionSettings(Section):
    """Connections and what they say."""

    on_duplicate: Literal["replace", "reject"] = Field("replace", description="a second connection of a user")
    hello_timeout_s: float = Field(2.0, gt=0, le=60, description="how long a client may take for its hello")
    heartbeat_interval_s: float = Field(
        25.0, ge=0.2, le=600, description="a ping this often; two unanswered close (4408)"
    )
    expiry_notice_s: float = Field(
        60.0,
        ge=0,
        le=1e9,
        description="how long before its token expires a client is told; a fifth of its life if that is less",
    )
    message_rate: float = Field(20.0, gt=0, le=1e9, description="messages per second from one user")
    message_burst: float = Field(60.0, ge=1, le=1e9, description="messages that one user may send at once")
    subscription_rate: float = Field(
        10.0,
        gt=0,
        le=1e9,
        description="hello, subscribe, unsubscribe, refresh per second of one user; large ones are several",
    )
    subscription_burst: float = Field(60.0, ge=1, le=1e9, description="such messages that one user may send at once")
    reconnect_min_ms: int = Field(
        500, ge=0, le=3_600_000, description="soonest that clients come back after a lost connection"
    )
    reconnect_max_ms: int = Field(
        20_000, ge=1, le=3_600_000, description="what the wait before each further attempt grows to"
    )

    @model_validator(mode="after")
    def _agree(self) -> SessionSettings:
        if self.reconnect_min_ms > self.reconnect_max_ms:
            raise make_conflict("{} must not be above {}", "reconnect_min_ms", "reconnect_max_ms")
        return self
