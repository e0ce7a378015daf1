"""The watch over a server's zones: which there are, which is to be looked at next, and what stands in the way.

What it keeps true:

* Each zone is followed by one worker at a time; `concurrency` workers in all.
* A zone that can't be had stops no other, and is said at once and once in REPORT_S, with the way out.
* A server that doesn't answer is no zone that is gone: a zone is gone if the server lists it no more, and says that
  it hasn't got it.
"""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress

import dns.name
import dns.tsig
import structlog

from solowire.errors import StatisticsError, TransferError
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.statistics_channel import WAY_OUT, StatisticsChannel
from solowire.sources.bind9.zone_listing import ListedZone
from solowire.sources.bind9.zones.zone_client import ZoneClient
from solowire.sources.bind9.zones.zone_follower import StoreThread, ZoneFollower
from solowire.sources.bind9.zones.zone_identity import ERA_S, ZoneName
from solowire.sources.bind9.zones.zone_queue import ZoneQueue
from solowire.sources.bind9.zones.zone_store import HeldZone, ZoneStore

REPORT_S = 60.0
RETRY_S = 5.0
REFUSED_S = 30.0
"""Until a server that refuses is asked again: it logs each time."""
LARGE_S = 600.0
"""Until a zone that is too large is asked for again."""
LIST_S = 1.0
"""Between two lists of zones, at least, however many zones are said to be new."""
LIST_PAUSE = 30
"""So many times as long as a list took nobody asks for the next: `named` stands still while it makes it."""
CANCEL_S = 0.5
"""Until those that have not ended are cancelled again."""
AWAY_S = 1.0
"""For which nobody asks a server that did not answer."""
BEGIN_S = 10.0
"""After which the part runs, even if the first look at all zones is not over."""
_SHOWN = 5

_LISTING = "the list of zones"

logger = structlog.get_logger()

Keys = Mapping[str | None, dns.tsig.Key | None]
"""The key that leads into each view; under None where no views are named."""


