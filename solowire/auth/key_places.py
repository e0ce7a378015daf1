"""The places of keys that settings may name. Pure, and light: every command reads settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from solowire.algorithms.hosts import is_http_url, is_loopback
from solowire.errors import ConfigError

MAX_SECRETS = 8
"""Secrets that are accepted at a time: each is tried, one after the other."""


def is_url(place: str) -> bool:
    """Whether keys come from there by HTTP; else it is a file's path."""
    return "://" in place


def check_place(place: str) -> None:
    """Raises ConfigError for where no keys can come from, or may not: who can change them on their way is anybody."""
    if not is_url(place):
        return
    if not is_http_url(place):
        raise ConfigError(f"jwks must be the URL of a JWK set, or a file's path (got {place!r})")
    if urlsplit(place).scheme == "http" and not is_local_url(place):
        raise ConfigError(
            "jwks must be https://, but for this machine's own addresses: keys must not be changed on their way"
        )


def is_local_url(place: str) -> bool:
    """Whether it leads to this machine."""
    return is_loopback(urlsplit(place).hostname or "")
