"""The times that named's log channels print: `print-time local`, `iso8601`, `iso8601-utc` and `iso8601-tzinfo`.

Pure: text in, values out.
"""

from __future__ import annotations

from datetime import datetime, tzinfo

from solowire.sources.bind9.syslog_prefix import MONTHS, to_utc

BIND_TIME = r"""(?: \d\d-[A-Z][a-z]{2}-\d{4}\ \d\d:\d\d:\d\d\.\d{3}
    | \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} (?: Z | [+-]\d\d:?\d\d )? )"""
"""All forms, for a verbose regular expression in ASCII."""


def parse_time(time: str, tz: tzinfo | None) -> datetime | None:
    """A time of BIND's in UTC; None if there is no such time. tz: of times that name no zone; None: this machine's."""
    if time[2] == "-":  # `strptime` is too slow for each line
        time = f"{time[7:11]}-{MONTHS.get(time[3:6], '00')}-{time[:2]}T{time[12:]}"
    return to_utc(time, tz)


def format_time(utc: datetime | None) -> str | None:
    """RFC 3339, with milliseconds and `Z`."""
    return None if utc is None else utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
