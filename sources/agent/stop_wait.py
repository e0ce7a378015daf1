"""The wait between two rounds of a part's work, which ends at once when the part is told to stop."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def wait_for_stop(stop: asyncio.Event, timeout_s: float) -> bool:
    """Waits until `stop` is set, for so many seconds at most. Returns whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):  # and not wait_for, which may swallow a cancellation in Python 3.11
            await stop.wait()
    return stop.is_set()
