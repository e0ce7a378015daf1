"""The following of one zone at a time: what the server has is compared with what is held, told, and held then.

What it keeps true: the held serial moves only when the gateway has all events of the steps up to it, of this source or
of another one. A zone that is asked for the first time is taken as it is, without events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import ParamSpec, TypeVar

import dns.name
import dns.tsig
import structlog

from solowire.errors import TransferError
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.bind9.zones.step_reporter import StepReporter, ZoneStep
from solowire.sources.bind9.zones.told_steps import ToldSpan, ToldSteps, covers_span
from solowire.sources.bind9.zones.transfer_reader import CurrentSerial, SerialStep, TransferItem, WholeZone, ZoneContent
from solowire.sources.bind9.zones.zone_change import HeldRRsets, RRsetChange, apply_step, list_keys, tally_changes
from solowire.sources.bind9.zones.zone_client import ZoneClient
from solowire.sources.bind9.zones.zone_identity import StepIdentity, ZoneEra, begin_era, find_era, make_id
from solowire.sources.bind9.zones.zone_record import (
    RRsetKey,
    ZoneRecord,
    is_serial_before,
    measure_serial_distance,
    parse_soa,
)
from solowire.sources.bind9.zones.zone_store import HeldZone, ZoneStore

AUTHOR_S = 0.3
"""How long the steps of one transfer may wait for the update log."""
BATCH_STEPS = 100
BATCH_RECORDS = 50_000
"""After so many, what was told is written down; a kill costs the telling of so much again."""
CHANGES_AT_ONCE = 2_000
_ROWS_AT_ONCE = 5_000

logger = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """The thread in which the store is used, so that a slow disk stops nothing else."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="zones")

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls one method of the store, after those that were called before."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Waits for what is under way."""
        self._executor.shutdown()


