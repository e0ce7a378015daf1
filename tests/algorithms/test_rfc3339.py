"""Times as RFC 3339 has them."""

from __future__ import annotations

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.rfc3339 import format_rfc3339, format_unix_time


@given(st.datetimes(timezones=st.timezones()))
def test_every_time_that_is_one_in_utc_is_written_so(moment: datetime) -> None:
    """Times keep their moment, to the millisecond, in UTC."""
    try:
        written = format_rfc3339(moment)
    except OverflowError:
        assert moment.year in (1, 9999)
        return
    assert abs((datetime.fromisoformat(written) - moment).total_seconds()) < 0.001


def test_a_time_is_cut_and_not_rounded() -> None:
    """So no time is later than what it says."""
    assert format_unix_time(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"
    assert format_unix_time(1_700_000_000.9996, "seconds") == "2023-11-14T22:13:20Z"
