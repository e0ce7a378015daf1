"""The router's decisions: who is there, what is in the log, who gets what of it.

What it keeps true: a publisher is answered after the journal has kept its events, and nobody is given an event before;
how many connections each shard may have is the coordinator's to say, and what that must know again is in the journal
before anybody hears of it; so is the ring (`ring_announcer`). Publishers are answered later, or refused, as long as a
shard or the journal can't follow (`solowire.router.log.backpressure`). They take turns by what they send, so that none
waits for all that another has sent before it (`solowire.router.log.publish_queue`).

It receives a message and the time, and calls `send(peer, message)`, which returns whether the bus took it. A part of
the log that is not taken is made again when the shard acks or at the next tick; a ring that is not, when the peer sees
in a HeartbeatResponse that it knows an older one.

The file is long because each kind of message has its few lines here, in which the order of what is told matters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.histogram import Histogram
from solowire.algorithms.log_sampler import LogSampler
from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.algorithms.warning_pace import WarningPace
from solowire.backplane.messages import (
    VERSION,
    Diagnose,
    DisconnectReport,
    DisconnectRequest,
    DrainRequest,
    Fenced,
    Heartbeat,
    HeartbeatResponse,
    HistoryCancel,
    HistoryRequest,
    IndexTaken,
    Join,
    KnownRevocations,
    Lease,
    LeaseUsage,
    Leave,
    LogAck,
    PeerMessage,
    PublishAck,
    PublishedEvent,
    PublishNack,
    PublishRequest,
    RejoinRequired,
    ReplayCancel,
    ReplayRequest,
    RevokeRequest,
    RouterMessage,
    ShardAddress,
    StartDraining,
    StatsRequest,
    StatsResponse,
    Superseded,
    UndrainRequest,
    UnrevokeRequest,
    UserConnectedElsewhere,
    UsersConnected,
)
from solowire.observability.tracer import Tracer
from solowire.router.access.access_control import AccessControl
from solowire.router.drains import Drains
from solowire.router.history.history_queue import HistoryQueue
from solowire.router.leases.coordinator import Coordinator, LeaseViolation
from solowire.router.log.backpressure import (
    BackpressureState,
    OffsetTimeIndex,
    ShardLag,
    evaluate_backpressure,
)
from solowire.router.log.commit_traces import CommitTraces
from solowire.router.log.journal import Journal, JournalHole, JournalUnavailable
from solowire.router.log.known_ids import AppendResult
from solowire.router.log.present_states import PresentStates
from solowire.router.log.publish_queue import PublishQueue, QueuedRequest
from solowire.router.log.publisher_load import EVENT_BYTES, MAX_PUBLISHERS, PublisherLoad
from solowire.router.log.replay_queue import ReplayQueue
from solowire.router.log.shard_cursor import ShardCursor
from solowire.router.membership import Membership
from solowire.router.monitoring.monitor import Monitor, MonitorResult
from solowire.router.monitoring.shard_reports import ShardReports
from solowire.router.ring_announcer import RingAnnouncer
from solowire.runtime.settings.limits_settings import LimitsSettings
from solowire.runtime.settings.publish_settings import PublishSettings

logger = structlog.get_logger("solowire.router")

GROUP_EVENTS = 100
GROUP_SECONDS = 0.005
"""A commit takes up to so many events, or all of so long; the first after a pause doesn't wait."""
SLOW_GROUP_EVENTS = 10_000
"""The same where commits take longer than GROUP_SECONDS: a slow disk is asked less often, for more at a time."""

MAX_DELAYED_ANSWERS = 10_000
"""Answers that are held back; beyond it the oldest leaves early. Gateways have a bound of their own, far below."""
TURN_SECONDS = 0.005
"""Requests are appended for so long at a time, and a commit, before those that have come meanwhile are read."""
EVALUATE_SECONDS = 0.05
"""How old the last look at the shards' lag may be."""

BYTES_SLACK_SECONDS = 1.0
"""So much more of a publisher's rate in bytes may come at once than one gateway lets through: it comes in heaps."""

