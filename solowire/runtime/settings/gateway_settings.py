"""The settings of a gateway alone."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from solowire.runtime.settings.section import Section

_SHARD_URL = re.compile(r"wss?://[^/?#\s]+")


class GatewaySettings(Section):
    """Gateways."""

    shard_url: str | None = Field(
        None,
        description="what clients are told; {scheme}, {host}: of their request; {port}, {shard}, {shard_host}: of the "
        "shard; default: {scheme}://{host}:{port}/ws, with a tcp backplane {scheme}://{shard_host}:{port}/ws",
    )
    max_http_connections: int = Field(5000, ge=1, le=10**6, description="HTTP connections of a gateway")
    max_http_connections_per_address: int = Field(
        1000, ge=1, le=10**6, description="the same of one address; `trusted_proxies` are not counted"
    )
    connection_rate_per_address: float = Field(
        2000.0, gt=0, le=1e9, description="HTTP connections that one address may open per second; more are cut at once"
    )
    connection_burst_per_address: float = Field(10_000.0, ge=1, le=1e9, description="the same at once")

    @field_validator("shard_url")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            url = value.format(scheme="ws", host="h", port=1, shard=0, shard_host="h")
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError("it may hold {scheme}, {host}, {port}, {shard} and {shard_host}, nothing else") from None
        if not _SHARD_URL.match(url):
            raise ValueError("it must begin with {scheme}://, ws:// or wss:// and a host")
        return value
