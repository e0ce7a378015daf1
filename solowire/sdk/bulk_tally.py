"""The counts of a bulk operation, as its events tell them.

What it keeps true: `processed` is what succeeded and what failed. Errors are bounded: the first MAX_ERRORS of them,
each cut at MAX_ERROR_CHARS, MAX_ERRORS_BYTES of JSON in all, so that the event that tells them stays one that a gateway
takes; what is left out is counted.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from solowire.sdk.arguments import check_count

MAX_ERRORS = 100
MAX_ERROR_CHARS = 500
MAX_ERRORS_BYTES = 16 * 1024
MAX_REASON_CHARS = 1000


class BulkTally:
    """Counts the items of one operation, from any thread. total: items to do, None if that is not known."""

    def __init__(self, total: int | None = None) -> None:
        self._lock = threading.RLock()
        self._total = total
        self._succeeded_count = 0
        self._failed_count = 0
        self._errors: list[str] = []
        self._errors_bytes = 0
        self._omitted_count = 0

    def add_succeeded(self, count: int = 1) -> None:
        """Items that are done. Raises TypeError, ValueError."""
        check_count("count", count, least=0)
        with self._lock:
            self._succeeded_count += count

    def add_failed(self, error: str | BaseException | None = None, count: int = 1) -> None:
        """Items that failed, for one reason. Raises TypeError, ValueError."""
        check_count("count", count, least=0)
        if error is not None and not isinstance(error, (str, BaseException)):
            raise TypeError(f"error must be a str or an exception, not a {type(error).__name__}")
        with self._lock:
            self._failed_count += count
            if error is not None:
                self._keep_error(error)

    def describe_counts(self) -> dict[str, Any]:
        """The payload's fields that say how many."""
        with self._lock:
            counts = {
                "processed": self._succeeded_count + self._failed_count,
                "succeeded": self._succeeded_count,
                "failed": self._failed_count,
            }
        return counts if self._total is None else {"total": self._total, **counts}

    def describe_progress(self, elapsed_s: float) -> dict[str, Any]:
        """The counts, how many percent that is, and the seconds still to go, if it goes on as it did."""
        counts = self.describe_counts()
        total, processed = self._total, counts["processed"]
        if total is None:
            return counts
        counts["percent"] = round(min(100.0, 100.0 * processed / total), 1) if total else 100.0
        if processed:
            counts["eta_s"] = round(max(0, total - processed) * max(0.0, elapsed_s) / processed, 1)
        return counts

    def describe_errors(self) -> dict[str, Any]:
        """The payload's fields that say what failed; none if nothing was told."""
        with self._lock:
            described: dict[str, Any] = {"errors": list(self._errors)} if self._errors else {}
            if self._omitted_count:
                described["errors_omitted"] = self._omitted_count
            return described

    def _keep_error(self, error: str | BaseException) -> None:
        text = cut_text(error if isinstance(error, str) else describe_error(error), MAX_ERROR_CHARS)
        size = len(msgspec.json.encode(text))
        if len(self._errors) >= MAX_ERRORS or self._errors_bytes + size > MAX_ERRORS_BYTES:
            self._omitted_count += 1
            return
        self._errors.append(text)
        self._errors_bytes += size


def describe_error(error: BaseException) -> str:
    """An exception in words that are never empty: its kind, and what it says."""
    try:
        message = str(error)
    except Exception:  # of the user's own class
        message = ""
    kind = type(error).__name__
    return cut_text(f"{kind}: {message}" if message else kind, MAX_REASON_CHARS)


def cut_text(text: str, length: int) -> str:
    """At most `length` characters of it, all of which UTF-8 can say."""
    whole = text if len(text) <= length else text[: length - 1] + "…"
    return whole.encode("utf-8", "replace").decode()
