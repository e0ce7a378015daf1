"""The zones that a server has, as its statistics channel lists them (`/json/v1/zones`).

What it keeps true: an answer is LISTING_BYTES at most, and whatever comes, it is a list or a TransferError.
"""

from __future__ import annotations

import dns.exception
import dns.name
import httpx
import msgspec

from solowire.errors import TransferError

LISTING_BYTES = 64 * 2**20
ANSWER_S = 10.0
_WATCHED = frozenset({"primary", "master", "secondary", "slave", "mirror"})


class ListedZone(msgspec.Struct, frozen=True):
    """A zone of the server. zone: in lower case, without the last dot. view: as named.conf has it."""

    zone: str
    view: str
    type: str
    serial: int | None


class _JsonZone(msgspec.Struct):
    name: str
    rdclass: str = msgspec.field(name="class", default="IN")
    type: str = ""
    serial: int | None = None


class _JsonView(msgspec.Struct):
    zones: list[_JsonZone] = []


class _JsonZones(msgspec.Struct):
    views: dict[str, _JsonView] = {}


_decoder = msgspec.json.Decoder(_JsonZones)


def parse_listing(body: bytes) -> list[ListedZone]:
    """The zones of an answer that can be watched. Raises TransferError."""
    try:
        listing = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TransferError(
            "malformed", f"the statistics channel's answer can't be read: {error}", "is it named's, built with JSON?"
        ) from None
    found = []
    for view, its in listing.views.items():
        for zone in its.zones:
            if zone.type.lower() in _WATCHED and zone.rdclass.upper() == "IN":
                try:
                    name = dns.name.from_text(zone.name).canonicalize().to_text(omit_final_dot=True)
                except (dns.exception.DNSException, ValueError):
                    continue
                found.append(ListedZone(name, view, zone.type, zone.serial))
    return found


async def list_server_zones(http: httpx.AsyncClient, url: str) -> list[ListedZone]:
    """Asks the statistics channel. url: its address, such as http://127.0.0.1:8053. Raises TransferError."""
    body = bytearray()
    try:
        async with http.stream("GET", url.rstrip("/") + "/json/v1/zones", timeout=ANSWER_S) as answer:
            if answer.status_code != httpx.codes.OK:
                raise TransferError("failed", f"{url} answers with status {answer.status_code}", _WAY_OUT)
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > LISTING_BYTES:
                    raise TransferError("too_large", f"{url} answers with more than {LISTING_BYTES} bytes", _WAY_OUT)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise TransferError(
            "away", f"the statistics channel {url} can't be asked: {str(error) or type(error).__name__}", _WAY_OUT
        ) from None
    return parse_listing(bytes(body))


_WAY_OUT = "add `statistics-channels { inet 127.0.0.1 port 8053 allow { 127.0.0.1; }; };` to named.conf, or name zones"
