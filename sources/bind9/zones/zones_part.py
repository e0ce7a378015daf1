"""The zones as a part of the BIND 9 source: NOTIFY, IXFR and what was held at the last change."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import dns.exception
import dns.name
import dns.rdatatype
import structlog

from solowire.errors import ConfigError
from solowire.runtime.settings.source_settings import ZonesSettings
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.server_address import parse_address
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.statistics_channel import StatisticsChannel
from solowire.sources.bind9.zones.notify_listener import NotifyListener, parse_networks
from solowire.sources.bind9.zones.observed_change import ChangeObserver
from solowire.sources.bind9.zones.step_reporter import StepReporter
from solowire.sources.bind9.zones.tsig_keys import choose_key, load_keys
from solowire.sources.bind9.zones.update_authors import UpdateAuthors
from solowire.sources.bind9.zones.zone_client import ZoneClient
from solowire.sources.bind9.zones.zone_follower import StoreThread, ZoneFollower
from solowire.sources.bind9.zones.zone_record import format_type
from solowire.sources.bind9.zones.zone_store import ZoneStore
from solowire.sources.bind9.zones.zone_watch import Keys, ZoneWatch

DNS_PORT = 53
NOTIFY_PORT = 5353
MAX_STEP_RECORDS = 200_000
"""A step with more is told as a difference of whole zones, which is done on disk."""
KEEP_S = 0.25
"""Between two writings of what the update log has told; what it told since is lost with a kill."""
_RECORD_BYTES = 70_000  # the largest that there can be, with its header

logger = structlog.get_logger()


class ZonesPart:
    """Publishes each change of a record once. state_dir: where zones are kept. Raises ConfigError.

    channel: lists the zones, if the settings name none. authors: who sends updates, if another part reads that in the
    update log. observers: told of each change.
    """

    name = "zones"

    def __init__(
        self,
        settings: ZonesSettings,
        outlet: EventOutlet,
        state_dir: Path,
        *,
        channel: StatisticsChannel | None,
        authors: UpdateAuthors,
        observers: Sequence[ChangeObserver] = (),
    ) -> None:
        if settings.address is None:
            raise ConfigError("no name server to watch zones of; name one with --zones-of")
        if not settings.names and channel is None:
            raise ConfigError(
                "no zones to watch: name them with --zone-names, or give named's statistics channel, which lists them: "
                "--statistics http://127.0.0.1:8053"
            )
        self._settings = settings
        self._outlet = outlet
        self._state_dir = state_dir
        self._channel = None if settings.names else channel
        self._authors = authors
        self._observers = observers
        self._address = parse_address(settings.address, DNS_PORT, "source.zones.address")
        self._names = [_parse_zone(name) for name in settings.names]
        self._key_file = load_keys(settings.key_file) if settings.key_file is not None else {}
        self._keys = self._choose_keys()
        self._left_out = frozenset(_parse_type(name) for name in settings.left_out_types)
        self._notify = (
            None if settings.notify is None else parse_address(settings.notify, NOTIFY_PORT, "source.zones.notify")
        )
        self._allowed = parse_networks(settings.notify_from or [self._address.address], "source.zones.notify_from")

    def _choose_keys(self) -> Keys:
        settings = self._settings
        if settings.views:
            return {
                view: choose_key(self._key_file, key, f"source.zones.views.{view}") if key else None
                for view, key in settings.views.items()
            }
        if not self._key_file and settings.key is None:
            return {None: None}
        return {None: choose_key(self._key_file, settings.key, "source.zones.key")}

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises ConfigError, PublishRefused."""
        settings = self._settings
        store = ZoneStore(self._state_dir, str(self._address))
        thread = StoreThread()
        client = ZoneClient(
            *self._address,
            max_bytes=settings.max_zone_records * _RECORD_BYTES,
            max_step_records=min(MAX_STEP_RECORDS, settings.max_zone_records),
        )
        reporter = StepReporter(
            self._outlet,
            status,
            authors=self._authors,
            observers=self._observers,
            left_out=self._left_out,
            page_bytes=settings.page_bytes,
        )
        follower = ZoneFollower(client, store, thread, reporter, self._outlet, max_records=settings.max_zone_records)
        watch = ZoneWatch(
            client=client,
            store=store,
            thread=thread,
            follower=follower,
            status=status,
            keys=self._keys,
            names=self._names,
            channel=self._channel,
            poll_s=settings.poll_interval_s,
            find_s=settings.find_interval_s,
            concurrency=settings.concurrency,
        )
        listener = None
        keeping = None
        try:
            if self._authors.has_feed:
                if (notes := await thread.call(store.load_notes)) is not None:
                    self._authors.load_notes(notes, asyncio.get_running_loop().time())
                keeping = asyncio.create_task(self._keep_notes(store, thread), name="zones authors")
            if self._notify is not None:
                listener = NotifyListener(
                    self._notify,
                    allowed=self._allowed,
                    keys=self._key_file,
                    is_known=watch.is_known,
                    on_notify=watch.announce_zone,
                )
                await listener.open()
            await watch.run(stop)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            await asyncio.to_thread(thread.close)
            store.close()
            store.set_aside(error)
            raise  # the part is begun anew, with an empty file
        finally:
            if listener is not None:
                listener.close()
            if keeping is not None:
                keeping.cancel()
            store.interrupt()
            await asyncio.to_thread(thread.close)
            store.close()

    async def _keep_notes(self, store: ZoneStore, thread: StoreThread) -> None:
        """Keeps the lines of the update log whose steps are not told yet, as their log won't be read again."""
        kept = self._authors.revision
        while True:
            await asyncio.sleep(KEEP_S)
            if kept != self._authors.revision:
                kept = self._authors.revision
                with suppress(sqlite3.OperationalError):  # said where zones are kept
                    await thread.call(store.save_notes, self._authors.dump_notes())


def _parse_zone(name: str) -> str:
    """A zone's name in the one form. Raises ConfigError."""
    try:
        return dns.name.from_text(name).canonicalize().to_text(omit_final_dot=True)
    except (dns.exception.DNSException, ValueError) as error:
        raise ConfigError(f"source.zones.names: {name!r} is no zone's name: {error}") from None


def _parse_type(name: str) -> str:
    """The name of a record type as events have it. Raises ConfigError."""
    try:
        return format_type(dns.rdatatype.from_text(name))
    except (dns.exception.DNSException, ValueError):
        raise ConfigError(
            f"source.zones.left_out_types: {name!r} is no record type; write it as RRSIG, or TYPE65534"
        ) from None
