"""The report of a zone's steps to the gateway, and to the other parts of the source that want to know of changes.

What it keeps true: a step's changes come before its summary, in canonical order, and steps in the order in which they
are reported. Nothing is dropped: where there is no room, it waits. Memory is bounded by what is read at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.zones.change_events import (
    BULK_CHANGES,
    OPERATION,
    Page,
    make_change_data,
    make_pages,
    make_summary,
    make_zone_data,
)
from solowire.sources.bind9.zones.observed_change import ChangeObserver, ObservedChange
from solowire.sources.bind9.zones.update_authors import UpdateAuthor, UpdateAuthors
from solowire.sources.bind9.zones.zone_change import ChangeTally, RRsetChange, list_added
from solowire.sources.bind9.zones.zone_identity import StepIdentity
from solowire.sources.bind9.zones.zone_record import (
    ZoneRecord,
    decode_owner,
    format_record,
    format_type,
    measure_serial_distance,
)

PROGRESS_S = 0.5

ChangeReader = Callable[[], AsyncIterator[Sequence[RRsetChange]]]
"""Reads a step's changes from its beginning; called more than once."""


class ZoneStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step to be reported. read_changes: all of them, also those of types that are left out."""

    identity: StepIdentity
    tally: ChangeTally
    soa_before: ZoneRecord | None
    soa: ZoneRecord
    is_whole: bool
    read_changes: ChangeReader


class StepReporter:
    """Publishes steps. left_out: names of record types that are only counted."""

    def __init__(
        self,
        outlet: EventOutlet,
        status: PartStatus,
        *,
        authors: UpdateAuthors,
        observers: Sequence[ChangeObserver],
        left_out: frozenset[str],
        page_bytes: int,
    ) -> None:
        self.left_out = left_out
        self._outlet = outlet
        self._status = status
        self._authors = authors
        self._observers = observers
        self._page_bytes = page_bytes

    async def report_step(self, step: ZoneStep, *, until: float) -> None:
        """Publishes one step. until: how long its author may be waited for, of the loop's clock."""
        author = await self._find_author(step, until)
        operation_id = None
        if step.tally.total > BULK_CHANGES:
            operation_id = step.identity.make_step_id("bulk")
            await self._report_bulk(step, operation_id, step.tally.total, self._read_told(step), author)
        else:
            async for changes in self._read_told(step)():
                for change in changes:
                    await self._report_change(step, change, author)
        summary = make_summary(
            step.identity,
            step.tally,
            step.soa_before,
            step.soa,
            author,
            transfer="axfr" if step.is_whole else "ixfr",
            operation_id=operation_id,
        )
        await self.publish_event("zone_updated", summary, step.identity.make_step_id("zone"))
        self._status.read_count += 1

    async def pass_over_step(self, step: ZoneStep, *, until: float) -> None:
        """Tells the other parts alone of a step that the log has already. until: as of `report_step`."""
        author = await self._find_author(step, until)
        async for changes in self._read_told(step)():
            for change in changes:
                await self._tell_observers(step.identity, change, step.identity.make_change_id(change), author)
        self._status.read_count += 1

    async def publish_event(self, type: str, data: dict[str, object], id: str) -> None:
        """Publishes an event of a zone, or of its records, and counts it."""
        await self._outlet.publish(type, data, id=id)
        self._status.published_count += 1

    async def _report_change(self, step: ZoneStep, change: RRsetChange, author: UpdateAuthor | None) -> None:
        id = step.identity.make_change_id(change)
        data = make_change_data(step.identity, change, author, self._page_bytes)
        if data is not None:
            await self.publish_event(f"record_{change.action}", data, id)
            await self._tell_observers(step.identity, change, id, author)
            return

        async def read_one() -> AsyncIterator[Sequence[RRsetChange]]:
            yield [change]

        await self._report_bulk(step, f"bulk-{id}", 1, read_one, author)

    async def _report_bulk(
        self, step: ZoneStep, operation_id: str, total: int, read_changes: ChangeReader, author: UpdateAuthor | None
    ) -> None:
        clock = asyncio.get_running_loop().time
        began_at = progress_at = clock()
        zone = step.identity.zone.zone
        data = {"operation_id": operation_id, "operation": OPERATION, "zone": zone, "total": total}
        pages = 0
        async for _ in self._read_pages(read_changes):
            pages += 1
        await self.publish_event("bulk_started", data, f"{operation_id}-started")
        number = processed = 0
        async for page in self._read_pages(read_changes):
            number += 1
            processed += sum(item.get("part") == item.get("parts") for item in page)
            paged = {"operation_id": operation_id, "page": number, "pages": pages, "changes": page}
            await self.publish_event(
                "record_changes", make_zone_data(step.identity, author) | paged, f"{operation_id}-{number}"
            )
            if clock() >= progress_at + PROGRESS_S:
                progress_at = clock()
                percent = round(100 * processed / total, 1)
                progress = data | {"processed": processed, "percent": percent}
                await self.publish_event("bulk_progress", progress, f"{operation_id}-progress-{number}")
        async for changes in read_changes():
            for change in changes:
                await self._tell_observers(step.identity, change, step.identity.make_change_id(change), author)
        spent = round((clock() - began_at) * 1000, 1)
        done = data | {"processed": processed, "succeeded": processed, "failed": 0, "duration_ms": spent}
        await self.publish_event("bulk_completed", done, f"{operation_id}-completed")

    async def _read_pages(self, read_changes: ChangeReader) -> AsyncIterator[Page]:
        """The pages of all changes; those of one reading end with it, so that they are the same each time."""
        async for changes in read_changes():
            for page in make_pages(changes, self._page_bytes):
                yield page
                await asyncio.sleep(0)

    def _read_told(self, step: ZoneStep) -> ChangeReader:
        async def read_told() -> AsyncIterator[Sequence[RRsetChange]]:
            async for changes in step.read_changes():
                yield [change for change in changes if format_type(change.key.type) not in self.left_out]

        return read_told

    async def _find_author(self, step: ZoneStep, until: float) -> UpdateAuthor | None:
        """The step's author; of a whole zone only where it is one step, as several may have several authors."""
        identity = step.identity
        if step.is_whole and measure_serial_distance(identity.serial_before, identity.serial) != 1:
            return None
        async for changes in step.read_changes():
            added = {
                (decode_owner(key.owner), format_type(key.type)): data for key, data in list_added(changes).items()
            }
            return await self._authors.find_author(identity.zone.zone, identity.zone.view, added, until=until)
        return None

    async def _tell_observers(
        self, step: StepIdentity, change: RRsetChange, id: str, author: UpdateAuthor | None
    ) -> None:
        if not self._observers:
            return
        observed = ObservedChange(
            event_id=id,
            zone=step.zone.zone,
            view=step.zone.view,
            serial_before=step.serial_before,
            serial=step.serial,
            name=decode_owner(change.key.owner),
            type=format_type(change.key.type),
            before=[format_record(record) for record in change.before],
            after=[format_record(record) for record in change.after],
            author=author,
        )
        for observer in self._observers:
            await observer(observed)
