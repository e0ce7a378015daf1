"""One line of BIND 9's query log, and the `dns_query_log` event that it becomes.

Pure: text in, values out. A line is a query only if *all* of it has the form that `named` writes, from the
first character on: a damaged or cut line is skipped, never half understood, and nothing that a client can put
into a name (BIND escapes white space, parentheses and what isn't ASCII) can pass for another field. The forms
are those of `ns_client_log()`, `log_query()` and `log_response()` in BIND 9.11 to 9.21. What a syslog daemon puts
before them is `syslog_prefix`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, tzinfo

import msgspec

from solowire.sources.bind9.log_time import BIND_TIME, format_time, parse_time
from solowire.sources.bind9.syslog_prefix import has_time, parse_moment, split_syslog

EVENT_TYPE = "dns_query_log"

LINE_CHARACTERS = 64 * 1024
"""A longer line is no query: names have 255 bytes at most, which BIND writes as 1,020 characters."""

# Every repeated class ends at a character that it doesn't contain, or is matched once per line: time stays
# linear in the line's length. `[!-~]` is ASCII without white space, all that dns_name_format() writes.
_LINE = re.compile(
    rf"(?: (?P<time> {BIND_TIME} ) \  )?"  # print-time
    r"""
    (?: (?: queries | responses ) :\  )?  # print-category
    (?: [a-z]+ (?: \ -?\d+ )? :\  )?  # print-severity
    client\  (?: @0x[0-9a-fA-F]+\  )?
    (?P<client_ip> [0-9a-fA-F:.]+ (?: %[^\s#]+ )? ) \# (?P<client_port> \d{1,5} )
    (?: /key\  (?P<key> [!-~]+? ) )?
    (?: \ \( [!-~]+ \) )?
    (?: :\ view\  (?P<view> .+? ) )?
    :\  (?P<kind> query | response ) :\  (?P<query_domain> [!-~]+ )
    \  (?P<query_class> [!-~]+ ) \  (?P<query_type> [!-~]+ )
    (?: \  (?P<rcode> [A-Z0-9]{1,20} ) (?: \  \d{1,5} ){3} )?  # of a response, and how many records its parts have
    \  (?P<flags> [+-][!-~]* ) \  \( (?P<server_ip> [0-9a-fA-F:.]+ (?: %[^\s)#]+ )? ) (?: \# \d{1,5} )? \)
    (?: \ .* )?  # [ECS …], and what later versions may add
    """,
    re.ASCII | re.VERBOSE,
)

_DOT = re.compile(r"\\.|\.", re.DOTALL)


class Query(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One query that `named` was asked, or its answer to one.

    timestamp: RFC 3339, UTC, milliseconds, with `Z`; None if the line has no time (`print-time no`).
    query_domain: as BIND writes it: without the final dot (the root is "."), letters as they were asked, odd
    bytes escaped (`\\.`, `\\032`). flags: BIND's own, such as `+E(0)K`. view: None for the default view. key:
    the name of the TSIG or SIG(0) key that signed the query. rcode: of an answer; None of a query.
    """

    timestamp: str | None
    client_ip: str
    client_port: int
    query_domain: str
    query_class: str
    query_type: str
    flags: str
    server_ip: str
    view: str | None = None
    key: str | None = None
    rcode: str | None = None


def parse_query(line: str, tz: tzinfo | None, now: datetime | None = None) -> Query | None:
    """The query that a line tells of, or None if it tells of none. Raises nothing, whatever the line.

    A syslog prefix may stand before it; BIND's own time counts if there are two.

    tz: the zone that `named` runs in, for the times that name none; None means this machine's own. In the
    hour that a clock change repeats, such a time is taken for the first of its two: only `print-time
    iso8601-utc` says which. now: with a zone, for syslog's times without a year; see `syslog_prefix.moment`.
    """
    if len(line) > LINE_CHARACTERS:
        return None
    line = line.rstrip("\r\n")
    match, prefix = _LINE.fullmatch(line), None
    if match is None:
        if (parts := split_syslog(line)) is None or (match := _LINE.fullmatch(parts[1])) is None:
            return None
        prefix = parts[0]
    fields = match.groupdict()
    port = int(fields["client_port"])
    if port > 65535 or (fields["kind"] == "response") != (fields["rcode"] is not None):
        return None
    timestamp = None
    if fields["time"] is not None:
        timestamp = format_time(parse_time(fields["time"], tz))
        if timestamp is None:
            return None
    elif prefix is not None and has_time(prefix):
        timestamp = format_time(parse_moment(prefix, tz, now))
        if timestamp is None and now is not None:
            return None
    return Query(
        timestamp=timestamp,
        client_ip=fields["client_ip"],
        client_port=port,
        query_domain=fields["query_domain"],
        query_class=fields["query_class"],
        query_type=fields["query_type"],
        flags=fields["flags"],
        server_ip=fields["server_ip"],
        view=fields["view"],
        key=fields["key"],
        rcode=fields["rcode"],
    )


def normalize_zones(zones: Iterable[str]) -> frozenset[str]:
    """Puts zone names that an operator wrote into the spelling that `find_zone` looks for: small, no final dot."""
    return frozenset(zone.strip().lower().removesuffix(".") or "." for zone in zones if zone.strip())


def find_zone(name: str, zones: frozenset[str]) -> str | None:
    """The longest of the zones (from `normalize_zones`) that covers the name. An escaped dot parts no labels."""
    if not zones:
        return None
    name = name.lower()
    if name in zones:
        return name
    for dot in _DOT.finditer(name):
        if dot[0] == "." and name[dot.end() :] in zones:
            return name[dot.end() :]
    return "." if "." in zones else None


def make_payload(query: Query, zones: frozenset[str]) -> dict[str, str | int]:
    """The data of a `dns_query_log` event. What is not known is left out: `view`, `zone`, `rcode`, `tsig_key`."""
    data: dict[str, str | int] = {
        "client_ip": query.client_ip,
        "client_port": query.client_port,
        "query_domain": query.query_domain,
        "query_type": query.query_type,
        "query_class": query.query_class,
        "flags": query.flags,
        "protocol": "TCP" if "T" in query.flags else "UDP",
        "server_ip": query.server_ip,
    }
    known = {
        "view": query.view,
        "zone": find_zone(query.query_domain, zones),
        "rcode": query.rcode,
        "tsig_key": query.key,
    }
    return data | {name: value for name, value in known.items() if value is not None}
