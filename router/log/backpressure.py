"""Backpressure on publishers when a shard or the journal can't follow: later answers, then rejections.

A shard's *lag* is the age of the oldest offset that is its business and that it has not acked, sent or not: so it tells
of a shard without credit, too. It is looked at as of the shard's last word, since a shard that is silent is for the
membership to judge: one that has died was level when it was last heard, and slows nobody. The journal's lag is how
long its last commit took.

    lag         what happens
    < soft      nothing
    soft…hard   answers leave later, by 0 … longest delay
    ≥ hard      and new requests are refused; what is in the log already is answered all the same

Of the publishers those feel it who have sent most lately (`solowire.router.log.publisher_load`). The others, who send
less than half of all, are answered at once, and refused only at REFUSE_ALL times `hard`: then it is not for what is
sent that somebody can't follow.

What it keeps true: a shard that is reading on from long ago doesn't slow publishers for GRACE_SECONDS after its hello,
and has nobody refused until it has been level (below soft) once. So a shard that joins never stops the publishers, and
one that can't catch up by itself is given the time to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from solowire.backplane.messages import DEAD_AFTER_SECONDS

GRACE_SECONDS = 30.0
REFUSE_ALL = 4.0
RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 1.0, 10.0
MARK_SECONDS = 0.05
SILENT_SECONDS = DEAD_AFTER_SECONDS + 0.6  # with the tick that finds it out


class BackpressureThresholds(NamedTuple):
    """The lags at which publishers are slowed and rejected.

    soft, hard: seconds of lag. delay: seconds, what an answer is held back by just below `hard`.
    """

    soft: float = 1.0
    hard: float = 5.0
    delay: float = 1.0


DEFAULT_THRESHOLDS = BackpressureThresholds()


class ShardLag(NamedTuple):
    """A live shard. lag: seconds. level: whether it has been so since its first hello. since: seconds from that."""

    lag: float
    is_caught_up: bool
    age_s: float


class BackpressureState(NamedTuple):
    """How much publishers are slowed now.

    delay: seconds that an answer waits after its commit. retry_after: seconds, if new requests are refused.

    refuses_all: not only those of publishers that send much.
    """

    delay: float = 0.0
    retry_after: float | None = None
    is_refusing_all: bool = False


def evaluate_backpressure(
    lags: Iterable[ShardLag], commit: float, thresholds: BackpressureThresholds
) -> BackpressureState:
    """What publishers are to feel. commit: seconds that the last one took."""
    worst, refusing = commit, commit
    for follower in lags:
        if follower.is_caught_up:
            refusing = max(refusing, follower.lag)
        if follower.is_caught_up or follower.age_s > GRACE_SECONDS:
            worst = max(worst, follower.lag)
    share = (worst - thresholds.soft) / (thresholds.hard - thresholds.soft)
    delay = thresholds.delay * min(1.0, max(0.0, share))
    if refusing < thresholds.hard:
        return BackpressureState(delay)
    retry_after = min(RETRY_MAX_SECONDS, RETRY_MIN_SECONDS + refusing - thresholds.hard)
    return BackpressureState(delay, retry_after, refusing >= REFUSE_ALL * thresholds.hard)


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
