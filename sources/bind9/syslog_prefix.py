"""The prefix that a syslog daemon puts before a message of `named`, and its time.

Pure: text in, values out. The forms are those of RFC 3164 and RFC 5424, as they stand in files: with and without the
priority, with the traditional time or an ISO one (rsyslog's file format, syslog-ng), with the facility and severity of
BusyBox, and without a host name, as containers write it; all `short…` ones of `journalctl -o`; those of a container's
log (CRI, `docker logs -t`); and a mere host name before BIND's own time. CRI parts lines of 16 KB and more, which none
of named's is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

_MONTH_NAMES = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
MONTHS = {name: f"{number:02}" for number, name in enumerate(_MONTH_NAMES, start=1)}

AHEAD = timedelta(hours=14)
"""How far in the future a time without a year may seem: clocks and zones of two machines differ, by UTC+14 at most."""

_LEAP_YEARS = 8  # between two of them, at most: around 1900 and 2100

_OWN_TIME = r"(?= \d\d-[A-Z][a-z]{2}-\d{4}\  | \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d )"
"""BIND's, which follows: it is no part of the prefix."""

_PROGRAM = r"""
    (?: [!-~]{1,255} \  )?  # the host
    (?: [a-z]{2,8}[0-7]? \. (?: emerg | alert | crit | err | error | warn | warning | notice | info | debug ) \  )?
    [!-9;-Z\\^-~]{1,128}+ (?: \[ [!-Z\\^-~]{0,64}+ \] )?+ : \ *+
"""

# Possessive repetitions, and classes that don't contain what follows them: nothing is tried twice.
_PREFIX = re.compile(
    rf"""
    (?: <\d{{1,3}}> )?+ \d{{1,2}} \  (?: - | (?P<time5424> [0-9][0-9T:.,Z+-]{{18,40}} ) ) \  # RFC 5424
        [!-~]++ \  [!-~]++ \  [!-~]++ \  [!-~]++ [ ]
        (?: - | (?: \[ (?: [^\]"\\] | \\. | "(?: [^"\\] | \\. )*+" )*+ \] )++ )
        \ ?+ \ufeff?+
    | (?: <\d{{1,3}}> )?+
      (?: (?P<month> [A-Z][a-z]{{2}} ) \ {{1,2}} (?P<day> \d{{1,2}} ) \  (?: (?P<year> \d{{4}} ) \  )?
          (?P<clock> \d\d:\d\d:\d\d (?: [.,]\d{{1,9}} )?+ )
        | (?P<iso> \d{{4}}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d (?: [.,]\d{{1,9}} )?+ (?: Z | [+-]\d\d:?\d\d )?+ ) ) [ ]
      (?: std(?: out | err )\ F\  | {_OWN_TIME} | {_PROGRAM} )
    | <\d{{1,3}}> [!-9;-Z\\^-~]{{1,128}}+ (?: \[ [!-Z\\^-~]{{0,64}}+ \] )?+ : \ *+  # sent to /dev/log without a time
    | (?: [A-Z][a-z]{{2}}\  (?P<date> \d{{4}}-\d\d-\d\d ) \  (?P<hour> \d\d:\d\d:\d\d ) \   # journalctl -o short-full
          (?: (?P<offset> [+-]\d\d(?:\d\d)? ) | (?P<zone> [A-Z]{{2,5}} ) )
        | (?P<unix> \d{{9,10}}\.\d{{6}} )  # short-unix
        # short-monotonic, short-delta
        | \[ \ {{0,12}}+ \d{{1,12}}\.\d{{6}} (?: \ < \ {{0,12}}+ \d{{1,12}}\.\d{{6}} \ > )?+ \] )
      [ ] {_PROGRAM}
    | [!-~]{{1,255}}+ \  {_OWN_TIME}
    """,
    re.ASCII | re.VERBOSE,
)

_FRACTION = re.compile(r"^[.,]\d*")


def split_syslog(line: str) -> tuple[re.Match[str], str] | None:
    """The prefix and the message after it; None if the line doesn't begin with one."""
    match = _PREFIX.match(line)
    return None if match is None else (match, line[match.end() :])


def has_time(prefix: re.Match[str]) -> bool:
    """Whether the prefix tells a time at all."""
    return any(prefix[group] is not None for group in ("time5424", "iso", "clock", "date", "unix"))


def parse_moment(prefix: re.Match[str], tz: tzinfo | None, now: datetime | None) -> datetime | None:
    """The time that a prefix tells, in UTC; None if it tells none that exists.

    tz: the zone of times that name none; None means this machine's own. now: with a zone; a time without a year is of
    the latest one in which it is not in the future. Without `now` such a time can't be told.
    """
    if (iso := prefix["time5424"] or prefix["iso"]) is not None:
        return to_utc(iso, tz)
    if prefix["unix"] is not None:
        return datetime.fromtimestamp(float(prefix["unix"]), UTC)
    if prefix["date"] is not None:  # a zone's short name alone, but for these, says nothing: there are several of each
        offset = prefix["offset"] or ("Z" if prefix["zone"] in ("UTC", "GMT") else "")
        return to_utc(f"{prefix['date']}T{prefix['hour']}{offset}", tz)
    if prefix["clock"] is None:
        return None
    month, day, clock = MONTHS.get(prefix["month"], "00"), int(prefix["day"]), prefix["clock"]
    if prefix["year"] is not None:
        return to_utc(f"{prefix['year']}-{month}-{day:02}T{clock}", tz)
    if now is None:
        return None
    latest = now + AHEAD
    for year in range(latest.year + 1, latest.year - _LEAP_YEARS - 1, -1):  # + 1: it may be the new year in `tz` alone
        found = to_utc(f"{year:04}-{month}-{day:02}T{clock}", tz)
        if found is not None and found <= latest:
            return found
    return None


def to_utc(time: str, tz: tzinfo | None) -> datetime | None:
    """An ISO time in UTC; None if there is no such time. A leap second is its minute's last millisecond."""
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        if time[16:19] != ":60":
            return None
        return to_utc(f"{time[:16]}:59.999{_FRACTION.sub('', time[19:])}", tz)
    try:
        if found.tzinfo is None and tz is not None:
            found = found.replace(tzinfo=tz)
        return found.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
