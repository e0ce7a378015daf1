"""The counts of a bulk operation: right from any thread, and never more than an event can hold."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.payloads import BulkFailed, BulkProgress
from solowire.sdk.bulk_tally import MAX_ERRORS, MAX_ERRORS_BYTES, BulkTally, describe_error

MAX_EVENT_BYTES = 32 * 1024  # SOLOWIRE_PUBLISH__MAX_EVENT_BYTES


@given(
    st.none() | st.integers(0, 10**9),
    st.lists(st.tuples(st.booleans(), st.integers(0, 10**6))),
    st.floats(0, 10**6, allow_nan=False),
)
def test_whatever_is_counted_is_a_payload(total: int | None, steps: list[tuple[bool, int]], elapsed_s: float) -> None:
    """Progress adds up, and is what the event type takes, with more items than were announced, too."""
    tally = BulkTally(total)
    for is_good, count in steps:
        tally.add_succeeded(count) if is_good else tally.add_failed(count=count)
    told = tally.describe_progress(elapsed_s)
    assert told["processed"] == told["succeeded"] + told["failed"] == sum(count for _, count in steps)
    assert ("percent" in told) == (total is not None)
    msgspec.convert({"operation_id": "o", **told}, BulkProgress)


@given(st.lists(st.none() | st.text() | st.builds(ValueError, st.text()), max_size=200))
def test_errors_are_kept_in_order_and_bounded(errors: list[str | ValueError | None]) -> None:
    """Each error is told or counted as left out, and the event stays small enough for a gateway."""
    tally = BulkTally()
    for error in errors:
        tally.add_failed(error)
    told = tally.describe_errors()
    kept = told.get("errors", [])
    assert len(kept) + told.get("errors_omitted", 0) == sum(error is not None for error in errors)
    assert len(kept) <= MAX_ERRORS
    data = {"operation_id": "o", "error": "e", **told}
    msgspec.convert(data, BulkFailed)
    assert len(msgspec.json.encode(data)) < MAX_EVENT_BYTES


def test_the_longest_errors_fit_into_an_event() -> None:
    """Long errors of characters that take most room in JSON are cut and left out, and said to be."""
    tally = BulkTally()
    for _ in range(1000):
        tally.add_failed("\x00" * 1_000_000)
    told = tally.describe_errors()
    assert len(msgspec.json.encode(told["errors"])) < MAX_ERRORS_BYTES + 1024
    assert told["errors_omitted"] == 1000 - len(told["errors"])
    assert len(msgspec.json.encode({**told, "error": describe_error(ValueError("\x00" * 10**6))})) < MAX_EVENT_BYTES


def test_percent_and_time_left() -> None:
    """A quarter is done after 10 s: 25 %, and 30 s to go; nothing to do is done; an unknown total has neither."""
    tally = BulkTally(200)
    assert tally.describe_progress(0.0) == {"total": 200, "processed": 0, "succeeded": 0, "failed": 0, "percent": 0.0}
    tally.add_succeeded(40)
    tally.add_failed("no", 10)
    told = tally.describe_progress(10.0)
    assert (told["processed"], told["percent"], told["eta_s"]) == (50, 25.0, 30.0)
    assert BulkTally(0).describe_progress(1.0)["percent"] == 100.0
    assert BulkTally().describe_progress(1.0).keys() == {"processed", "succeeded", "failed"}


def test_threads_count_together() -> None:
    """No count is lost when several threads count at once."""
    tally = BulkTally()

    def count() -> None:
        for _ in range(2000):
            tally.add_succeeded()
            tally.add_failed("e", 2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.describe_counts() == {"processed": 24_000, "succeeded": 8000, "failed": 16_000}


@pytest.mark.parametrize(("error", "count"), [(None, -1), (None, True), (None, 1.5), (b"no", 1), ({"line": 1}, 1)])
def test_refuses_what_cannot_be_counted(error: Any, count: Any) -> None:
    """A count that is none, and an error that is no text, are refused and change nothing."""
    tally = BulkTally()
    with pytest.raises((TypeError, ValueError)):
        tally.add_failed(error, count)
    assert tally.describe_counts()["failed"] == 0


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("no"), "ValueError: no"), (KeyboardInterrupt(), "KeyboardInterrupt"), (_Mute(), "_Mute")],
)
def test_an_exception_always_has_words(error: BaseException, text: str) -> None:
    """`error` of bulk_failed may not be empty, whatever the exception says of itself."""
    assert describe_error(error) == text
