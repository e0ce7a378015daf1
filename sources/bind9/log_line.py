"""One line of any of named's log channels: its time, category, severity and message, and the client it is of.

Pure: text in, values out. A channel may print each of the first three or not, and a syslog daemon may put its prefix
before them; the forms are those of BIND 9.11 to 9.20. A message is matched whole and from its first character on, so
that nothing a client can put into a name passes for another line: BIND escapes white space, parentheses and what isn't
ASCII in names.
"""

from __future__ import annotations

import re
from datetime import datetime, tzinfo

import msgspec

from solowire.sources.bind9.log_time import BIND_TIME, format_time, parse_time
from solowire.sources.bind9.syslog_prefix import has_time, parse_moment, split_syslog

LINE_CHARACTERS = 64 * 1024
"""A longer line is none of named's: its messages end at 4,096 characters."""

CATEGORIES = frozenset(
    {
        "client",
        "cname",
        "config",
        "database",
        "default",
        "delegation-only",
        "dispatch",
        "dnssec",
        "dnstap",
        "drop",
        "edns-disabled",
        "general",
        "lame-servers",
        "maintenance",
        "network",
        "notify",
        "nsid",
        "queries",
        "query-errors",
        "rate-limit",
        "resolver",
        "responses",
        "rpz",
        "rpz-passthru",
        "security",
        "serve-stale",
        "spill",
        "sslkeylog",
        "trust-anchor-telemetry",
        "unmatched",
        "update",
        "update-security",
        "xfer-in",
        "xfer-out",
        "zoneload",
    }
)
"""What `print-category` prints; another first word with a colon is the message's own."""

_HEAD = re.compile(
    rf"""
    (?: (?P<time> {BIND_TIME} ) \  )?  # print-time
    (?: (?! (?: critical | error | warning | notice | info ) : )
        (?P<category> [a-z][a-z-]{{2,30}} ) :\  )?
    (?: (?P<severity> critical | error | warning | notice | info | (?: debug | level ) \ -?\d{{1,9}} ) :\  )?
    """,
    re.ASCII | re.VERBOSE,
)

# Every repeated class ends at a character that it doesn't contain, or is matched once per line.
_CLIENT = re.compile(
    r"""
    client\  (?: @0x[0-9a-fA-F]+\  )?
    (?P<ip> [0-9a-fA-F:.]+ (?: %[^\s#]+ )? ) \# (?P<port> \d{1,5} )
    (?: /key\  (?P<key> [!-~]+? ) )?
    (?: \ \( (?P<name> [!-~]+ ) \) )?
    (?: :\ view\  (?P<view> .+? ) )?
    :\  (?P<message> (?: disabled\ rpz | rpz | zone\ transfer | bad\ zone | update | updating | signer | request | query
        ) .* )
    """,
    re.ASCII | re.VERBOSE | re.DOTALL,
)


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """One line. timestamp: RFC 3339, UTC, with `Z`; what the channel doesn't print is None."""

    message: str
    timestamp: str | None = None
    category: str | None = None
    severity: str | None = None


class ClientMessage(msgspec.Struct, frozen=True, gc=False):
    """What a message says of a client. key: of the TSIG or SIG(0) signature. view: None for the default view."""

    client_ip: str
    client_port: int
    message: str
    key: str | None = None
    view: str | None = None


def parse_log_line(text: str, tz: tzinfo | None, now: datetime | None = None) -> LogLine | None:
    """A line's parts; None if it is too long, or has a time that doesn't exist. Raises nothing, whatever the line.

    tz: the zone that `named` runs in, for times that name none; None: this machine's own. now: with a zone, for
    syslog's times without a year.
    """
    if len(text) > LINE_CHARACTERS:
        return None
    text = text.rstrip("\r\n")
    prefix = None
    head = _HEAD.match(text)
    if (head is None or head["time"] is None) and (parts := split_syslog(text)) is not None:
        prefix, text = parts
        head = _HEAD.match(text)
    if head is None:
        return None
    time, category, severity = head.group("time", "category", "severity")
    end = head.end()
    if category is not None and category not in CATEGORIES:  # it is the message's own first word
        category = severity = None
        end = head.start("category")
    timestamp = None
    if time is not None:
        if (timestamp := format_time(parse_time(time, tz))) is None:
            return None
    elif prefix is not None and has_time(prefix):
        timestamp = format_time(parse_moment(prefix, tz, now))
    return LogLine(text[end:], timestamp, category, severity)


def parse_client_message(message: str) -> ClientMessage | None:
    """The client of a message that is about one; None if it is about none, or of a kind that nobody asks for."""
    if not message.startswith("client ") or (match := _CLIENT.fullmatch(message)) is None:
        return None
    ip, port, key, view, rest = match.group("ip", "port", "key", "view", "message")
    if int(port) > 65535:
        return None
    return ClientMessage(ip, int(port), rest, key, view)
