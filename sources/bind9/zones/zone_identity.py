"""The identity of a zone and of what happens to it: ids that every agent makes alike, wherever it watches the zone.

Pure. What it keeps true: an id follows from the zone, the view if the settings name one, the serial and what changed,
and from nothing of the server or the agent. So what a primary's agent and a secondary's tell is one event, and so is
what is told again after a kill. Where a zone begins again at serials that it had before (a rollback, or the zone was
removed and added), an `era` is part of the ids, until its serials are past the old ones, or for ERA_S: longer than a
gateway remembers ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from solowire.sources.bind9.zones.zone_change import RRsetChange
from solowire.sources.bind9.zones.zone_record import ZoneRecord, is_serial_before

ERA_S = 86_400.0


class ZoneName(NamedTuple):
    """A zone as it is watched. zone: as text, without the last dot, in lower case. view: None if none is named."""

    zone: str
    view: str | None = None

    def __str__(self) -> str:
        return self.zone if self.view is None else f"{self.zone} in view {self.view}"


class ZoneEra(msgspec.Struct, frozen=True):
    """The time after a zone began again. mark: of the ids. serial: the last one of before. began_at: unix seconds."""

    mark: str
    serial: int
    began_at: float


def begin_era(zone: ZoneName, known: ZoneEra | None, serial_before: int, serial: int, now: float) -> ZoneEra:
    """The era of a zone that went from `serial_before` back to `serial`. known: the one that was in force."""
    mark = make_id("era", zone, known.mark if known is not None else "", serial_before, serial)
    last = serial_before
    if known is not None and is_serial_before(last, known.serial):
        last = known.serial
    return ZoneEra(mark, last, now)


def find_era(era: ZoneEra | None, serial: int, now: float) -> ZoneEra | None:
    """The era in which a step to `serial` is; None if it is over or there is none."""
    if era is None or not 0 <= now - era.began_at < ERA_S or is_serial_before(era.serial, serial):
        return None
    return era


def make_id(kind: str, zone: ZoneName, *parts: str | int | bytes) -> str:
    """An id that follows from the parts and their order alone."""
    digest = blake2b(digest_size=16)
    for part in (zone.zone, zone.view or "", "IN", *parts):
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return f"{kind}-{digest.hexdigest()}"


def digest_rrset(records: Iterable[ZoneRecord]) -> bytes:
    """A digest of what an RRset holds; its records are in canonical order."""
    digest = blake2b(digest_size=16)
    for record in records:
        digest.update(b"%d:%d:" % (record.ttl, len(record.data)))
        digest.update(record.data)
    return digest.digest()


class StepIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a zone. era: the mark of its era, "" outside of one. is_rollback: it leads to an earlier serial."""

    zone: ZoneName
    serial_before: int
    serial: int
    era: str = ""
    is_rollback: bool = False

    def make_step_id(self, kind: str, *parts: str | int | bytes) -> str:
        """The id of something that the whole step is told by."""
        back = "back" if self.is_rollback else ""
        return make_id(kind, self.zone, self.era, back, self.serial_before, self.serial, *parts)

    def make_change_id(self, change: RRsetChange) -> str:
        """The id of one change.

        It says the serial to which the step led, and not the one from which: so a change that one agent saw in a
        single step, and another in a whole zone that skipped serials, is one event where both know its serial.
        """
        parts = (change.key.owner, change.key.type, digest_rrset(change.before), digest_rrset(change.after))
        before = self.serial_before if self.is_rollback else ""
        return make_id("record", self.zone, self.era, before, self.serial, *parts)
