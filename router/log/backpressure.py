"""Backpressure on publishers when a shard or the journal can't follow: later answers, then rejections.

A shard's *lag* is the age of the oldest offset that is its business and that it has not acked, sent or not: so it tells
of a shard without credit, too. It is looked at as of the shard's last word, since a shard that is silent is for the
membership to judge: one that has died was level when it was last heard, and slows nobody. The journal's lag is how
long its last commit took.

    lag            what happens
    < lag_soft_s   nothing
    in between     answers leave later, by 0 … longest delay
    ≥ lag_hard_s   and new requests are refused; what is in the log already is answered all the same

Of the publishers those feel it who have sent most lately (`solowire.router.log.publisher_load`). The others, who send
less than half of all, are answered at once, and refused only at REFUSE_ALL times `lag_hard_s`: then it is not for what
is sent that somebody can't follow.

What it keeps true: a shard that is reading on from long ago doesn't slow publishers for GRACE_SECONDS after its hello,
and has nobody refused until it has been level (below `lag_soft_s`) once. So a shard that joins never stops the
publishers, and one that can't catch up by itself is given the time to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from solowire.backplane.messages import DEAD_AFTER_SECONDS
from solowire.runtime.settings.publish_settings import PublishSettings

GRACE_SECONDS = 30.0
REFUSE_ALL = 4.0
RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 1.0, 10.0
MARK_SECONDS = 0.05
SILENT_SECONDS = DEAD_AFTER_SECONDS + 0.6  # with the tick that finds it out


LONGEST_DELAY_SECONDS = 1.0


def longest_delay_s(settings: PublishSettings) -> float:
    """What an answer is held back by just below `lag_hard_s`: it must reach a gateway that still waits for it."""
    return min(LONGEST_DELAY_SECONDS, settings.timeout_s / 4)


class ShardLag(NamedTuple):
    """A live shard. lag: seconds. is_caught_up: it has been since its first hello. age_s: seconds from that."""

    lag: float
    is_caught_up: bool
    age_s: float


class BackpressureState(NamedTuple):
    """How much publishers are slowed now.

    delay: seconds that an answer waits after its commit. retry_after: seconds, if new requests are refused.

    is_refusing_all: not only those of publishers that send much.
    """

    delay: float = 0.0
    retry_after: float | None = None
    is_refusing_all: bool = False


def evaluate_backpressure(lags: Iterable[ShardLag], commit: float, settings: PublishSettings) -> BackpressureState:
    """What publishers are to feel. commit: seconds that the last one took."""
    worst, refusing = commit, commit
    for follower in lags:
        if follower.is_caught_up:
            refusing = max(refusing, follower.lag)
        if follower.is_caught_up or follower.age_s > GRACE_SECONDS:
            worst = max(worst, follower.lag)
    share = (worst - settings.lag_soft_s) / (settings.lag_hard_s - settings.lag_soft_s)
    delay = longest_delay_s(settings) * min(1.0, max(0.0, share))
    if refusing < settings.lag_hard_s:
        return BackpressureState(delay)
    retry_after = min(RETRY_MAX_SECONDS, RETRY_MIN_SECONDS + refusing - settings.lag_hard_s)
    return BackpressureState(delay, retry_after, refusing >= REFUSE_ALL * settings.lag_hard_s)


class OffsetTimeIndex:
    """When offsets were kept, as exact as MARK_SECONDS. Times: monotonic.

    hard: seconds as far back as which it is known at the time of a shard's last word, SILENT_SECONDS ago at most.
    """

    def __init__(self, hard: float) -> None:
        self._entries: deque[tuple[int, float]] = deque(maxlen=ceil((hard + SILENT_SECONDS) / MARK_SECONDS) + 2)

    def record_offset(self, first: int, now: float) -> None:
        """Offsets from `first` on are in the log now."""
        if not self._entries or now - self._entries[-1][1] >= MARK_SECONDS:
            self._entries.append((first, now))

    def find_age(self, offset: int, at: float) -> float:
        """How long `offset` had been in the log at the time `at`; of what is older than all marks, at least so long."""
        found = at
        for first, kept_at in reversed(self._entries):
            found = kept_at
            if first <= offset:
                break
        return max(0.0, at - found)
