"""named's statistics channel: one for all parts that ask it, so that the long list of zones is asked for once.

What it keeps true: an answer is bounded in bytes and in time; whatever comes is an answer or a StatisticsError.
"""

from __future__ import annotations

import asyncio
import time

import httpx

from solowire.errors import ConfigError, StatisticsError
from solowire.sources.bind9.zone_listing import ListedZone, parse_listing

ANSWER_BYTES = 8 * 2**20
ANSWER_S = 5.0
LISTING_BYTES = 64 * 2**20
LISTING_S = 30.0

WAY_OUT = (
    "is named running, with `statistics-channels { inet 127.0.0.1 port 8053 allow { 127.0.0.1; }; };` in its "
    "configuration? Trying on"
)


class StatisticsChannel:
    """The channel at `url`, such as http://127.0.0.1:8053. Raises ConfigError for a url that is none."""

    def __init__(self, url: str) -> None:
        self.url = _find_base(url)
        # Nothing stays open between two answers: nobody has to close it.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(trust_env=False, timeout=ANSWER_S, limits=limits)
        self._listing = asyncio.Lock()
        self._zones: list[ListedZone] | None = None
        self._listed_at = 0.0

    async def fetch(self, what: str) -> bytes:
        """An answer, such as `server`. Raises StatisticsError."""
        return await self._fetch(what, ANSWER_BYTES, ANSWER_S)

    async def list_zones(self, max_age_s: float = 0.0) -> list[ListedZone]:
        """The zones that can be watched. max_age_s: a list that old, which somebody has asked for, will do.

        named stands still while it makes a list of thousands. Raises StatisticsError.
        """
        async with self._listing:
            if self._zones is None or time.monotonic() - self._listed_at >= max_age_s:
                self._zones = parse_listing(await self._fetch("zones", LISTING_BYTES, LISTING_S))
                self._listed_at = time.monotonic()
            return self._zones

    async def _fetch(self, what: str, max_bytes: int, timeout_s: float) -> bytes:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("GET", f"{self.url}/json/v1/{what}", timeout=timeout_s) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    raise StatisticsError(f"the statistics channel answers with status {answer.status_code}")
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > max_bytes:
                        raise StatisticsError(f"the statistics channel answers with more than {max_bytes} bytes")
        except httpx.ConnectError as error:
            raise StatisticsError(f"the statistics channel can't be reached: {error}", is_refused=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise StatisticsError(f"the statistics channel: {str(error) or type(error).__name__}") from None
        return bytes(body)


def _find_base(url: str) -> str:
    """The channel's address, of that or of one of its pages. Raises ConfigError."""
    try:
        parsed = httpx.URL(url)
        is_address = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        is_address = False
    if not is_address:
        raise ConfigError(
            f"{url!r} is no address of a statistics channel: source.statistics.url (--statistics) wants one such as "
            "http://127.0.0.1:8053"
        )
    return url.rstrip("/").removesuffix("/server").removesuffix("/json/v1").rstrip("/")