UNAVAILABLE_SECONDS = 1.0
"""When a publisher is to try again whose events the journal could not keep."""

MAX_INTERNAL_EVENTS = 1000
"""Events of the router's own that wait for a journal that takes nothing; the oldest are given up, and were logged."""


class HistoryQuestions(Protocol):
    """Where questions about history go: they are answered beside the router (`solowire.router.history`)."""

    def add_question(self, peer: bytes, question: HistoryRequest) -> None: ...

    def cancel_question(self, peer: bytes, request: int) -> None: ...

    def forget_peer(self, peer: bytes) -> None: ...


class Router:
    """The only writer of the log and of the ring. Times are seconds, monotonic; wall_offset makes them unix seconds.

    stopwatch: reads a clock, in seconds, to learn how long a commit takes. publish: says when publishers feel a lag.
    sampler: for log lines that a peer can cause at will. tracer: where spans go, if they go anywhere.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[bytes, RouterMessage], bool],
        *,
        now: float = 0.0,
        wall_offset: float = 0.0,
        limits: LimitsSettings | None = None,
        stopwatch: Callable[[], float] = lambda: 0.0,
        publish: PublishSettings | None = None,
        monitor: Monitor | None = None,
        audit: Callable[..., None] = lambda event, **fields: None,
        sampler: LogSampler | None = None,
        history: HistoryQuestions | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._history = history if history is not None else HistoryQueue()
        self._sampler = sampler or LogSampler(logger)
        self._rival_pace = WarningPace()  # it asks twice a second, for as long as it has to wait
        self._traces = None if tracer is None else CommitTraces(tracer)
        self.journal = journal
        self.members = Membership()
        self.coordinator = Coordinator(
            limits or LimitsSettings(), now, now + wall_offset, journal.get_metadata_item("leases")
        )
        self.access = AccessControl(journal, self.members, send, audit, now + wall_offset)
        self.drains = Drains(journal, self.members, send, audit)
        self.wall_offset = wall_offset
        self.events = 0
        self.duplicates = 0
        self.dropped_count = 0  # messages that could not be decoded
        self.publish_rejections: Counter[str] = Counter()  # by error code
        self.commit_times = Histogram()  # of commits that kept something
        self.backpressure = BackpressureState()
        self._publisher_load = PublisherLoad()
        self.publishes = PublishQueue()
        self.monitor = monitor
        self._audit = audit
        self._internal_events: deque[PublishedEvent] = deque(maxlen=MAX_INTERNAL_EVENTS)  # not in the log yet
        self._has_internal_pending = False  # whether they stand in the journal's open group
        self._send = send
        self._states = PresentStates(journal)
        self._cursors: dict[bytes, ShardCursor] = {}
        self._unanswered: list[
            tuple[bytes, int, AppendResult, bool]
        ] = []  # of the journal's open group; if it may be slowed
        self._committed_at = float("-inf")
        self._is_unavailable = False
        self._stopwatch = stopwatch
        self.replays = ReplayQueue(journal, send, self._is_caught_up, stopwatch)
        self._publish_settings = publish = publish or PublishSettings()
        burst = publish.burst_bytes + BYTES_SLACK_SECONDS * publish.bytes_per_s
        self._byte_buckets = BucketTable(Rate(publish.bytes_per_s, burst), MAX_PUBLISHERS)
        self._offset_times = OffsetTimeIndex(publish.lag_hard_s)
        self._last_commit_s = 0.0
        self._usual_commit_s = 0.0  # the shorter of the last two: one that was long says nothing of the next
        self._evaluated_at = float("-inf")
        self._delayed_answers: deque[tuple[float, bytes, PublishAck]] = (
            deque()
        )  # answers, with the time of their commit
        self._announcer = RingAnnouncer(journal, self.members, self._cursors, send, self._sampler, now)
        self.reports = ShardReports(journal, self.members, self._cursors)

    @property
    def is_journal_available(self) -> bool:
        """Whether the journal has taken what came last, and its file is there."""
        return not self._is_unavailable and not self.journal.is_gone

    def receive(self, peer: bytes, message: PeerMessage, now: float) -> None:
        match message:
            case PublishRequest():
                self._on_publish(peer, message, now)
            case LogAck():
                shard_cursor = self._cursors.get(peer)
                if shard_cursor is not None and message.epoch == self.journal.epoch:
                    shard_cursor.rebalance_done(message.rebalanced_version)
                    shard_cursor.ack(min(message.offset, self.journal.last_offset), message.credit)
                    self._send_pending(shard_cursor)
            case Heartbeat():
                if self.members.record_heartbeat(peer, message.incarnation, message.stats, now):
                    self._on_heartbeat(peer, message.lease_usage, now)
                else:
                    self._send(peer, RejoinRequired())
            case LeaseUsage():
                if self.members.get_peer(peer) is not None:
                    for name, lease in self._on_lease_usage(peer, message, now):
                        self._send(name, lease)
            case UsersConnected():
                self._on_users_connected(peer, message)
            case Join():
                self._on_join(peer, message, now)
            case ReplayRequest():
                self.replays.add(peer, message, now)
            case ReplayCancel():
                self.replays.cancel(peer, message.request)
            case HistoryRequest():
                self._history.add_question(peer, message)
            case HistoryCancel():
                self._history.cancel_question(peer, message.request)
            case StatsRequest():
                self._send(peer, self._make_stats_response(message))
            case DrainRequest() | UndrainRequest():
                self.drains.receive(peer, message)
            case DisconnectRequest() | DisconnectReport() | RevokeRequest() | UnrevokeRequest() | KnownRevocations():
                self.access.receive(peer, message, now, now + self.wall_offset)
            case StartDraining():
                self.members.mark_draining(peer)
                self.coordinator.registry.mark_draining(peer)
                self._announcer.announce_change("shard_draining", peer, [])
            case Leave():
                left = self.members.get_peer(peer)
                if left is not None and left.address is not None and left.is_draining:
                    self.drains.complete(left.address.index)
                self._drop_cursor(peer)
                self.members.remove_peer(peer)
                self.coordinator.registry.drop_shard(peer)
                self._announcer.announce_change("shard_left", peer, [])

    # ------------------------------------------------------------------------------------------------- the log

    def _on_publish(self, peer: bytes, message: PublishRequest, now: float) -> None:
        retry_after, is_heavy = self.backpressure.retry_after, self._publisher_load.is_heavy(message.publisher)
        if retry_after is not None and (is_heavy or self.backpressure.is_refusing_all):
            self.publish_rejections["overloaded"] += 1
            reason = "a shard or the journal can't follow: it is SOLOWIRE_PUBLISH__LAG_HARD_S or more behind"
            self._send(peer, PublishNack(message.request, "overloaded", reason, retry_after))
            return
        size = sum(len(event.body) for event in message.events)
        if wait := self._byte_buckets.wait_seconds(message.publisher, now, size):
            self.publish_rejections["publish_rate_limited"] += 1
            limit = self._publish_settings.bytes_per_s / 2**20
            reason = f"the log takes {limit:.3g} MiB of events a second from one publisher, over all gateways"
            self._send(peer, PublishNack(message.request, "publish_rate_limited", reason, wait))
            return
        self._byte_buckets.charge_tokens(message.publisher, now, size)
        size += EVENT_BYTES * len(message.events)
        self._publisher_load.add(message.publisher, size, now)
        self.publishes.add(QueuedRequest(peer, message, is_heavy), size)

    def _append_requests(self, now: float) -> None:
        """Appends requests, whose turn it is first, and keeps each whole group; some wait if that takes long."""
        began = self._stopwatch()
        while self.publishes:
            peer, message, is_heavy = self.publishes.take_next()
            appended = self.journal.append(message.events, now + self.wall_offset, message.publisher)
            self._states.note(message.events, appended, message.publisher)
            if message.traces and self._traces is not None:
                self._traces.note_request(message.traces, appended)
            self._unanswered.append((peer, message.request, appended, is_heavy))
            if self.journal.pending_count >= (
                GROUP_EVENTS if self._usual_commit_s <= GROUP_SECONDS else SLOW_GROUP_EVENTS
            ):
                self._commit(now)
            if self._stopwatch() - began >= TURN_SECONDS:
                return

    def append_all(self, now: float) -> None:
        """Appends all that has come, and keeps it: nothing comes any more."""
        while self.publishes:
            self._append_requests(now)
        self._commit(now)

    def dispatch(self, now: float) -> float | None:
        """Keeps what has come and sends every shard what is new for it; returns when it wants to be called again.

        Called once after each turn of arrivals, so that under load they go in batches without a timer. What has come
        is appended for TURN_SECONDS at a time, so that who comes now is heard before the rest has its turn.
        """
        self._append_requests(now)
        if self._unanswered:
            due = self._committed_at + GROUP_SECONDS
            if now >= due:
                self._commit(now)
            elif not self.publishes:
                return due
        for shard_cursor in self._cursors.values():
            self._send_pending(shard_cursor)
        if now - self._evaluated_at >= EVALUATE_SECONDS or self._last_commit_s >= EVALUATE_SECONDS:
            self._update_backpressure(now)
        return now if self.publishes else None

    def release_answers(self, now: float) -> bool:
        """Sends the answers that have been held back for long enough; whether there are more, to call again for."""
        delayed, delay = self._delayed_answers, self.backpressure.delay
        while delayed and (delayed[0][0] + delay <= now or len(delayed) > MAX_DELAYED_ANSWERS):
            _, peer, answer = delayed.popleft()
            self._send(peer, answer)
        return bool(delayed)

    def _update_backpressure(self, now: float) -> None:
        """At how far the shards are behind, and what publishers are to feel of it."""
        self._evaluated_at = now
        lags = []
        for member in self.members:
            shard_cursor = self._cursors.get(member.name)
            if shard_cursor is None or member.is_draining or member.is_presumed:
                continue
            first_unacked = shard_cursor.first_unacked
            lag = (
                self._offset_times.find_age(first_unacked, member.last_heard_at)
                if first_unacked <= self.journal.last_offset
                else 0.0
            )
            shard_cursor.is_caught_up = shard_cursor.is_caught_up or lag < self._publish_settings.lag_soft_s
            lags.append(ShardLag(lag, shard_cursor.is_caught_up, now - shard_cursor.joined_at))
        before, self.backpressure = (
            self.backpressure,
            evaluate_backpressure(lags, self._last_commit_s, self._publish_settings),
        )
        if (before.retry_after is None) != (self.backpressure.retry_after is None):
            lag = max((shard_lag.lag for shard_lag in lags), default=0.0)
            event = "publish_resumed" if self.backpressure.retry_after is None else "publish_overloaded"
            hint = "lag_s: a shard is behind; commit_s: the disk of the journal is slow"
            commit_s = round(self._last_commit_s, 3)
            logger.warning(
                event, lag_s=round(lag, 2), commit_s=commit_s, rejected=self.publish_rejections.total(), hint=hint
            )

    def _commit(self, now: float) -> None:
        answers, self._unanswered = self._unanswered, []
        has_events = self.journal.pending_count > 0
        first, began = self.journal.last_offset + 1, self._stopwatch()
        own_open, self._has_internal_pending = self._has_internal_pending, False
        try:
            self.journal.commit(now + self.wall_offset)
        except JournalUnavailable as error:
            self._states.forget_group()
            if not self._is_unavailable:
                logger.critical("journal_unavailable", reason=str(error), hint=error.hint)
            self._is_unavailable = True
            self.publish_rejections["journal_unavailable"] += len(answers)
            if self._traces is not None:
                self._traces.finish_group((), "journal_unavailable")
            for peer, request, *_ in answers:
                self._send(peer, PublishNack(request, "journal_unavailable", str(error), UNAVAILABLE_SECONDS))
            return
        finally:
            took = self._stopwatch() - began
            self._usual_commit_s, self._last_commit_s = min(self._last_commit_s, took), took
            if has_events:
                self.commit_times.add(took)
            # On a slow disk from its end: what has come meanwhile is to be taken before the next.
            self._committed_at = now if self._usual_commit_s <= GROUP_SECONDS else now + took
        self._states.keep_group()
        if self._traces is not None:
            self._traces.finish_group(self._cursors)
        if self.journal.last_offset >= first:
            self._offset_times.record_offset(first, now)
        if own_open:
            self._internal_events.clear()
        if self._is_unavailable and answers:
            self._is_unavailable = False
            logger.warning("journal_available", hint="publish requests are accepted again")
        for peer, request, appended, is_heavy in answers:
            self.events += len(appended.offsets) - len(appended.duplicates)
            self.duplicates += len(appended.duplicates)
            answer = PublishAck(request, self.journal.epoch, *appended)
            if is_heavy and (self._delayed_answers or self.backpressure.delay):
                self._delayed_answers.append((now, peer, answer))
            else:
                self._send(peer, answer)
        self.release_answers(now)

    def _send_pending(self, shard_cursor: ShardCursor) -> None:
        try:
            while (message := shard_cursor.next_batch(self.journal)) is not None:
                traces = self._traces if self._traces is not None and self._traces.live else None
                if traces is not None:
                    traces.mark_batch(shard_cursor.peer, shard_cursor.shard, message)
                if not self._send(shard_cursor.peer, message):
                    shard_cursor.mark_not_sent(message)
                    return
                shard_cursor.mark_sent(message)
                if traces is not None:
                    traces.note_sent(shard_cursor.peer, message)
        except JournalHole as hole:
            hint = "the file of the journal is damaged: events are lost; restore it, or move it away to begin a new log"
            logger.error(
                "journal_gap_detected", shard=shard_cursor.shard, reason=str(hole), goes_on_behind=hole.upto, hint=hint
            )
            shard_cursor.skip_to(hole.upto)  # what lies before it was sent, or is given up with it
        except JournalUnavailable as error:
            hint = "it is tried again; check the disk of the journal"
            self._sampler.write("error", "journal_unreadable", shard=shard_cursor.shard, reason=str(error), hint=hint)

    def _send_progress(self, shard_cursor: ShardCursor) -> None:
        self._send_pending(shard_cursor)
        message = shard_cursor.progress_message(self.journal.epoch)
        if message is not None and self._send(shard_cursor.peer, message):
            shard_cursor.mark_sent(message)

    def _is_caught_up(self, peer: bytes) -> bool:
        """Whether all of the log that is a shard's business is on its way to it.

        Whoever comes from a shard that was ahead of this one is ahead of it, too: it should not be for long.
        """
        shard_cursor = self._cursors.get(peer)
        if shard_cursor is not None:
            self._send_progress(shard_cursor)
        return shard_cursor is None or shard_cursor.cursor >= self.journal.last_offset

    # ------------------------------------------------------------------------------------------------- the peers

    def tick(self, now: float) -> None:
        """Twice a second: who has been silent, and who must be told how far the log has gone."""
        silent = self.members.tick(now)
        for peer in silent:
            self._drop_cursor(peer.name)
            self.coordinator.registry.mark_lost(peer.name)
            hint = "it has exited or hangs; see its own log"
            logger.warning("peer_timed_out", peer=peer.name.decode(errors="replace"), hint=hint)
        self._announcer.announce_change(
            "shard_lost", b"", [(p.address.index, p.stats.connections) for p in silent if p.address]
        )
        for name, lease in self.coordinator.tick(now):
            self._send(name, lease)
        self.access.tick(now, now + self.wall_offset)
        self._persist_leases(now)
        self._publish_monitoring(now)
        self._commit(now)  # also with nothing to keep: the journal forgets what is too old
        for shard_cursor in self._cursors.values():
            self._send_progress(shard_cursor)
        self._update_backpressure(now)
        self.release_answers(now)
        if self._traces is not None:
            self._traces.forget_old()

    def _publish_monitoring(self, now: float) -> None:
        """Alerts and statistics go the way of every event, but that nobody waits for an answer: who may, gets them."""
        if self.monitor is None:
            return
        reports = list(self.reports)
        gateways = [(member.name, member.stats) for member in self.members if member.address is None]
        result = MonitorResult([], [])
        try:
            result = self.monitor.check_processes(
                reports, gateways, self.journal.last_offset, now, now + self.wall_offset
            )
        except Exception:  # whatever is wrong with the numbers, the log goes on
            logger.exception("monitor_failed")
        self._internal_events.extend(result.events)
        if self._internal_events:
            events = list(self._internal_events)
            self._states.note(events, self.journal.append(events, now + self.wall_offset), "")
            self._has_internal_pending = True
        for shard, reason in result.diagnoses:
            self._send(shard, Diagnose(reason))

    def _on_join(self, peer: bytes, message: Join, now: float) -> None:
        if message.version != VERSION:
            name, hint = peer.decode(errors="replace"), "it is ignored; install one version for all processes"
            self._sampler.write("error", "version_mismatch", peer=name, theirs=message.version, ours=VERSION, hint=hint)
            return
        if message.incarnation in self.coordinator.fenced:
            self._send(peer, Fenced("it has been fenced off"))
            return
        rival = self.members.find_rival(peer, message)
        if rival is not None and rival.address is not None:
            self._refuse_rival(peer, rival.address, now)
            return
        self.drains.repeat_command(peer, message)
        is_draining = message.is_draining or (message.shard is not None and self.drains.is_wanted(message.shard.index))
        for other in self.members.add_peer(peer, msgspec.structs.replace(message, is_draining=is_draining), now):
            name, hint = (
                other.name.decode(errors="replace"),
                "another process joined as this shard; the older one exits",
            )
            self._sampler.write("warning", "shard_superseded", peer=name, hint=hint)
            self._drop_cursor(other.name)
            self.coordinator.registry.mark_lost(other.name)
            self._send(other.name, Superseded())
        if message.shard is not None:
            holder = self.coordinator.registry.live.get(peer)
            has_left = holder is not None and holder.is_draining
            self.coordinator.registry.add_shard(peer, message.shard, now)
            if is_draining:
                self.coordinator.registry.mark_draining(peer)
            elif has_left:
                for shard, lease in self.coordinator.readmit(peer):
                    self._send(shard, lease)
                self._persist_leases(now)
        self.access.on_join(peer, message)
        shard_cursor = self._make_cursor(peer, message, now)
        if not self._announcer.announce_change("shard_joined", peer, []):
            self._announcer.send_state(peer)
        if shard_cursor is not None:
            if message.epoch != self.journal.epoch:
                self._send(peer, self._states.make_snapshot(shard_cursor.cursor))
            self._send_pending(shard_cursor)

    def _refuse_rival(self, peer: bytes, holder: ShardAddress, now: float) -> None:
        """Tells a process that the shard is another one: it waits, or ends if it has been the shard itself before."""
        name = peer.decode(errors="replace")
        if self._rival_pace.is_due(name, now):
            hint = (
                "two hosts run a shard with the same index: give one of them another; if the one that has it is gone, "
                "its place is free when it has been silent for some seconds"
            )
            logger.warning("shard_index_taken", peer=name, shard=holder.index, held_by=holder.authority, hint=hint)
        self._send(peer, IndexTaken(holder.authority))

    def _on_users_connected(self, peer: bytes, message: UsersConnected) -> None:
        """Tells the shards that may still have a user. Of each connection that begins: there are none, mostly."""
        owner = self._cursors.get(peer)
        if owner is None:
            return
        others = [shard_cursor for shard_cursor in self._cursors.values() if shard_cursor is not owner]
        for user, connections in message.users if others else ():
            if self._announcer.ring.owner(user) != owner.shard:
                continue  # by an older ring, or from outside it: the newer connections are those of its shard now
            for shard_cursor in others:
                if shard_cursor.has_owned(user):
                    self._send(shard_cursor.peer, UserConnectedElsewhere(user, connections))

    # ------------------------------------------------------------------------------------------------- the leases

    def _on_heartbeat(self, peer: bytes, slots: LeaseUsage | None, now: float) -> None:
        """Answers a heartbeat, with what a shard or a gateway needs to know of the limits."""
        lease, admission_state, others = None, None, []
        member = self.members.get_peer(peer)
        if slots is not None:
            leases = self._on_lease_usage(peer, slots, now)
            lease, others = (leases[0][1], leases[1:]) if leases and leases[0][0] == peer else (None, leases)
            if self.members.get_peer(peer) is None:
                return  # fenced off
        elif member is not None and member.address is None:
            admission_state = self.coordinator.admission_state(self.members.gateway_count)
            admission_state.is_journal_gone = self.journal.is_gone
        self._send(
            peer,
            HeartbeatResponse(
                self.journal.epoch, self.members.version, lease, admission_state, self.access.revocations_version
            ),
        )
        for name, other in others:
            self._send(name, other)

    def _on_lease_usage(self, peer: bytes, slots: LeaseUsage, now: float) -> list[tuple[bytes, Lease]]:
        """Whom to tell what, now that a shard has told what it uses; first the shard itself."""
        try:
            leases = self.coordinator.on_usage_report(peer, slots, now)
        except LeaseViolation as violation:
            name, hint = (
                peer.decode(errors="replace"),
                "it reported what can't be true of its lease, and restarts; please report this bug",
            )
            self._sampler.write("error", "shard_fenced", peer=name, reason=str(violation), hint=hint)
            self.coordinator.fence_off(peer)
            self._drop_cursor(peer)
            self._send(peer, Fenced(str(violation)))
            self.members.remove_peer(peer)
            self._announcer.announce_change("shard_fenced", peer, [])
            return []
        self._persist_leases(now)
        return leases

    def confirm_dead(self, incarnation: str) -> None:
        """A shard's process that was not heard of has ended; what it held may be granted to others from now on."""
        logger.info("shard_confirmed_dead", incarnation=incarnation)
        self.coordinator.registry.confirm_dead(incarnation)

    def _persist_leases(self, now: float) -> None:
        snapshot = self.coordinator.snapshot(now)
        if snapshot is not None:
            self.journal.put_metadata_item("leases", snapshot)

    def _drop_cursor(self, peer: bytes) -> None:
        self._cursors.pop(peer, None)
        self.replays.forget(peer)
        self._history.forget_peer(peer)

    def _make_cursor(self, peer: bytes, message: Join, now: float) -> ShardCursor | None:
        if message.shard is None:
            return None
        journal = self.journal
        if message.epoch == journal.epoch:
            # A cursor from the future of this log would wait for events that never come.
            cursor = min(message.offset, journal.last_offset)
        else:
            cursor = (
                max(journal.start_offset, journal.last_offset - message.initial_backlog)
                if message.initial_backlog
                else journal.start_offset
            )
        ring = Ring(s.index for s in self.members.shards)
        shard_cursor = ShardCursor(message.shard.index, peer, cursor, message.credit, ring, self.members.version)
        before = self._cursors.get(peer)
        shard_cursor.is_caught_up = before is not None and before.is_caught_up
        shard_cursor.joined_at = now if before is None else before.joined_at
        self._cursors[peer] = shard_cursor
        return shard_cursor

    def _make_stats_response(self, message: StatsRequest) -> StatsResponse:
        journal = self.journal
        gateways = [member.stats for member in self.members if member.address is None]
        return StatsResponse(
            message.request,
            journal.epoch,
            journal.last_offset,
            self.events,
            self.duplicates,
            self.reports.list_present(),
            len(gateways),
            sum(stats.connections_rejected for stats in gateways),
            sum(stats.connections_rejected_per_s for stats in gateways),
        )
