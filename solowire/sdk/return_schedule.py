"""The schedule by which a client comes back: whether it does, and after how long.

Pure: times are arguments, in seconds that never go back; only the jitter is drawn here. What it keeps true: coming back
takes full jitter between the server's `reconnect.min_ms` and a ceiling that doubles up to `max_ms`, and begins anew
only after a connection that was steady. A `reconnect` message is obeyed without growth, but for one that follows on
another before there was a steady connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S, Backoff
from solowire.protocol.messages import Welcome
from solowire.sdk.connection_attempt import ConnectionLost
from solowire.sdk.retry_policy import FaultKind, RetryDecision, decide_retry, wait_at_least

MISSED_HEARTBEATS = 2.5
"""A server that has said nothing for this many of its heartbeats is dead."""


class ReturnSchedule:
    """Of one client. reconnect: whether it comes back at all. steady_after: seconds after which a connection is steady.

    is_renewable: whether its token is. reconnect_ms: the least and the most, until a server says others.
    """

    def __init__(
        self, *, reconnect: bool, steady_after: float, is_renewable: bool, reconnect_ms: tuple[float, float]
    ) -> None:
        self.steady_after = steady_after
        self.backoff = make_backoff(*reconnect_ms)
        self._reconnect = reconnect
        self._is_renewable = is_renewable
        self._reconnect_ms = reconnect_ms
        self._heartbeat_s: float | None = None  # of the last connection; None: there was none
        self._live_since: float | None = None
        self._lost_at: float | None = None
        self._failing_since: float | None = None  # the last success; None: nothing has failed since
        self._asked_away = 0  # `reconnect` messages in a row, without a steady connection between them

    def begin(self, now: float) -> None:
        """Nothing has been tried yet."""
        self._failing_since = now

    def note_connected(self, welcome: Welcome, now: float) -> None:
        """There is a connection."""
        low, high = welcome.reconnect.min_ms, welcome.reconnect.max_ms
        if (low, high) != self._reconnect_ms and 0 < low <= high <= MAX_RETRY_AFTER_S * 1000:
            self._reconnect_ms = (low, high)
            attempts = self.backoff.attempts
            self.backoff = make_backoff(low, high)
            self.backoff.attempts = attempts
        self._heartbeat_s = welcome.heartbeat_s
        self._live_since = now
        self._failing_since = None

    def find_wait(self, left: ConnectionLost, now: float) -> float | None:
        """Seconds until the next attempt, as a connection, or an attempt, has ended now; None: there is none."""
        lived = 0.0
        if self._live_since is not None:
            lived, self._live_since = now - self._live_since, None
            self._lost_at = self._failing_since = now
        fault = left.fault
        if not self._reconnect:
            return None
        is_steady = lived > 0 and lived >= self.steady_after
        if is_steady:
            self.backoff.reset()
            self._asked_away = 0
        if left.is_requested:
            self._asked_away += 1
            spread = random.uniform(0, max(self._reconnect_ms[0] / 1000, fault.after / 10))  # noqa: S311
            if self._asked_away == 1:
                return fault.after + spread
            return max(fault.after + spread, self.backoff.next_delay(at_least=fault.after))
        trying = 0.0 if self._failing_since is None else now - self._failing_since
        action = decide_retry(
            fault, succeeded=self._heartbeat_s is not None, renewable=self._is_renewable, trying_s=trying
        )
        if action is RetryDecision.stop and not (fault.kind is FaultKind.taken and self._may_be_our_own(now)):
            return None
        at_least = fault.after if is_steady else wait_at_least(fault)  # a token that lived is followed by a good one
        return self.backoff.next_delay(at_least=at_least)

    def _may_be_our_own(self, now: float) -> bool:
        """Whether the user's other connection, which is in the way, may be our last one, not yet seen as dead."""
        if self._lost_at is None or self._heartbeat_s is None:
            return False
        return now - self._lost_at < 2 * MISSED_HEARTBEATS * self._heartbeat_s


def make_backoff(low_ms: float, high_ms: float, chance: Callable[[], float] = random.random) -> Backoff:
    """How a client comes back that was told to wait between these two."""
    low, high = low_ms / 1000, high_ms / 1000
    return Backoff(min(2 * low, high), high, floor=low, random=chance)
