"""A pace for a client's requests: no faster than the server allows, so that no request ends the connection.

What it keeps true: what was `rate_limited` is said again when the server said to, and those behind it wait their turn.
After MAX_REFUSALS in a minute, whatever for, all wait, as a server ends a connection at ten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.warning_pace import WarningPace
from solowire.sdk.connection_attempt import bound_seconds

MAX_REFUSALS = 8
"""So many refused within REFUSALS_S, and what is said next waits: at ten a server ends the connection."""

REFUSALS_S = 60.0

MIN_PAUSE_S, MAX_PAUSE_S = 0.01, 10.0
"""How long what was `rate_limited` waits at least, growing; and what that grows to."""

logger = logging.getLogger("solowire.client")


class RequestPacer:
    """The turns of one client's messages, on the loop's clock."""

    def __init__(self, warnings: WarningPace) -> None:
        self._warnings = warnings
        self._next_at = 0.0
        self._spacing = 0.0  # seconds between two messages, once the server has found us too fast
        self._refused_at: deque[float] = deque(maxlen=MAX_REFUSALS)

    def reset(self) -> None:
        """Another connection has begun, and the server counts anew."""
        self._spacing = 0.0
        self._refused_at.clear()

    @staticmethod
    def make_backoff() -> Backoff:
        """The waits of one message that is refused again and again; they grow even if the server's don't."""
        return Backoff(2 * MIN_PAUSE_S, MAX_PAUSE_S, floor=MIN_PAUSE_S)

    async def wait_for_turn(self) -> None:
        """Waits until the next message may be said."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_at)
        if len(self._refused_at) == MAX_REFUSALS:
            at = max(at, self._refused_at[0] + REFUSALS_S)
            if at - now > 1 and self._warnings.is_due("refusals", now):
                logger.warning(
                    "%d messages were refused within a minute: what is asked waits %.0f s", MAX_REFUSALS, at - now
                )
        self._next_at = at + self._spacing
        if at > now:
            await asyncio.sleep(at - now)

    def note_refusal(self) -> None:
        """The server has refused a message, for whatever reason."""
        self._refused_at.append(asyncio.get_running_loop().time())

    def slow_down(self, after: float, slower: Backoff) -> None:
        """The server wants to hear nothing for `after` seconds. Twice that between messages: pongs count, too.

        slower: the waits of the message that it refused.
        """
        after = bound_seconds(after)
        self._spacing = max(self._spacing, min(2 * after, MAX_PAUSE_S))
        wait = slower.next_delay(at_least=after)
        self._next_at = max(self._next_at, asyncio.get_running_loop().time() + wait)
