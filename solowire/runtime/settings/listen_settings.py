"""The settings of ports and of what stands before them: whose word is believed, and when a connection is cut."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from solowire.algorithms.hosts import check_host, strip_brackets
from solowire.runtime.settings.section import Section, TextList, make_conflict

_ORIGIN = re.compile(  # RFC 6454, section 6.2
    r"\*|null|(?!https://.*:443$|http://.*:80$)[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:*\[\]A-Z]+)(:\d+)?"
)


class ListenSettings(Section):
    """Ports that clients come to, at gateways and shards."""

    allowed_origins: TextList = Field(
        default_factory=list,
        description="sites (https://app.example.com) whose pages may connect, beside the request's own host, and read "
        "what /v1/connect, /v1/events and /v1/catalog answer; * for all",
    )
    trusted_proxies: TextList = Field(
        default_factory=list,
        description="networks, such as 10.0.0.0/8, whose X-Forwarded-… or Forwarded is believed",
    )
    forwarded_headers: Literal["auto", "x-forwarded", "forwarded"] = Field(
        "auto", description="the headers that trusted_proxies write; auto: X-Forwarded-…, or else Forwarded"
    )
    request_head_timeout_s: float = Field(
        10.0, ge=0.1, le=60, description="a connection that sends no whole request head for so long is cut"
    )
    keepalive_timeout_s: float = Field(
        75.0, ge=1, le=3600, description="an HTTP connection that sends no further request for so long is closed"
    )
    write_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="how long a socket may take nothing before it is closed (4413)"
    )
    send_buffer_bytes: int = Field(256 * 1024, ge=4096, le=2**30, description="SO_SNDBUF of client sockets")
    max_pending: int = Field(
        4000, ge=1, le=10**6, description="connections of a shard that have not sent a whole head yet"
    )
    max_pending_per_address: int = Field(1000, ge=1, le=10**6, description="the same of one address")
    advertised_host: str | None = Field(
        None,
        description="address or name under which others reach this process; default: host, unless that stands for all "
        "addresses",
    )
    api_host: str | None = Field(
        None,
        description="address that API ports (metrics, health) listen on; default: 127.0.0.1, of a shard of several "
        "hosts: host",
    )
    api_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="API port of this one router or shard; default: as `router` and `shard` say; "
        "gateways have theirs on their own port",
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM with the certificate and its chain: gateways and shards speak TLS to clients"
    )
    tls_key_file: Path | None = Field(None, description="PEM with that certificate's key, which is not encrypted")

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"no browser sends {origin!r}; write https://app.example.com, in lower case, with "
                    "a port if that is not the usual one, and nothing behind it; * alone allows all"
                )
        return value

    @field_validator("api_host")
    @classmethod
    def _has_no_brackets(cls, value: str | None) -> str | None:
        return None if value is None else strip_brackets(value)

    @field_validator("advertised_host")
    @classmethod
    def _is_host(cls, value: str | None) -> str | None:
        return None if value is None else check_host(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for network in value:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}; write 10.0.0.0/8 or 10.1.2.3") from None
        return value

    @model_validator(mode="after")
    def _agree(self) -> ListenSettings:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise make_conflict(
                "{} and {} must be set both, or neither; it may be the same file",
                "tls_certificate_file",
                "tls_key_file",
            )
        return self