class ZoneFollower:
    """Follows zones, each of them once at a time. max_records: of one zone."""

    def __init__(
        self,
        client: ZoneClient,
        store: ZoneStore,
        thread: StoreThread,
        reporter: StepReporter,
        outlet: EventOutlet,
        *,
        max_records: int,
    ) -> None:
        self._client = client
        self._store = store
        self._call = thread.call
        self._reporter = reporter
        self._outlet = outlet
        self._told_steps = ToldSteps(outlet)
        self._max_records = max_records

    async def follow_zone(self, held: HeldZone, key: dns.tsig.Key | None, *, is_announced: bool) -> HeldZone:
        """Tells what has changed since the zone was held; returns it as it is held now.

        is_announced: the server has said that there is something new. Raises TransferError; what was told by then is
        held. Raises sqlite3.Error, PublishRefused.
        """
        name = dns.name.from_text(held.name.zone)
        until = asyncio.get_running_loop().time() + AUTHOR_S
        if held.content is not None and held.soa is not None:
            serial = parse_soa(held.soa).serial
            if not is_announced and await self._client.read_serial(name, key) == serial:
                return held
            follow = _ZoneSteps(self, held, until)
            try:
                async with aclosing(self._client.transfer(name, key, serial)) as items:
                    async for item in items:
                        match item:
                            case CurrentSerial() if item.serial == serial:
                                return held
                            case CurrentSerial():
                                break
                            case SerialStep():
                                await follow.take_step(item)
                            case WholeZone():
                                return await self._take_whole(held, item, items, until)
                    else:
                        return await follow.save()
            except TransferError as error:
                held = await follow.save()
                if error.kind != "not_incremental":
                    raise
        async with aclosing(self._client.transfer(name, key, None)) as items:
            async for item in items:
                if isinstance(item, WholeZone):
                    return await self._take_whole(held, item, items, until)
        raise TransferError("malformed", "the server sends no zone", "see named's log")

    async def tell_created(self, held: HeldZone, serial: int | None, record_count: int | None) -> HeldZone:
        """Tells that a zone was created; returns it as it is held then."""
        data = {"zone": held.name.zone, "view": held.name.view, "serial": serial, "record_count": record_count}
        era = held.era.mark if held.era is not None else ""
        await self._reporter.publish_event(
            "zone_created",
            {name: value for name, value in data.items() if value is not None},
            make_id("zone-created", held.name, era),
        )
        await self._outlet.drain_changes()
        return await self._call(self._store.mark_told, held)

    async def tell_deleted(self, held: HeldZone) -> None:
        """Tells that a zone was deleted, and forgets its records."""
        serial = parse_soa(held.soa).serial if held.soa is not None else None
        data = {"zone": held.name.zone, "view": held.name.view, "serial": serial}
        era = held.era.mark if held.era is not None else ""
        await self._reporter.publish_event(
            "zone_deleted",
            {name: value for name, value in data.items() if value is not None},
            make_id("zone-deleted", held.name, era, serial or 0),
        )
        await self._outlet.drain_changes()
        fresh = held.era if serial is None else begin_era(held.name, held.era, serial, 0, time.time())
        await self._call(self._store.mark_gone, held, fresh)

    async def _take_whole(
        self, held: HeldZone, whole: WholeZone, items: AsyncIterator[TransferItem], until: float
    ) -> HeldZone:
        content = await self._call(self._store.begin_content)
        try:
            await self._load_content(content, items)
            if held.content is not None and held.soa is not None:
                return await self._tell_whole(held, whole, content, until)
            era = find_era(held.era, parse_soa(whole.soa).serial, time.time())
            if held.is_new:
                count = await self._call(self._store.count_records, content)
                held = await self.tell_created(held, parse_soa(whole.soa).serial, count)
            return await self._call(self._store.replace_content, held, content, whole.soa, era)
        except BaseException:
            await self._call(self._store.remove_leftover, content)
            raise

    async def _load_content(self, content: int, items: AsyncIterator[TransferItem]) -> None:
        count = 0
        waiting: list[ZoneRecord] = []
        async for item in items:
            if isinstance(item, ZoneContent):
                waiting += item.records
                count += len(item.records)
            if count > self._max_records:
                raise TransferError(
                    "too_large",
                    f"the zone has more than {self._max_records} records",
                    "allow more with source.zones.max_zone_records, or leave the zone out",
                )
            if len(waiting) >= _ROWS_AT_ONCE:
                await self._call(self._store.add_records, content, waiting)
                waiting = []
        await self._call(self._store.add_records, content, waiting)

    async def _tell_whole(self, held: HeldZone, whole: WholeZone, content: int, until: float) -> HeldZone:
        assert held.content is not None  # noqa: S101 - the caller has looked
        assert held.soa is not None  # noqa: S101
        old = held.content
        before, serial, now = parse_soa(held.soa).serial, parse_soa(whole.soa).serial, time.time()
        tally = await self._call(self._store.compare_content, old, content, self._reporter.left_out)
        is_rollback = before != serial and not is_serial_before(before, serial)
        era = find_era(held.era, serial, now)
        if tally.total or sum(tally.left_out.values()) or whole.soa.data != held.soa.data:

            async def read_changes() -> AsyncIterator[Sequence[RRsetChange]]:
                last: RRsetKey | None = None
                while changes := await self._call(self._store.read_changes, old, content, last, CHANGES_AT_ONCE):
                    yield changes
                    last = changes[-1].key

            step = ZoneStep(
                identity=make_identity(held, before, serial, era, is_rollback=is_rollback),
                tally=tally,
                soa_before=held.soa,
                soa=whole.soa,
                is_whole=True,
                read_changes=read_changes,
            )
            skips_serials = measure_serial_distance(before, serial) > 1
            if skips_serials and await self._told_steps.is_told(held.name, before, serial, waits=True):
                await self._reporter.pass_over_step(step, until=until)
                log_left_out(held, before, serial, 1)
            else:
                await self._reporter.report_step(step, until=until)
            await self._outlet.drain_changes()
        if is_rollback:
            era = begin_era(held.name, era, before, serial, now)
        return await self._call(self._store.replace_content, held, content, whole.soa, era)


