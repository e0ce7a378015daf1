"""The zones that a server has, as its statistics channel lists them (`/json/v1/zones`).

Pure: bytes in, values out; whatever the bytes, there is a list or a StatisticsError.
"""

from __future__ import annotations

import dns.exception
import dns.name
import msgspec

from solowire.errors import StatisticsError

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
    """The zones of an answer that can be watched. Raises StatisticsError."""
    try:
        listing = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise StatisticsError(f"the list of zones can't be read: {error}") from None
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
