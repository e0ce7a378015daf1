"""The watch for drift: changes of records that came by no pipeline.

What it keeps true:

* Each such change is a `security_alert` at once, with the change as evidence, under an id that follows from the change.
* An author who makes many gets ALERTS alerts at most, and one more, when nothing has come for QUIET_S, that tells how
  many there were in all. AUTHORS are kept apart at most, and the longest silent one is ended for a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.event_time import format_moment
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.stop_wait import wait_for_stop
from solowire.sources.bind9.security.pipelines import Pipelines
from solowire.sources.bind9.zones.observed_change import ObservedChange
from solowire.sources.bind9.zones.update_authors import UpdateAuthor

ALERTS = 20
QUIET_S = 60.0
LOOK_S = 1.0
AUTHORS = 1_000
RECORDS = 10
"""Of one RRset that are shown, before and after each."""

EVENT_TYPE = "security_alert"
_RECORD_CHARACTERS = 500


class _Drift:
    def __init__(self, author: UpdateAuthor | None, zone: str, event_id: str) -> None:
        self.author = author
        self.zone = zone
        self.event_id = event_id
        self.count = 0
        self.first_at = self.last_at = time.time()
        self.touched_at = 0.0


class DriftPart:
    """Judges changes. `observe_change` is given to those who tell of them.

    allows_unknown: a change whose author nobody knows is none either.
    """

    name = "drift"

    def __init__(self, pipelines: Pipelines, outlet: EventOutlet, *, allows_unknown: bool) -> None:
        self._pipelines = pipelines
        self._outlet = outlet
        self._allows_unknown = allows_unknown
        self._drifts: OrderedDict[tuple[UpdateAuthor | None, str], _Drift] = OrderedDict()
        self._seen_count = self._alert_count = 0

    async def observe_change(self, change: ObservedChange) -> None:
        """Takes in one change; returns when its alert, if it is one, is on its way."""
        self._seen_count += 1
        if self._allows_unknown if change.author is None else self._pipelines.includes_author(change.author):
            return
        episode = self._find_drift(change)
        episode.count += 1
        episode.last_at = time.time()
        episode.touched_at = time.monotonic()
        if episode.count <= ALERTS:
            await self._publish(make_drift_payload(change), f"drift-{change.event_id}", "critical")
        while len(self._drifts) > AUTHORS:
            await self._end(self._drifts.popitem(last=False)[1])

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Ends what is over until `stop` is set. Raises PublishRefused."""
        status.set_running()
        while not stop.is_set():
            now = time.monotonic()
            for key in [key for key, one in self._drifts.items() if now - one.touched_at >= QUIET_S]:
                await self._end(self._drifts.pop(key))
            status.read_count, status.published_count = self._seen_count, self._alert_count
            await wait_for_stop(stop, LOOK_S)

    def _find_drift(self, change: ObservedChange) -> _Drift:
        key = (change.author, change.zone)
        episode = self._drifts.get(key)
        if episode is None:
            episode = self._drifts[key] = _Drift(change.author, change.zone, change.event_id)
        self._drifts.move_to_end(key)
        return episode

    async def _end(self, episode: _Drift) -> None:
        if episode.count <= ALERTS:
            return
        data = _name_author(episode.author) | {
            "severity": "info",
            "message": f"{episode.count} changes of {episode.zone} by {_describe_author(episode.author)} came by no "
            f"pipeline; {ALERTS} have an alert of their own",
            "threat_type": "drift",
            "category": "drift",
            "action": "ended",
            "zone": episode.zone,
            "count": episode.count,
            "first_seen": format_moment(episode.first_at),
            "last_seen": format_moment(episode.last_at),
        }
        await self._publish(data, f"drift-{episode.event_id}-ended", "normal")

    async def _publish(self, data: dict[str, Any], id: str, priority: str) -> None:
        await self._outlet.publish(EVENT_TYPE, data, id=id, priority=priority)
        self._alert_count += 1


def make_drift_payload(change: ObservedChange) -> dict[str, Any]:
    """The data of the alert of one change."""
    verb = "deleted" if not change.after else "updated" if change.before else "created"
    author = _describe_author(change.author)
    data = _name_author(change.author) | {
        "severity": "high",
        "message": f"{change.name} {change.type} of {change.zone} was {verb} by {author}, which is no pipeline",
        "threat_type": "drift",
        "category": "drift",
        "action": verb,
        "zone": change.zone,
        "view": change.view,
        "query_domain": change.name,
        "query_type": change.type,
        "count": 1,
        "details": {
            "name": change.name,
            "type": change.type,
            "before": _cut(change.before),
            "after": _cut(change.after),
            "serial_before": change.serial_before,
            "serial": change.serial,
            "change": change.event_id,
        },
    }
    if change.author is not None and change.author.tsig_key is not None:
        data["details"]["tsig_key"] = change.author.tsig_key
    return {name: value for name, value in data.items() if value is not None}


def _name_author(author: UpdateAuthor | None) -> dict[str, Any]:
    if author is None:
        return {}
    fields = {"client_ip": author.client, "actor": author.actor}
    return {name: value for name, value in fields.items() if value is not None}


def _describe_author(author: UpdateAuthor | None) -> str:
    """Says who, without what only some may see: address and key are fields of their own."""
    if author is None:
        return "somebody whom the update log does not name"
    return author.actor or ("the holder of a key" if author.tsig_key is not None else "a client without a key")


def _cut(records: Sequence[str]) -> list[str]:
    """Records as evidence, bounded."""
    cut = [record[:_RECORD_CHARACTERS] for record in records[:RECORDS]]
    return cut if len(records) <= RECORDS else [*cut, f"… and {len(records) - RECORDS} more"]