def make_identity(
    held: HeldZone, before: int, serial: int, era: ZoneEra | None, *, is_rollback: bool = False
) -> StepIdentity:
    """The identity of a step of a held zone."""
    mark = era.mark if era is not None else ""
    return StepIdentity(zone=held.name, serial_before=before, serial=serial, era=mark, is_rollback=is_rollback)


def log_left_out(held: HeldZone, before: int, serial: int, count: int) -> None:
    """Says that steps were not told, as the log has them of another source."""
    logger.info("zone_steps_left_out", zone=str(held.name), serial_before=before, serial=serial, steps=count)


class _ZoneSteps:
    """The steps of one transfer: told one after another, and written down together.

    `_rrsets` is what the told steps have changed, as it is after the last of them.
    """

    def __init__(self, follower: ZoneFollower, held: HeldZone, until: float) -> None:
        self._follower = follower
        self._held = held
        self._until = until
        self._rrsets: HeldRRsets = {}
        self._soa: ZoneRecord | None = None
        self._era = held.era
        self._count = 0
        self._left_out_count = 0
        self._known_spans: list[ToldSpan] | None = None  # what the log had when the transfer of several steps began

    async def take_step(self, step: SerialStep) -> None:
        """Tells a step. Raises TransferError if it doesn't fit what is held."""
        follower, held = self._follower, self._held
        assert held.content is not None  # noqa: S101 - the caller has looked
        missing = [key for key in list_keys(step) if key not in self._rrsets]
        read = await follower._call(follower._store.read_rrsets, held.content, missing)
        self._rrsets |= read
        changes = apply_step(step, self._rrsets)
        before, serial = parse_soa(step.soa_before).serial, parse_soa(step.soa).serial
        era = find_era(self._era, serial, time.time())

        async def read_changes() -> AsyncIterator[Sequence[RRsetChange]]:
            for start in range(0, len(changes), CHANGES_AT_ONCE):  # as of a whole zone: so pages are the same
                yield changes[start : start + CHANGES_AT_ONCE]

        report = ZoneStep(
            identity=make_identity(held, before, serial, era),
            tally=tally_changes(changes, follower._reporter.left_out),
            soa_before=step.soa_before,
            soa=step.soa,
            is_whole=False,
            read_changes=read_changes,
        )
        try:
            if await self._is_told(before, serial, parse_soa(step.newest).serial):
                await follower._reporter.pass_over_step(report, until=self._until)
                self._left_out_count += 1
                if serial == parse_soa(step.newest).serial:
                    log_left_out(held, parse_soa(held.soa or step.soa_before).serial, serial, self._left_out_count)
            else:
                await follower._reporter.report_step(report, until=self._until)
        except BaseException:
            self._rrsets.clear()  # they hold this step, which is not told as a whole
            self._soa = None
            raise
        self._soa, self._era = step.soa, era
        self._count += 1
        if self._count >= BATCH_STEPS or sum(len(records) for records in self._rrsets.values()) > BATCH_RECORDS:
            await self.save()

    async def _is_told(self, before: int, serial: int, newest: int) -> bool:
        """Whether the log has the step, where another source may have told it as a part of a longer one."""
        told_steps, zone = self._follower._told_steps, self._held.name
        if measure_serial_distance(before, serial) > 1:
            return await told_steps.is_told(zone, before, serial, waits=True)
        if self._known_spans is None and serial != newest:
            self._known_spans = await told_steps.read_spans(zone)
        return self._known_spans is not None and covers_span(self._known_spans, before, serial)

    async def save(self) -> HeldZone:
        """Writes down what was told, when the gateway has it; returns the zone as it is held then."""
        if self._soa is not None:
            follower = self._follower
            await follower._outlet.drain_changes()
            self._held = await follower._call(
                follower._store.save_steps, self._held, self._rrsets, self._soa, self._era
            )
        self._rrsets, self._soa, self._count = {}, None, 0
        return self._held