class ZoneWatch:
    """Watches from `run` to its end.

    names: the zones to watch. channel: lists them, if none are named. find_s: between two lists, at least.
    """

    def __init__(
        self,
        *,
        client: ZoneClient,
        store: ZoneStore,
        thread: StoreThread,
        follower: ZoneFollower,
        status: PartStatus,
        keys: Keys,
        names: list[str],
        channel: StatisticsChannel | None,
        poll_s: float,
        find_s: float,
        concurrency: int,
    ) -> None:
        self._client = client
        self._store = store
        self._call = thread.call
        self._follower = follower
        self._status = status
        self._keys = keys
        self._names = names
        self._channel = channel
        self._find_s = self._list_every_s = find_s
        self._concurrency = concurrency
        self._poll_s = poll_s
        self._queue = ZoneQueue(poll_s, random.random)
        self._zones: dict[ZoneName, HeldZone] = {}
        self._serials: dict[ZoneName, int | None] = {}  # as listed
        self._unseen: set[ZoneName] = set()  # zones that have not been looked at since the start
        self._deaf_until: dict[ZoneName, float] = {}  # too large ones, which a NOTIFY doesn't help
        self._troubles: dict[ZoneName | str, TransferError] = {}
        self._logged: dict[ZoneName | str, str] = {}
        self._said_at = 0.0
        self._listed_at = -math.inf
        self._several: set[str] = set()
        self._away_until = 0.0
        self._changed = asyncio.Event()  # something is due, or may be
        self._list_now = asyncio.Event()
        self._began_at = 0.0
        self._is_over = False

    # ------------------------------------------------------------------------------------------ hints

    def is_known(self, zone: str) -> bool:
        """Whether a zone is watched, or may be one that has just been added."""
        return self._channel is not None or any(ZoneName(zone, view) in self._zones for view in self._keys)

    def announce_zone(self, zone: str) -> None:
        """Has a zone looked at now, in all views."""
        names = [name for view in self._keys if (name := ZoneName(zone, view)) in self._zones]
        for name in names:
            self._queue.announce_zone(name)
        if not names:
            self._list_now.set()
        self._changed.set()

    # ------------------------------------------------------------------------------------------ its life

    async def run(self, stop: asyncio.Event) -> None:
        """Watches until `stop` is set. Raises PublishRefused, sqlite3.Error."""
        self._began_at = self._clock()
        await self._call(self._store.remove_leftovers)
        held = await self._call(self._store.list_zones)
        await self._load_zones(held)
        tasks = [asyncio.create_task(self._work(), name=f"zones {n}") for n in range(self._concurrency)]
        tasks.append(asyncio.create_task(self._keep_reporting(), name="zones report"))
        if self._channel is not None:
            tasks.append(asyncio.create_task(self._keep_finding(self._channel), name="zones listing"))
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._is_over = True
            remaining = {*tasks, stopping}
            while remaining:  # a cancellation may be swallowed where something ends at that moment (wait_for, in 3.11)
                for task in remaining:
                    task.cancel()
                _, remaining = await asyncio.wait(remaining, timeout=CANCEL_S)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_zones(self, held: list[HeldZone]) -> None:
        """Takes up what is held: with names in the settings, what they name; else what was found last time."""
        for zone in held:
            is_over = zone.era is None or not 0 <= time.time() - zone.era.began_at < ERA_S
            if (zone.is_gone and is_over) or zone.name.view not in self._keys:
                await self._call(self._store.remove_zone, zone)
        held = [zone for zone in held if zone.name.view in self._keys]
        if self._names:
            wanted = {ZoneName(name, view) for name in self._names for view in self._keys}
            for zone in held:
                if zone.name not in wanted:
                    await self._call(self._store.remove_zone, zone)
            held = [zone for zone in held if zone.name in wanted and not zone.is_gone]
            held += await self._call(self._store.add_zones, wanted - {zone.name for zone in held}, is_new=False)
        for zone in held:
            if not zone.is_gone:
                self._add_zone(zone)

    def _add_zone(self, zone: HeldZone) -> None:
        self._zones[zone.name] = zone
        self._unseen.add(zone.name)
        self._queue.add_zone(zone.name, self._clock())
        self._changed.set()

    # ------------------------------------------------------------------------------------------ each zone

    async def _work(self) -> None:
        while not self._is_over:
            now = self._clock()
            if now < self._away_until:
                await asyncio.sleep(self._away_until - now)
                continue
            taken = self._queue.take_due(now)
            if taken is None:
                self._changed.clear()
                next_at = self._queue.find_next_at()
                wait = None if next_at is None else max(0.0, next_at - now)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                continue
            await self._look_at(*taken)

    async def _look_at(self, name: ZoneName, is_announced: bool) -> None:
        wait_s: float | None = None
        try:
            if (zone := self._zones.get(name)) is None:
                return
            if self._clock() < self._deaf_until.get(name, 0.0) or (not is_announced and self._is_listed(zone)):
                return
            held = await self._follower.follow_zone(zone, self._keys[name.view], is_announced=is_announced)
            if name in self._zones:
                self._zones[name] = held
            self._troubles.pop(name, None)
        except TransferError as error:
            wait_s = self._note_trouble(name, error)
            await self._tell_unreadable(name)
        except sqlite3.OperationalError as error:
            self._troubles[name] = self._explain_disk(error)
            wait_s = RETRY_S
        finally:
            self._unseen.discard(name)
            self._queue.finish_zone(name, self._clock(), wait_s=wait_s)
            self._changed.set()
            self._say_state()

    def _is_listed(self, zone: HeldZone) -> bool:
        """Whether the server's last list of zones, if it isn't old, has the serial that is held: no need to ask."""
        is_fresh = self._clock() < self._listed_at + 2 * self._list_every_s
        return is_fresh and zone.serial is not None and self._serials.get(zone.name) == zone.serial

    def _note_trouble(self, name: ZoneName, error: TransferError) -> float:
        """Keeps a trouble to be said; returns the seconds until the zone is asked for again."""
        self._troubles[name] = error
        if error.kind == "away":
            self._away_until = self._clock() + AWAY_S
            return AWAY_S
        if error.kind == "too_large":
            self._deaf_until[name] = self._clock() + LARGE_S
            return LARGE_S
        return min(REFUSED_S, 4 * self._poll_s) if error.kind == "refused" else RETRY_S

    async def _tell_unreadable(self, name: ZoneName) -> None:
        """Tells that a zone was created whose records can't be had."""
        zone = self._zones.get(name)
        if zone is not None and zone.is_new:
            self._zones[name] = await self._follower.tell_created(zone, self._serials.get(name), None)

    # ------------------------------------------------------------------------------------------ all zones

    async def _keep_finding(self, channel: StatisticsChannel) -> None:
        while True:
            self._list_now.clear()
            asked_at = self._clock()
            pause = 0.0
            try:
                listing = await channel.list_zones()
                pause = LIST_PAUSE * (self._clock() - asked_at)
                wait = self._list_every_s = max(self._find_s, pause)
                await self._take_listing(listing)
                self._troubles.pop(_LISTING, None)
            except StatisticsError as error:
                self._troubles[_LISTING] = TransferError("away", str(error), f"{WAY_OUT}; or name zones")
                wait = min(self._find_s, RETRY_S)
            except sqlite3.OperationalError as error:
                self._troubles[_LISTING] = self._explain_disk(error)
                wait = RETRY_S
            self._say_state()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._list_now.wait()
            least = min(wait, max(LIST_S, pause))  # also if a zone is said to be new
            await asyncio.sleep(max(0.0, asked_at + least - self._clock()))

    async def _take_listing(self, listing: list[ListedZone]) -> None:
        """Takes up new zones, and tells of those that are gone."""
        is_first = not await self._call(self._store.has_listing)
        found: dict[ZoneName, int | None] = {}
        several: set[str] = set()
        for zone in listing:
            name = ZoneName(zone.zone, zone.view if None not in self._keys else None)
            if name in found:
                several.add(zone.zone)
            elif name.view in self._keys:
                found[name] = zone.serial
        if several - self._several:
            self._several = several
            logger.warning(
                "zones_in_several_views",
                zones=sorted(several)[:_SHOWN],
                count=len(several),
                hint="only what the server shows this agent is watched; name the views in source.zones.views",
            )
        self._serials = found
        fresh = [name for name in found if name not in self._zones]
        if fresh:
            for added in await self._call(self._store.add_zones, fresh, is_new=not is_first):
                self._add_zone(added)
        if is_first:
            await self._call(self._store.mark_listed)
        self._listed_at = self._clock()
        for name, held in self._zones.items():
            if held.serial is not None and found.get(name, held.serial) not in (None, held.serial):
                self._queue.announce_zone(name)
                self._changed.set()
        for name in [name for name in self._zones if name not in found]:
            await self._confirm_gone(name)

    async def _confirm_gone(self, name: ZoneName) -> None:
        try:
            await self._client.read_serial(dns.name.from_text(name.zone), self._keys[name.view])
            return  # it is there: zones without statistics are not listed
        except TransferError as error:
            if error.kind != "refused":
                return
        zone = self._zones.pop(name)
        self._queue.remove_zone(name)
        self._troubles.pop(name, None)
        await self._follower.tell_deleted(zone)

    # ------------------------------------------------------------------------------------------ its state

    def _say_state(self) -> None:
        """Sets the part's status, once all zones have been looked at, and logs what is new in what is in the way."""
        if self._status.status == "starting":
            if not self._has_begun():
                return
            logger.info("zones_held", server=self._client.address, zones=len(self._zones), unseen=len(self._unseen))
        if self._troubles:
            first = sorted(self._troubles.items(), key=lambda item: str(item[0]))
            texts = [f"{name}: {trouble}" for name, trouble in first[:_SHOWN]]
            more = f", and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
            self._status.set_waiting("; ".join(texts) + more)
        else:
            self._status.set_running()
        is_new = any(self._logged.get(name) != trouble.message for name, trouble in self._troubles.items())
        if is_new or (self._logged and not self._troubles):
            self._log_troubles()

    def _has_begun(self) -> bool:
        if self._clock() > self._began_at + BEGIN_S:
            return True
        is_listed = self._channel is None or bool(self._serials) or _LISTING in self._troubles
        return is_listed and not self._unseen

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._say_state()
            if self._troubles and self._clock() >= self._said_at + REPORT_S:
                self._log_troubles()

    def _log_troubles(self) -> None:
        for name in self._logged.keys() - self._troubles.keys():
            logger.info("zone_watched_again", zone=str(name))
        shown = sorted(self._troubles.items(), key=lambda item: (item[0] in self._logged, str(item[0])))
        for name, trouble in shown[: 4 * _SHOWN]:
            logger.warning("zone_unreadable", zone=str(name), reason=trouble.message, hint=trouble.hint)
        if len(shown) > 4 * _SHOWN:
            logger.warning("zones_unreadable", count=len(shown), hint="the first of them are named above")
        self._logged = {name: trouble.message for name, trouble in self._troubles.items()}
        self._said_at = self._clock()

    def _explain_disk(self, error: Exception) -> TransferError:
        hint = "see whether its disk is full; what has changed is told again"
        return TransferError("failed", f"the zones can't be kept in {self._store.path}: {error}", hint)

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()
