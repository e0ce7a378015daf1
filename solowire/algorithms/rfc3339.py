"""Times as RFC 3339 has them: in UTC, with `Z`, cut to the millisecond or the second."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

_Unit = Literal["milliseconds", "seconds"]


def format_rfc3339(moment: datetime, unit: _Unit = "milliseconds") -> str:
    """`moment`, which has an offset. Raises OverflowError if it is no year in UTC."""
    return moment.astimezone(UTC).isoformat(timespec=unit).replace("+00:00", "Z")


def format_unix_time(unix: float, unit: _Unit = "milliseconds") -> str:
    """A time in unix seconds. Raises OverflowError or ValueError if it is no year."""
    return format_rfc3339(datetime.fromtimestamp(unix, UTC), unit)
