"""The steps of a zone that the log has already, whoever told them, so that two sources tell no change twice.

Sources that see the same step give it the same ids. One that was sent a whole zone in place of several steps, or that
comes back when another has told several as one, can't: it looks in the log whether the serials that it is about to tell
have been told.

What it keeps true: a step is left out only if the log has all of its serials, since the zone last went back or was
deleted: a summary stands behind its changes. Where the log can't be read, the step is told. It is held back for
WAIT_S and as much again at the most, and only where the log knows of another source of this zone; and while the
gateway doesn't answer, as the outlet's question says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextlib import aclosing
from typing import NamedTuple

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ClientError, SubscriptionDenied
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.bind9.zones.zone_identity import ZoneName
from solowire.sources.bind9.zones.zone_record import measure_serial_distance

WAIT_S = 3.0
"""For which the one who can tell single steps has a start."""
LOOK_S = 0.5
MAX_STEPS = 5_000
"""The newest steps of a zone that are looked at."""

logger = structlog.get_logger()


class ToldSpan(NamedTuple):
    """A step that stands in the log. server: whose source told it first."""

    serial_before: int
    serial: int
    server: str | None


def covers_span(spans: Iterable[ToldSpan], serial_before: int, serial: int) -> bool:
    """Whether the steps that were told lead over all serials from one to the other, without a gap."""
    end = measure_serial_distance(serial_before, serial)
    reached = 0
    distances = sorted(
        (
            measure_serial_distance(serial_before, span.serial_before),
            measure_serial_distance(serial_before, span.serial),
        )
        for span in spans
    )
    for begin, upto in distances:
        if begin > reached:
            return False
        reached = max(reached, upto)
        if reached >= end:
            return True
    return False


class ToldSteps:
    """Asks the gateway's log, through the outlet."""

    def __init__(self, outlet: EventOutlet) -> None:
        self._outlet = outlet
        self._trouble = WarningPace()

    async def is_told(self, zone: ZoneName, serial_before: int, serial: int, *, waits: bool) -> bool:
        """Whether the log has all steps from one serial to the other.

        waits: if another source watches the zone, give it the time to tell them.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + WAIT_S + random.uniform(0.0, WAIT_S)  # noqa: S311 - so that of two that wait, one is first
        while True:
            spans = await self.read_spans(zone)
            if covers_span(spans, serial_before, serial):
                return True
            has_others = any(span.server != self._outlet.server for span in spans)
            if not (waits and has_others) or clock() >= until:
                return False
            await asyncio.sleep(LOOK_S)

    async def read_spans(self, zone: ZoneName) -> list[ToldSpan]:
        """The newest steps of a zone since it last went back or was deleted; none where the log can't be read."""
        spans: list[ToldSpan] = []
        events = self._outlet.read_newest(["zone_updated", "zone_deleted"], {"zone": [zone.zone]}, MAX_STEPS)
        try:
            async with aclosing(events):
                async for type, data in events:
                    if (data.get("zone"), data.get("view")) != zone:  # a zone beneath it, or another view
                        continue
                    if type == "zone_deleted" or data.get("rollback"):
                        break
                    if isinstance(data.get("serial_before"), int) and isinstance(data.get("serial"), int):
                        spans.append(ToldSpan(data["serial_before"], data["serial"], data.get("server")))
        except ClientError as error:
            if self._trouble.is_due(str(error), asyncio.get_running_loop().time()):
                is_refused = isinstance(error, SubscriptionDenied) or getattr(error, "status", None) == 403
                way_out = "give each a token of the role `source`" if is_refused else "see the gateway"
                logger.info(
                    "zone_log_unreadable",
                    zone=str(zone),
                    reason=str(error),
                    hint=f"a change may be told twice if several sources watch this zone: {way_out}",
                )
            return []
        return spans
