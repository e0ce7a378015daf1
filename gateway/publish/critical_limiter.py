"""The rate of critical events of each publisher: what is more than that is only urgent.

Critical events are exempt from what keeps a flood small: telemetry is not summed up, a state is not conflated, and a
frame is made at once. What it keeps true: one publisher has that exemption for so many events a second and no more. An
event beyond is taken as `high`, in the log as well, so that whoever gets it, live, late or in history, gets the same.
Whose that are is told in the answer, in the log, and counted.
"""

from __future__ import annotations

import msgspec

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.gateway.publish.publish_limiter import MAX_PUBLISHERS
from solowire.model.events import Event, Priority
from solowire.runtime.settings.publish_settings import PublishSettings


class CriticalLimiter:
    """Limits the critical events of each publisher. demoted_count: events that were taken as high."""

    def __init__(self, settings: PublishSettings) -> None:
        self.demoted_count = 0
        self._buckets = BucketTable(Rate(settings.critical_rate, settings.critical_burst), MAX_PUBLISHERS)

    def demote_excess(self, user: str, events: list[Event], now: float) -> int:
        """Makes high what is critical in `events` beyond the publisher's rate, the last first; how many those are."""
        critical = [place for place, event in enumerate(events) if event.priority is Priority.critical]
        if not critical:
            return 0
        kept = min(len(critical), int(self._buckets.tokens_left(user, now)))
        self._buckets.charge_tokens(user, now, kept)
        for place in critical[kept:]:
            events[place] = msgspec.structs.replace(events[place], priority=Priority.high)
        self.demoted_count += len(critical) - kept
        return len(critical) - kept
