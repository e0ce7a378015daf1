"""The router's process: one lock on the data directory, one bus, one loop.

What it keeps true: there is always a next tick, whatever fails in this one, and what fails is in the log.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import structlog

from solowire.algorithms.hosts import is_address, is_loopback
from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane import messages as backplane
from solowire.backplane.messages import RouterMessage, ShardAddress, ShardStats
from solowire.backplane.zmq_transport import RouterSocket
from solowire.errors import BackplaneError
from solowire.observability.audit import open_audit
from solowire.observability.loop_monitor import LoopMonitor, memory_bytes
from solowire.observability.metrics import Distribution, LabelledSample, Metrics, Sample
from solowire.observability.process_samples import read_process_samples
from solowire.observability.process_tracer import open_tracer
from solowire.router import http as web
from solowire.router.history.history_reader import HistoryReader
from solowire.router.history.history_thread import HistoryThread
from solowire.router.log.journal import Journal, MemoryJournal
from solowire.router.log.sqlite_journal import SqliteJournal
from solowire.router.monitoring.monitor import Monitor
from solowire.router.router import Router
from solowire.runtime import process
from solowire.runtime.backplane_keys import load_router_keys
from solowire.runtime.data_directory import JOURNAL_FILE, make_directories, make_run_directory
from solowire.runtime.directory_lock import router_lock
from solowire.runtime.domain_loader import load_domain
from solowire.runtime.identity import make_first_secret
from solowire.runtime.machine import identify_machine
from solowire.runtime.owned_files import OWNED
from solowire.runtime.settings import Settings
from solowire.runtime.settings.limits_settings import LimitsSettings

logger = structlog.get_logger("solowire.router")

TICK_SECONDS = 0.5
PROBE_SECONDS = 0.5
RELEASE_SECONDS = 0.02
SWITCH_SECONDS = 0.0005
OPENING_SECONDS = 5.0
"""A journal that takes so long to open is said, with what is done, again and again."""


def serve(settings: Settings) -> None:
    """Runs the router until it is told to stop. Raises ConfigError if it can't start."""
    load_router_keys(settings)  # what is wrong with them is one line, before anything is made
    make_directories(settings)
    with ExitStack() as held:
        held.enter_context(router_lock(settings))
        make_first_secret(settings)
        process.run(lambda stop: _main(settings, stop))


def open_journal(settings: Settings, report: Callable[[str], object] = lambda step: None) -> Journal:
    """The journal that the settings ask for. report: told what takes long. Raises ConfigError."""
    epoch, is_same = process.new_id(), load_domain(settings).catalog.is_same_event
    if settings.journal.storage == "memory":
        return MemoryJournal(
            epoch,
            max_events=settings.journal.max_events,
            max_bytes=settings.journal.max_bytes,
            window=settings.journal.duplicate_window_s,
            is_same=is_same,
        )
    return SqliteJournal(
        settings.need_data_dir() / JOURNAL_FILE,
        new_epoch=epoch,
        max_age=settings.journal.max_age_s,
        max_events=settings.journal.max_events,
        max_bytes=settings.journal.max_bytes,
        window=settings.journal.duplicate_window_s,
        now=time.time(),
        is_same=is_same,
        report=report,
    )


