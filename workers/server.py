"""A shard's process: the client port, the HTTP API, the link to the router and the shard's decisions, in one loop.

What it keeps true: once a second all that is due is done, whatever failed the second before, and what fails is in the
log. The file is long because it makes all parts of the process and joins them: each has a line here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.algorithms.hosts import is_wildcard
from solowire.algorithms.log_sampler import LogSampler
from solowire.algorithms.token_bucket import Rate
from solowire.auth.failed_auth_limiter import FailedAuthLimiter
from solowire.auth.key_source import MAX_WAITING
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import (
    VERSION,
    Diagnose,
    DisconnectCommand,
    DisconnectReport,
    DrainCommand,
    Fenced,
    HistoryResponse,
    IndexTaken,
    Join,
    Lease,
    LogAck,
    LogBatch,
    ReplayResponse,
    RevocationUpdate,
    RingState,
    RouterMessage,
    ShardAddress,
    StartDraining,
    StateSnapshot,
    Superseded,
    UndrainCommand,
    UserConnectedElsewhere,
    UsersConnected,
)
from solowire.backplane.router_link import RouterLink
from solowire.errors import ConfigError
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Role
from solowire.observability.audit import open_audit
from solowire.observability.loop_monitor import LoopMonitor, memory_bytes
from solowire.observability.metrics import Metrics, Sample
from solowire.observability.process_samples import read_process_samples
from solowire.observability.process_tracer import open_tracer
from solowire.observability.tls_samples import read_tls_samples
from solowire.protocol.close_codes import CloseCode
from solowire.runtime import process
from solowire.runtime.api_client import api_address
from solowire.runtime.backplane_keys import load_member_keys
from solowire.runtime.data_directory import make_directories
from solowire.runtime.directory_lock import shard_lock
from solowire.runtime.domain_loader import load_domain
from solowire.runtime.http_server import WebServer, listen, listen_unix
from solowire.runtime.identity import make_key_source, make_tokens, reload_identity
from solowire.runtime.machine import identify_machine
from solowire.runtime.old_frontends import make_dialect_requests
from solowire.runtime.roles import load_roles
from solowire.runtime.server_certificate import ServerCertificate, open_certificate
from solowire.runtime.settings import Settings
from solowire.runtime.tls_port import TlsPort
from solowire.workers.app import HttpApi
from solowire.workers.clock import Clock
from solowire.workers.delivery.ack_schedule import AckSchedule
from solowire.workers.history.history_api import HistoryApi
from solowire.workers.net.client_listener import ClientListener
from solowire.workers.net.client_port import ClientPort
from solowire.workers.net.tcp_sockets import TcpSockets
from solowire.workers.net.tls_sockets import TlsSockets
from solowire.workers.session.commands import PendingRefresh
from solowire.workers.shard import Shard
from solowire.workers.shard_samples import read_shard_samples
from solowire.workers.stats.diagnosis import diagnose
from solowire.workers.stats.report import ShardReporter

logger = structlog.get_logger("solowire.shard")

OTHER_FILES = 100
"""Open files of a shard that are no connections."""
FEWEST_FILES = OTHER_FILES + 50
CLOSING_SECONDS = 1.5
CLOSING_CHECK_SECONDS = 0.02
TICK_SECONDS = 1.0
TAKEN_SECONDS = 60.0
"""A shard that waits for its index says so this often."""
GRACE_SHARE = 0.6
"""How much of the grace period goes to telling the users; the rest is for closing."""


def serve(settings: Settings, index: int) -> None:
    """Runs one shard until it is told to stop, and its users are sent away. Raises ConfigError if it can't start.

    Exit status: 0, or 1 if another process has taken its place.
    """
    load_member_keys(settings)  # what is wrong with them is one line, before anything is made
    settings.find_advertised_host()
    domain = load_domain(settings)
    roles = load_roles(settings, domain.catalog)
    tokens = make_tokens(settings, roles, domain, create=True)
    process.on_reload(lambda fresh: reload_identity(fresh, tokens, roles))
    certificate = open_certificate(settings, time.time())
    status = 0

    async def main(stop: asyncio.Event) -> None:
        nonlocal status
        status = await _ShardServer(settings, index, tokens, roles, certificate).main(stop)

    with ExitStack() as held:
        if isinstance(settings.find_shard_api(index), Path):
            make_directories(settings)
        held.enter_context(shard_lock(settings, index))
        process.run(main)
    sys.exit(status)


class _ShardServer:
    def __init__(
        self,
        settings: Settings,
        index: int,
        tokens: Tokens,
        roles: Mapping[str, Role],
        certificate: ServerCertificate | None,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._tokens = tokens
        self._sampler = LogSampler(logger, self._loop.time, self._loop.call_later, period=TAKEN_SECONDS)
        self._timer: asyncio.Handle | None = None
        self._timer_due_at = float("inf")
        self._was_ready = False
        self._is_starting = True  # the router has not been told that it can take users
        self._acked_version = -1
        self._acks = AckSchedule(settings.shard.credit_events)
        self._done = asyncio.Event()
        self._status = 0
        self._socket = listen(
            settings.host,
            settings.find_shard_port(index),
            send_buffer=settings.listen.send_buffer_bytes,
            stalled_s=settings.listen.write_timeout_s,
        )
        self._api_socket, api = _listen_for_api(settings, index)
        self._address = ShardAddress(
            index,
            settings.find_advertised_host(),
            self._socket.getsockname()[1],
            process.new_id(),
            api,
            machine=identify_machine(),
        )
        self._tls = None
        if certificate is not None:
            self._tls = TlsPort(certificate)
            self._address = msgspec.structs.replace(self._address, certificate=certificate.fingerprint)
            process.on_reload(lambda _: self._check_certificate(is_reload=True), is_last=True)
        process.on_reload(lambda _: self._apply_roles())  # behind the one by which they are read
        self._key_source = make_key_source(settings, tokens)
        self._waiting_for_keys: set[asyncio.Task[None]] = set()
        self._tracer = open_tracer(os.environ, "shard", f"shard-{index}")
        self._audit = open_audit(settings, f"shard-{index}", shard=index)
        self._vitals = LoopMonitor(self._each_second)
        self._sockets = TcpSockets() if self._tls is None else TlsSockets()
        self._sends_arrivals = False  # the router is told in this turn of the loop who has come
        self._dialects = make_dialect_requests(settings, tokens.domain)
        self._shard = Shard(
            index,
            sockets=self._sockets,
            tokens=tokens,
            roles=roles,
            new_id=process.new_id,
            clock=Clock(self._wall_offset(), time.perf_counter),
            settings=settings,
            capacity=compute_capacity(process.raise_file_limit()),
            recent_log=RecentLog(catalog=tokens.domain.catalog, **dict(settings.shard.recent_log)),
            max_pending_refreshes=MAX_WAITING if self._key_source is not None else 0,
            audit=self._audit,
            incarnation=self._address.incarnation,
            dialect=self._dialects.dialect,
            tracer=self._tracer,
        )
        self._reporter = ShardReporter(
            self._shard,
            memory=memory_bytes,
            loop_lag=lambda: self._vitals.event_loop_lag_s,
        )

    def _apply_roles(self) -> None:
        if (count := self._shard.apply_roles()) > 0:
            logger.info("roles_applied", shard=self._shard.index, closed=count)
            self._schedule_run()

    async def main(self, stop: asyncio.Event) -> int:
        most = min(
            self._settings.limits.max_connections, self._settings.limits.max_connections_per_shard or sys.maxsize
        )
        files = process.raise_file_limit()
        if (capacity := compute_capacity(files)) < most:
            logger.warning(
                "file_limit_low",
                shard=self._shard.index,
                limit=files,
                connections=capacity,
                hint="this shard takes no more connections than that; raise the limit of open files (ulimit -n)",
            )
        if self._settings.shard.merge_memory:
            logger.info("memory_merging", shard=self._shard.index, **process.merge_memory())
        metrics = Metrics("shard", self._collect_samples, {"shard": str(self._shard.index)})
        wrong_tokens = FailedAuthLimiter(Rate(self._settings.auth.bad_token_rate, self._settings.auth.bad_token_burst))
        api = HttpApi(
            self._shard,
            self._tokens,
            metrics.render,
            wrong_tokens=wrong_tokens,
            reporter=self._reporter,
            audit=self._audit,
            refresh_keys=None if self._key_source is None else self._key_source.wait_for_refresh,
            history=HistoryApi(
                self._shard.history,
                self._shard.log.catalog,
                self._shard.clock,
                self._schedule_run,
                self._settings.history.page_events,
            ),
        )
        self._client_port = ClientPort(
            self._shard,
            self._sockets,
            self._schedule_run,
            wrong_tokens=wrong_tokens,
            allowed_origins=self._settings.listen.allowed_origins,
            dialects=self._dialects,
            audit=self._audit,
        )
        listener = self._listener = ClientListener(
            self._socket,
            self._client_port.handle,
            AcceptLimiter(self._settings.listen.max_pending, self._settings.listen.max_pending_per_address),
            head_s=self._settings.listen.request_head_timeout_s,
            socket_count=lambda: len(self._sockets),
            max_sockets=max(1, files - OTHER_FILES),
            tls=self._tls,
        )
        place = self._settings.find_shard_api(self._shard.index)
        server = WebServer(
            api,
            self._api_socket,
            handshake_s=self._settings.listen.keepalive_timeout_s,
            path=place if isinstance(place, Path) else None,
        )
        # Before the server starts: what is refused here should end the process without Granian's threads in its way.
        link = self._link = RouterLink(
            self._settings.backplane_address,
            f"shard-{self._shard.index}-{self._address.incarnation}",
            self._build_hello,
            self._on_message,
            self._reporter.take_report,
            lambda: self._shard.lease_usage_report(self._loop.time(), is_heartbeat=True),
            lambda: self._tokens.revocations.version,
            load_member_keys(self._settings),
        )
        if self._key_source is not None:
            self._key_source.start()
        server.start()
        listener.start()
        logger.info(
            "shard_listening",
            shard=self._shard.index,
            port=self._address.port,
            api=self._address.api,
            tls=self._tls is not None,
        )
        process.tune_gc()
        stopped = asyncio.ensure_future(stop.wait())
        ended = asyncio.ensure_future(self._done.wait())
        while not stopped.done() and not ended.done():
            self._tick()
            await asyncio.wait((stopped, ended), timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and not ended.done():
            self._start_drain(self._settings.process.shutdown_timeout_s * GRACE_SHARE)
            await asyncio.wait(
                (ended,), timeout=self._settings.process.shutdown_timeout_s * GRACE_SHARE + CLOSING_SECONDS
            )
        for pending in (stopped, ended):
            pending.cancel()
        listener.finish()
        self._shard.close_all(CloseCode.restarting)
        await self._wait_for_ends(CLOSING_SECONDS)
        link.close(goodbye=self._shard.is_empty)  # not before: it says that its slots are free
        self._sockets.finish()
        await server.finish()
        if self._key_source is not None:
            await self._key_source.close()
        self._vitals.close()
        self._audit.close()
        if self._tracer is not None:
            self._tracer.close()
        return self._status

    async def _wait_for_ends(self, seconds: float) -> None:
        """Waits until all connections that are being closed have ended."""
        deadline = self._loop.time() + seconds
        while len(self._sockets) and self._loop.time() < deadline:
            await asyncio.sleep(CLOSING_CHECK_SECONDS)

    async def _await_keys(self, pending: PendingRefresh) -> None:
        wait = None if self._key_source is None else await self._key_source.wait_for_refresh()
        self._shard.retry_refresh(pending, self._loop.time(), wait)
        self._schedule_run()

    def _tick(self) -> None:
        try:
            self._tokens.revocations.expire(time.time())
            self._shard.set_clock(self._wall_offset(), self._loop.time())
            self._run()
        except Exception:
            logger.exception("tick_failed", shard=self._shard.index)

    def _each_second(self) -> None:
        self._reporter.update(self._loop.time())
        self._audit.flush_suppressed()
        self._check_certificate()
        self._shard.log.skipped.next_second()
        if self._shard.traces is not None:
            self._shard.traces.forget_old()

    def _check_certificate(self, *, is_reload: bool = False) -> None:
        """Takes up another certificate, and tells the router, so that gateways know it for the shard's."""
        if self._tls is None:
            return
        certificate = self._tls.certificate
        check = certificate.reload_if_changed if is_reload else certificate.check
        if check(time.time()):
            self._address = msgspec.structs.replace(self._address, certificate=certificate.fingerprint)
            self._link.send_join()

    def _start_drain(self, within: float | None) -> None:
        if not self._shard.is_draining:
            self._link.send(StartDraining())
        self._shard.start_drain(self._loop.time(), within)
        self._schedule_run()

    def _build_hello(self) -> Join:
        return Join(
            VERSION,
            self._address.incarnation,
            self._address,
            self._shard.epoch,
            self._shard.log.position,
            self._settings.shard.credit_events,
            self._settings.shard.recent_log.max_events,
            self._shard.is_draining,
            self._tokens.revocations.version,
            is_starting=self._is_starting,
        )

    def _on_message(self, message: RouterMessage) -> None:
        now = self._loop.time()
        match message:
            case LogBatch():
                if self._shard.on_batch(message, now):
                    size = sum(len(body) for _, body in message.events)
                    if self._acks.record_batch(len(message.events), size, now):
                        self._send_ack()
                else:
                    self._link.send_join()
            case RingState():
                self._shard.on_ring(message, now)
            case ReplayResponse():
                self._shard.on_replay_response(message, now)
            case HistoryResponse():
                self._shard.on_history_response(message, now)
            case StateSnapshot():
                self._shard.on_snapshot(message, now)
            case DrainCommand():
                self._start_drain(None)
            case UndrainCommand():
                if self._shard.cancel_drain(now):
                    self._link.send_join()  # which says that it takes users again
            case Diagnose():
                logger.warning("diagnosis", reason=message.reason, **diagnose(self._shard, self._reporter, now))
            case IndexTaken() if self._is_starting:  # as long as it has nobody, it can wait
                self._sampler.write(
                    "warning",
                    "shard_index_taken",
                    shard=self._shard.index,
                    held_by=message.held_by,
                    hint="a process on another host runs as this shard; this one waits until that has ended: end it, "
                    "or name another index",
                )
            case Superseded() | IndexTaken():
                logger.error(
                    "shard_superseded",
                    shard=self._shard.index,
                    hint="another process runs as this shard; this one exits",
                )
                self._end_process()  # a further hello would take the place back
            case Lease():
                self._shard.on_lease(message, now)
            case DisconnectCommand():
                closed = self._shard.disconnect(message.user)
                self._link.send(DisconnectReport(message.request, closed))
            case RevocationUpdate():
                self._revoke(message, now)
            case UserConnectedElsewhere():
                self._shard.on_newer_elsewhere(message)
            case Fenced():
                logger.error(
                    "shard_fenced",
                    shard=self._shard.index,
                    reason=message.reason,
                    hint="this process exits and is restarted; please report this bug",
                )
                self._end_process()
            case _:
                logger.warning(
                    "unexpected_message", kind=type(message).__name__, hint="do all processes run one version?"
                )
        if self._is_starting and self._shard.can_take_users:
            self._is_starting = False
            self._link.send_join()  # from now on it may be in the ring
        if self._shard.is_ready != self._was_ready:
            self._was_ready = self._shard.is_ready
            logger.info("shard_ready" if self._was_ready else "shard_not_ready", shard=self._shard.index)
            if self._was_ready:
                process.report_ready()
        self._schedule_run()

    def _revoke(self, message: RevocationUpdate, now: float) -> None:
        fresh, known = self._tokens.revocations.apply_update(message)
        if known is not None:
            self._link.send(known)
        closed = self._shard.revoke(fresh, now)
        if fresh:
            logger.info("tokens_revoked", shard=self._shard.index, revocations=len(fresh), connections=closed)

    def _end_process(self) -> None:
        self._status = 1
        self._link.close(goodbye=False)  # its users are still here
        self._done.set()

    def _send_ack(self) -> None:
        self._acks.mark_sent(self._loop.time())
        self._acked_version = self._shard.completed_version
        self._link.send(
            LogAck(self._shard.epoch, self._shard.log.position, self._settings.shard.credit_events, self._acked_version)
        )

    def _send_arrivals(self) -> None:
        self._sends_arrivals = False
        self._link.send(UsersConnected(self._shard.take_arrivals()))

    def _perform(self) -> None:
        """Does what the shard has decided, and can't do itself."""
        for question in self._shard.take_questions():
            self._link.send(question)
        if self._shard.has_arrivals and not self._sends_arrivals:
            self._sends_arrivals = True  # all that come in one turn of the loop at once
            self._loop.call_soon(self._send_arrivals)
        for pending in self._shard.take_pending_refreshes():
            task = self._loop.create_task(self._await_keys(pending))
            self._waiting_for_keys.add(task)
            task.add_done_callback(self._waiting_for_keys.discard)

    def _schedule_run(self) -> None:
        """After anything that the shard was told: does what it has decided, and sets its one timer."""
        self._perform()
        if self._shard.completed_version != self._acked_version or self._loop.time() >= self._acks.due_at:
            self._send_ack()
        if self._shard.wants_lease_report and self._link.is_router_alive:
            self._link.send(self._shard.lease_usage_report(self._loop.time()))
        if self._shard.is_drained:
            self._done.set()
        due = min(self._shard.next_due(), self._acks.due_at)
        if self._timer is not None:
            if self._timer_due_at <= due:
                return
            self._timer.cancel()
        self._timer_due_at = due
        self._timer = self._loop.call_at(due, self._run) if due != float("inf") else None

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._shard.run(self._loop.time())
        self._schedule_run()

    def _wall_offset(self) -> float:
        return time.time() - self._loop.time()

    def _collect_samples(self) -> Iterator[Sample]:
        yield from read_shard_samples(self._shard, self._reporter, self._client_port.rejections, self._loop.time())
        yield "pending_connections", "Sockets that have not sent a whole request head.", self._listener.pending_count
        yield (
            "pending_connections_rejected_total",
            "Sockets closed on accept because too many were pending.",
            self._listener.refused_count,
        )
        yield "backplane_decode_errors_total", "Messages of the router that failed to decode.", self._link.dropped_count
        yield from read_tls_samples(self._tls)
        yield from read_process_samples(self._vitals, self._audit, self._tracer)


def _listen_for_api(settings: Settings, index: int) -> tuple[socket.socket, str]:
    """The listening socket of the HTTP API, and its address as others of the system reach it. Raises ConfigError."""
    place = settings.find_shard_api(index)
    if isinstance(place, Path):
        return listen_unix(place), api_address(place)
    sock = listen(*place)
    host = place[0]
    if settings.is_networked or is_wildcard(host):
        host = settings.find_advertised_host()
    return sock, api_address((host, sock.getsockname()[1]))


def compute_capacity(files: int) -> int:
    """How many connections a shard can have with so many open files; a tenth is kept for those that are shaking hands.

    Raises ConfigError if that is next to none.
    """
    if files < FEWEST_FILES:
        raise ConfigError(f"the limit of open files is {files}: a shard needs {FEWEST_FILES}; raise it (ulimit -n)")
    usable = files - OTHER_FILES
    return usable - max(10, usable // 10)
