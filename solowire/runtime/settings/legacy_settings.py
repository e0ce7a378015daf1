"""The settings of the protocol for old frontends."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from solowire.model.dialect import GUIDE_PATH


def _check_day(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"write a day such as 2027-12-31, not {value!r}") from None


class LegacySettings(BaseSettings):
    """Part of `solowire.runtime.settings.Settings`."""

    legacy: Literal["on", "warn", "off"] = Field(
        "warn", description="old frontends are served; warn: and each user of one is a warning in the log"
    )
    legacy_connections_per_user: int = Field(
        10, ge=1, le=1000, description="WebSockets of old frontends that one user may have; the newest is refused"
    )
    legacy_expiry_grace: float = Field(
        0.0, ge=0, le=30 * 86400, description="seconds for which old frontends' tokens are accepted after their end"
    )
    legacy_admin_memory_s: float = Field(
        0.0,
        ge=0,
        le=30 * 86400,
        description="how long an administrator stays one whose old frontend shows tokens without is_admin",
    )
    legacy_sunset: Annotated[str, AfterValidator(_check_day)] = Field(
        "2027-12-31", description="the day from which on old frontends are told that they are not served"
    )
    legacy_guide: str = Field(
        GUIDE_PATH,
        pattern=r"[\x21-\x3b\x3d\x3f-\x7e]+",
        description="address of what to use instead; a whole one for gateways beneath a path of a proxy's",
    )