async def _open_beside(settings: Settings, stop: asyncio.Event) -> Journal | None:
    """Opens the journal in a thread, so that the process shows that it lives, and says what it is at if it takes long.

    None if the process is told to stop meanwhile. The thread is left to end with it then, as by a kill, which does a
    journal no harm. Raises ConfigError.
    """
    loop = asyncio.get_running_loop()
    began, step = loop.time(), ""
    opened: asyncio.Future[Journal] = loop.create_future()

    def note_step(name: str) -> None:
        nonlocal step
        step = name

    def open_it() -> None:
        try:
            journal = open_journal(settings, note_step)
        except BaseException as error:
            finish(opened.set_exception, error)
        else:
            finish(opened.set_result, journal)

    def finish(settle: Callable[[Any], None], result: object) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=open_it, daemon=True, name="journal-opening").start()
    stopped = loop.create_task(stop.wait())
    ends: tuple[asyncio.Future[Any], ...] = (opened, stopped)
    try:
        while not (await asyncio.wait(ends, timeout=OPENING_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
            hint = "publishers and clients wait for it; a file that was not closed in order is read as a whole"
            process.extend_start()
            logger.info("journal_opening", step=step, waited_s=round(loop.time() - began), hint=hint)
    finally:
        stopped.cancel()
    return await opened if opened.done() else None


def make_history_reader(journal: Journal, settings: Settings) -> HistoryReader:
    """Reads the journal in the thread that calls this. Raises JournalUnavailable."""
    on_disk = settings.journal.storage == "sqlite"
    path = settings.need_data_dir() / "history-index.sqlite3" if on_disk else None
    unindexed = load_domain(settings).catalog.unindexed
    return HistoryReader(journal.open_reader(), journal.epoch, path, time.monotonic, unindexed)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    opened = await _open_beside(settings, stop)
    if opened is None:
        return
    with closing(opened) as journal:
        server = _RouterServer(loop, journal, settings)
        served = web.start_http_server(
            settings, Metrics("router", server.read_samples).render, lambda: not journal.is_gone
        )
        process.tune_gc()
        process.on_reload(server.change_members)  # which may refuse, and so is first
        process.on_reload(lambda fresh: server.change_limits(fresh.limits))
        process.report_ready()
        logger.info("router_ready", epoch=journal.epoch, last=journal.last_offset, backplane=settings.router_address)
        try:
            while not stop.is_set():
                try:
                    await asyncio.wait_for(stop.wait(), TICK_SECONDS)
                except TimeoutError:
                    server.tick()
        finally:
            server.close()
            if served is not None:
                await served.finish()


class _RouterServer:
    """The router on its bus."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: Journal, settings: Settings) -> None:
        self._loop = loop
        self._machine = identify_machine()
        self._planned: asyncio.Handle | None = None
        self._releasing: asyncio.Handle | None = None
        self._replaying: asyncio.Handle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._sampler = LogSampler(logger, loop.time, loop.call_later)
        self._socket = RouterSocket(settings.router_address, self._on_message, load_router_keys(settings))
        if settings.backplane is None:
            OWNED.own(settings.run_dir.absolute() / "router", lambda: self._restore_socket(settings))
        self._tracer = open_tracer(os.environ, "router", "router")
        self._audit = open_audit(settings, "router")
        self._loop_monitor = LoopMonitor(self._audit.flush_suppressed)
        # The loop waits for the interpreter no longer than this when the thread that reads history has it.
        sys.setswitchinterval(SWITCH_SECONDS)
        self._history = HistoryThread(lambda: make_history_reader(journal, settings), self._send, loop)
        self._router = Router(
            journal,
            self._send,
            now=loop.time(),
            wall_offset=self._wall_offset(),
            stopwatch=time.monotonic,
            limits=settings.limits.with_administrators(),
            publish=settings.publish,
            monitor=self._make_monitor(settings),
            audit=self._audit,
            sampler=self._sampler,
            history=self._history,
            tracer=self._tracer,
        )

    def _restore_socket(self, settings: Settings) -> bool:
        """Makes the removed socket again. Raises OSError."""
        make_run_directory(settings.run_dir)
        self._socket.rebind()
        return True

    def _make_monitor(self, settings: Settings) -> Monitor:
        return Monitor(
            catalog=load_domain(settings).catalog,
            new_id=process.new_id,
            alerts=settings.alerts,
            stats_interval_s=settings.router.stats_interval_s,
            own=lambda: ShardStats(memory_bytes=memory_bytes(), event_loop_lag_s=self._loop_monitor.event_loop_lag_s),
        )

    def read_samples(self) -> Iterator[Sample]:
        """Yields what /metrics shows."""
        router, monitor = self._router, self._router.monitor
        yield "events_appended_total", "Published events appended to the log.", router.events
        yield "duplicate_events_total", "Published events that the log already had.", router.duplicates
        yield "log_end_offset", "Newest offset in the log.", router.journal.last_offset
        yield "log_start_offset", "Offset after which the log begins.", router.journal.start_offset
        yield "journal_available", "Whether the journal takes events, 1 or 0.", float(router.is_journal_available)
        size = router.journal.measure_size()
        yield "journal_bytes", "What the journal takes on its disk.", size.used_bytes
        yield "journal_max_bytes", "What the retention lets the journal take.", size.max_bytes
        yield "journal_disk_free_bytes", "What is free on the journal's disk; infinite in memory.", size.free_bytes
        yield Distribution("journal_commit_seconds", "How long commits of events take.", router.commit_times)
        yield "gateways", "Connected gateways.", router.members.gateway_count
        yield "shards", "Shards in the ring.", len(router.members.shards)
        reports = router.reports.list_present()
        lags = {str(r.address.index): float(r.lag_offsets) for r in reports}
        yield LabelledSample("shard_lag_offsets", "Offsets that a shard has not acknowledged.", "shard", lags)
        draining = sum(r.is_draining for r in reports)
        yield "draining_shards", "Shards that are being emptied.", draining
        if monitor is not None:
            last, now = router.journal.last_offset, self._loop.time()
            ages = {str(r.address.index): monitor.measure_offset_age(last - r.lag_offsets, now) for r in reports}
            yield LabelledSample(
                "shard_lag_seconds", "Age of the oldest event that a shard has not acknowledged.", "shard", ages
            )
        inflight = {str(r.address.index): float(r.inflight_events) for r in reports}
        yield LabelledSample("shard_inflight_events", "Events sent to a shard and not acknowledged.", "shard", inflight)
        yield LabelledSample(
            "publish_rejected_total",
            "Publish requests rejected by the router, by error code.",
            "reason",
            router.publish_rejections,
        )
        yield "pending_publishes", "Publish requests waiting for their turn.", len(router.publishes)
        yield "publish_ack_delay_seconds", "Delay added to publish acknowledgements.", router.backpressure.delay
        yield (
            "leased_slots",
            "Connection slots granted to shards and not yet free again.",
            router.coordinator.registry.held_slots,
        )
        yield "max_connections", "Limit on the connections of the system.", router.coordinator.limits.max_connections
        groups = router.coordinator.list_groups()
        used: dict[str, float] = {name: slots.used for name, slots in groups.items()}
        yield LabelledSample("group_used_slots", "Slots in use by group.", "group", used)
        shares: dict[str, float] = {name: slots.share for name, slots in groups.items()}
        yield LabelledSample("group_share_slots", "Slots of a group by the present plan.", "group", shares)
        limits: dict[str, float] = {name: slots.limit for name, slots in groups.items() if slots.limit is not None}
        yield LabelledSample("group_limit_slots", "Limit of a group that has one.", "group", limits)
        yield "pending_replays", "Replay requests waiting to be served.", len(router.replays)
        yield "pending_history_reads", "History reads of shards waiting to be served.", len(self._history)
        yield "history_reads_total", "Parts of the log read for history.", self._history.answer_count
        indexed = self._history.indexed_offset
        yield "history_indexed_offset", "Offset up to which the log is in the history index.", indexed
        yield "history_index_errors_total", "Times that the history index failed.", self._history.index_error_count
        yield "revocations", "Token revocations in force.", router.access.revocation_count
        if monitor is not None:
            yield "alerts_active", "Alerts that are firing.", monitor.alerts.raised_count
            yield "alerts_fired_total", "Alerts that have fired.", monitor.fired_count
        yield "backplane_decode_errors_total", "Messages of peers that failed to decode.", router.dropped_count
        accepted, authenticated = self._socket.accepted_count, self._socket.authenticated_count
        yield "backplane_connections_accepted_total", "TCP connections to the backplane's port.", accepted
        yield "backplane_connections_authenticated_total", "Those of them that showed a member's key.", authenticated
        yield from read_process_samples(self._loop_monitor, self._audit, self._tracer)

    async def _probe_absent(self, absent: list[ShardAddress]) -> None:
        """Asks where shards were that are not heard of. If nobody listens, the kernel says that they have ended."""
        for address in absent:
            if not self._is_sure_of(address):
                continue
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    _, writer = await asyncio.open_connection(address.host, address.port)
                writer.close()
            except ConnectionRefusedError:
                self._router.confirm_dead(address.incarnation)
            except (OSError, ValueError, OverflowError):
                pass  # cut off (TimeoutError is an OSError), or at no address at all, as far as anybody can tell

    def _is_sure_of(self, address: ShardAddress) -> bool:
        """Whether the process itself would be asked: a name, and this machine's loopback, may mean another one."""
        is_ours = address.machine in ("", self._machine)
        return is_ours or (is_address(address.host) and not is_loopback(address.host))

    def change_members(self, settings: Settings) -> None:
        """Lets in those whose keys the settings name now; who is connected stays. Raises ConfigError."""
        keys = load_router_keys(settings)
        if keys is not None:
            self._socket.change_keys(keys)

    def change_limits(self, limits: LimitsSettings) -> None:
        """Has other limits on connections in force."""
        self._router.coordinator.change_limits(limits.with_administrators())

    def tick(self) -> None:
        absent = self._router.coordinator.registry.absent_shards
        if absent and (self._probing is None or self._probing.done()):
            self._probing = self._loop.create_task(self._probe_absent(absent))
        self._tick()
        self._history.note_log_end(self._router.journal.last_offset)

    def close(self) -> None:
        for handle in (self._planned, self._releasing, self._replaying):
            if handle is not None:
                handle.cancel()
        if self._probing is not None:
            self._probing.cancel()
        self._history.close()
        self._router.append_all(self._loop.time())
        self._tick()  # answers what has come
        self._socket.close()
        self._loop_monitor.close()
        self._audit.close()
        if self._tracer is not None:
            self._tracer.close()

    def _tick(self) -> None:
        try:
            self._router.wall_offset = self._wall_offset()
            self._router.tick(self._loop.time())
        except Exception:
            logger.exception("tick_failed")

    def _wall_offset(self) -> float:
        return time.time() - self._loop.time()

    def _send(self, peer: bytes, message: RouterMessage) -> bool:
        return self._socket.send(peer, backplane.encode(message))

    def _on_message(self, peer: bytes, raw: bytes) -> None:
        try:
            message = backplane.decode_from_peer(raw)
        except BackplaneError as error:
            self._router.dropped_count += 1
            self._sampler.write(
                "error",
                "backplane_message_dropped",
                sender=peer.decode(errors="replace"),
                error=str(error),
                dropped=self._router.dropped_count,
                hint="do all processes run one version?",
            )
            return
        self._router.receive(peer, message, self._loop.time())
        if self._planned is None:
            # After this turn's messages rather than after each: under load they go out in batches, without a timer.
            self._planned = self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = None
        again = self._router.dispatch(self._loop.time())
        if again is not None:
            self._planned = self._loop.call_at(again, self._dispatch)
        if self._releasing is None:
            self._release()
        if self._replaying is None and self._router.replays:
            # Not in this turn: what has arrived by then, and is live, goes first.
            self._replaying = self._loop.call_soon(self._serve_replay)

    def _serve_replay(self) -> None:
        self._replaying = None  # first, as below
        again = self._router.replays.serve_next(self._loop.time())
        self._replaying = self._loop.call_at(again, self._serve_replay) if again is not None else None

    def _release(self) -> None:
        self._releasing = None  # first: whatever fails below, the next dispatch goes on with it
        held = self._router.release_answers(self._loop.time())
        self._releasing = self._loop.call_later(RELEASE_SECONDS, self._release) if held else None
