"""The router's decisions: who is there, what is in the log, who gets what of it.

What it keeps true: a publisher is answered after the journal has kept its events, and nobody is given an event before;
the ring and its version outlive the process, in the journal, so that a restart moves nobody. How many connections each
shard may have is the coordinator's to say; what it must know again is in the journal, too, before anybody hears of it.
Publishers are answered later, or refused, as long as a shard or the journal can't follow
(`solowire.router.log.backpressure`).

It receives a message and the time, and calls `send(peer, message)`, which returns whether the bus took it. A part of
the log that is not taken is made again when the shard acks or at the next tick; a ring that is not, when the peer sees
in a Beat that it knows an older one.

The file is long because each kind of message has its few lines here, in which the order of what is told matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane.messages import (
    VERSION,
    Ack,
    Answer,
    Ask,
    Beat,
    Came,
    Diagnose,
    Disconnected,
    DisconnectUser,
    Drain,
    Draining,
    DrainNow,
    Elsewhere,
    Fenced,
    Goodbye,
    Heartbeat,
    Hello,
    KnownRevocations,
    Lease,
    Leave,
    NotPublished,
    PeerMessage,
    Publish,
    Published,
    PublishedEvent,
    Replay,
    ReplayCancel,
    Revoke,
    RingState,
    RouterMessage,
    ShardAddress,
    ShardReport,
    Slots,
    States,
    StopDraining,
    Superseded,
    Undrain,
    Unrevoke,
    Who,
)
from solowire.router.access.access_control import AccessControl
from solowire.router.leases.config import Limits
from solowire.router.leases.coordinator import Coordinator, Lie
from solowire.router.log.backpressure import DEFAULT_PATIENCE, Follower, Marks, Patience, Pressure, pressure
from solowire.router.log.journal import Appended, Journal, JournalHole, JournalUnavailable
from solowire.router.log.publisher_load import EVENT_BYTES, PublisherLoad
from solowire.router.log.replay_queue import ReplayQueue, present_states
from solowire.router.log.shard_cursor import Outlet
from solowire.router.membership import Membership, Peer
from solowire.router.monitoring.monitor import Said, Watch

log = structlog.get_logger("solowire.router")

GROUP_EVENTS = 100
GROUP_SECONDS = 0.005
"""A commit takes up to so many events, or all of so long; the first after a pause doesn't wait."""
SLOW_GROUP_EVENTS = 10_000
"""The same where commits take longer than GROUP_SECONDS: a slow disk is asked less often, for more at a time."""

MAX_HELD = 10_000
"""Answers that are held back; beyond it the oldest leaves early. Gateways have a bound of their own, far below."""
LOOK_SECONDS = 0.05
"""How old the last look at the shards' lag may be."""

UNAVAILABLE_SECONDS = 1.0
"""When a publisher is to try again whose events the journal could not keep."""

MOST_OF_ITS_OWN = 1000
"""Events of the router's own that wait for a journal that takes nothing; the oldest are given up, and were logged."""


class _Ring(msgspec.Struct):
    """What the journal remembers of the ring."""

    version: int
    shards: list[ShardAddress]


def _recall_ring(journal: Journal) -> _Ring | None:
    kept = journal.recall("ring")
    try:
        return msgspec.msgpack.decode(kept, type=_Ring) if kept is not None else None
    except Exception as error:  # to be without it costs a move of users, and to stop would cost all
        log.error("note_unreadable", note="ring", reason=str(error), hint="the ring is made anew")
        return None


class Router:
    """The only writer of the log and of the ring. Times are seconds, monotonic; wall_offset makes them unix seconds.

    stopwatch: reads a clock, in seconds, to learn how long a commit takes. patience: when publishers feel a lag.
    sampler: for log lines that a peer can cause at will.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[bytes, RouterMessage], bool],
        *,
        now: float = 0.0,
        wall_offset: float = 0.0,
        limits: Limits | None = None,
        stopwatch: Callable[[], float] = lambda: 0.0,
        patience: Patience = DEFAULT_PATIENCE,
        watch: Watch | None = None,
        audit: Callable[..., None] = lambda event, **fields: None,
        sampler: LogSampler | None = None,
    ) -> None:
        self._sampler = sampler or LogSampler(log)
        self.journal = journal
        self.members = Membership()
        self.coordinator = Coordinator(limits or Limits(), now, now + wall_offset, journal.recall("leases"))
        self.access = AccessControl(journal, self.members, send, audit, now + wall_offset)
        self.wall_offset = wall_offset
        self.events = 0
        self.duplicates = 0
        self.dropped = 0  # messages that could not be decoded
        self.refused = 0  # publish requests, because of a lag
        self.pressure = Pressure()
        self._load = PublisherLoad()
        self.watch = watch
        self._audit = audit
        self._own: deque[PublishedEvent] = deque(maxlen=MOST_OF_ITS_OWN)  # not in the log yet
        self._own_open = False  # whether they stand in the journal's open group
        self._send = send
        self._outlets: dict[bytes, Outlet] = {}
        self._unanswered: list[
            tuple[bytes, int, Appended, bool]
        ] = []  # of the journal's open group; if it may be slowed
        self._committed_at = float("-inf")
        self._unavailable = False
        self._stopwatch = stopwatch
        self.replays = ReplayQueue(journal, send, self._is_level, stopwatch)
        self._patience = patience
        self._marks = Marks(patience.hard)
        self._commit_took = 0.0
        self._disk_slow = 0.0  # the shorter of the last two: one that was long says nothing of the next
        self._looked_at = float("-inf")
        self._held: deque[tuple[float, bytes, Published]] = deque()  # answers, with the time of their commit
        ring = _recall_ring(journal)
        if ring is not None:
            self.members.presume(ring.shards, ring.version, now)
        self._ring = Ring(s.index for s in self.members.shards)
        self._announced = self.members.version

    def receive(self, peer: bytes, message: PeerMessage, now: float) -> None:
        match message:
            case Publish():
                self._publish(peer, message, now)
            case Ack():
                outlet = self._outlets.get(peer)
                if outlet is not None and message.epoch == self.journal.epoch:
                    outlet.settled(message.settled)
                    outlet.ack(min(message.offset, self.journal.last), message.credit)
                    self._pump(outlet)
            case Heartbeat():
                if self.members.beat(peer, message.boot, message.stats, now):
                    self._beat(peer, message.slots, now)
                else:
                    self._send(peer, Who())
            case Slots():
                if self.members.get(peer) is not None:
                    for name, lease in self._leases(peer, message, now):
                        self._send(name, lease)
            case Came():
                self._came(peer, message)
            case Hello():
                self._hello(peer, message, now)
            case Replay():
                self.replays.add(peer, message, now)
            case ReplayCancel():
                self.replays.cancel(peer, message.request)
            case Ask():
                self._send(peer, self._answer(message))
            case Drain():
                member = self.members.shard(message.shard)
                asked = member is not None and self._send(member.name, DrainNow())
                users = member.stats.connections if member is not None and asked else None
                self._audit("draining", user=message.by, shard=message.shard, users=users)
                self._send(peer, Draining(message.request, users))
            case Undrain():
                member = self.members.shard(message.shard)
                asked = member is not None and member.leaving and self._send(member.name, StopDraining())
                users = member.stats.connections if member is not None and asked else None
                self._audit("undraining", user=message.by, shard=message.shard, users=users)
                self._send(peer, Draining(message.request, users))
            case DisconnectUser() | Disconnected() | Revoke() | Unrevoke() | KnownRevocations():
                self.access.receive(peer, message, now, now + self.wall_offset)
            case Leave():
                self.members.leave(peer)
                self.coordinator.holders.leaves(peer)
                self._tell_ring("shard_leaves", peer, [])
            case Goodbye():
                self._drop_outlet(peer)
                self.members.remove(peer)
                self.coordinator.holders.gone(peer)
                self._tell_ring("shard_left", peer, [])

    # ------------------------------------------------------------------------------------------------- the log

    def _publish(self, peer: bytes, message: Publish, now: float) -> None:
        retry_after, is_heavy = self.pressure.retry_after, self._load.is_heavy(message.publisher)
        if retry_after is not None and (is_heavy or self.pressure.refuses_all):
            self.refused += 1
            reason = "a shard or the journal can't follow: it is SOLOWIRE_LAG_HARD_S or more behind"
            self._send(peer, NotPublished(message.request, "overloaded", reason, retry_after))
            return
        appended = self.journal.append(message.events, now + self.wall_offset)
        self._load.add(message.publisher, sum(EVENT_BYTES + len(event.body) for event in message.events), now)
        self._unanswered.append((peer, message.request, appended, is_heavy))
        if self.journal.open >= (GROUP_EVENTS if self._disk_slow <= GROUP_SECONDS else SLOW_GROUP_EVENTS):
            self._commit(now)

    def dispatch(self, now: float) -> float | None:
        """Keeps what has come and sends every shard what is new for it; returns when it wants to be called again.

        Called once after each turn of arrivals, so that under load they go in batches without a timer.
        """
        if self._unanswered:
            due = self._committed_at + GROUP_SECONDS
            if now < due:
                return due
            self._commit(now)
        for outlet in self._outlets.values():
            self._pump(outlet)
        if now - self._looked_at >= LOOK_SECONDS or self._commit_took >= LOOK_SECONDS:
            self._look(now)
        return None

    def release(self, now: float) -> bool:
        """Sends the answers that have been held back for long enough; whether there are more, to call again for."""
        held, delay = self._held, self.pressure.delay
        while held and (held[0][0] + delay <= now or len(held) > MAX_HELD):
            _, peer, answer = held.popleft()
            self._send(peer, answer)
        return bool(held)

    def _look(self, now: float) -> None:
        """At how far the shards are behind, and what publishers are to feel of it."""
        self._looked_at = now
        followers = []
        for member in self.members:
            outlet = self._outlets.get(member.name)
            if outlet is None or member.leaving or member.presumed:
                continue
            owed = outlet.owed
            lag = self._marks.age(owed, member.heard_at) if owed <= self.journal.last else 0.0
            outlet.level = outlet.level or lag < self._patience.soft
            followers.append(Follower(lag, outlet.level, now - outlet.begun_at))
        before, self.pressure = self.pressure, pressure(followers, self._commit_took, self._patience)
        if (before.retry_after is None) != (self.pressure.retry_after is None):
            lag = max((follower.lag for follower in followers), default=0.0)
            said = "publishers_flow" if self.pressure.retry_after is None else "publishers_refused"
            hint = "lag_s: a shard is behind; commit_s: the disk of the journal is slow"
            commit_s = round(self._commit_took, 3)
            log.warning(said, lag_s=round(lag, 2), commit_s=commit_s, refused=self.refused, hint=hint)

    def _commit(self, now: float) -> None:
        answers, self._unanswered = self._unanswered, []
        first, began = self.journal.last + 1, self._stopwatch()
        own_open, self._own_open = self._own_open, False
        try:
            self.journal.commit(now + self.wall_offset)
        except JournalUnavailable as error:
            if not self._unavailable:
                log.critical("journal_unavailable", reason=str(error), hint="publishers are refused until it is again")
            self._unavailable = True
            for peer, request, *_ in answers:
                self._send(peer, NotPublished(request, "journal_unavailable", str(error), UNAVAILABLE_SECONDS))
            return
        finally:
            took = self._stopwatch() - began
            self._disk_slow, self._commit_took = min(self._commit_took, took), took
            # On a slow disk from its end: what has come meanwhile is to be taken before the next.
            self._committed_at = now if self._disk_slow <= GROUP_SECONDS else now + took
        if self.journal.last >= first:
            self._marks.kept(first, now)
        if own_open:
            self._own.clear()
        if self._unavailable and answers:
            self._unavailable = False
            log.warning("journal_available", hint="publishers are heard again")
        for peer, request, appended, is_heavy in answers:
            self.events += len(appended.offsets) - len(appended.duplicates)
            self.duplicates += len(appended.duplicates)
            answer = Published(request, self.journal.epoch, *appended)
            if is_heavy and (self._held or self.pressure.delay):
                self._held.append((now, peer, answer))
            else:
                self._send(peer, answer)
        self.release(now)

    def _pump(self, outlet: Outlet) -> None:
        try:
            while (message := outlet.next(self.journal)) is not None:
                if not self._send(outlet.peer, message):
                    outlet.not_sent(message)
                    return
                outlet.sent(message)
        except JournalHole as hole:
            hint = "the file of the journal is damaged: events are lost; restore it, or move it away to begin a new log"
            log.error("journal_hole", shard=outlet.shard, reason=str(hole), goes_on_behind=hole.upto, hint=hint)
            outlet.pass_over(hole.upto)  # what lies before it was sent, or is given up with it
        except JournalUnavailable as error:
            hint = "it is tried again; see the disk"
            self._sampler.write("error", "journal_unreadable", shard=outlet.shard, reason=str(error), hint=hint)

    def _catch_up(self, outlet: Outlet) -> None:
        self._pump(outlet)
        message = outlet.catch_up(self.journal.epoch)
        if message is not None and self._send(outlet.peer, message):
            outlet.sent(message)

    def _is_level(self, peer: bytes) -> bool:
        """Whether all of the log that is a shard's business is on its way to it.

        Whoever comes from a shard that was ahead of this one is ahead of it, too: it should not be for long.
        """
        outlet = self._outlets.get(peer)
        if outlet is not None:
            self._catch_up(outlet)
        return outlet is None or outlet.cursor >= self.journal.last

    # ------------------------------------------------------------------------------------------------- the peers

    def tick(self, now: float) -> None:
        """Twice a second: who has been silent, and who must be told how far the log has gone."""
        silent = self.members.tick(now)
        for peer in silent:
            self._drop_outlet(peer.name)
            self.coordinator.holders.lost(peer.name)
            hint = "it has ended or is stuck: its own log says why"
            log.warning("peer_silent", peer=peer.name.decode(errors="replace"), hint=hint)
        self._tell_ring("shard_lost", b"", [(p.address.index, p.stats.connections) for p in silent if p.address])
        for name, lease in self.coordinator.tick(now):
            self._send(name, lease)
        self.access.tick(now, now + self.wall_offset)
        self._note_leases(now)
        self._say_how_it_is(now)
        self._commit(now)  # also with nothing to keep: the journal forgets what is too old
        for outlet in self._outlets.values():
            self._catch_up(outlet)
        self._look(now)
        self.release(now)

    def _say_how_it_is(self, now: float) -> None:
        """Alerts and statistics go the way of every event, but that nobody waits for an answer: who may, gets them."""
        if self.watch is None:
            return
        reports = [(member.name, report) for member in self.members if (report := self._report(member)) is not None]
        gateways = [(member.name, member.stats) for member in self.members if member.address is None]
        said = Said([], [])
        try:
            said = self.watch.look(reports, gateways, self.journal.last, now, now + self.wall_offset)
        except Exception:  # whatever is wrong with the numbers, the log goes on
            log.exception("watch_failed")
        self._own.extend(said.events)
        if self._own:
            self.journal.append(list(self._own), now + self.wall_offset)
            self._own_open = True
        for shard, reason in said.diagnoses:
            self._send(shard, Diagnose(reason))

    def _hello(self, peer: bytes, message: Hello, now: float) -> None:
        if message.version != VERSION:
            name, hint = peer.decode(errors="replace"), "it is not heard: install the same version for all processes"
            self._sampler.write("error", "version_mismatch", peer=name, theirs=message.version, ours=VERSION, hint=hint)
            return
        if message.boot in self.coordinator.fenced:
            self._send(peer, Fenced("it has been fenced off"))
            return
        for other in self.members.hello(peer, message, now):
            name, hint = other.name.decode(errors="replace"), "another process began as this shard; the older one ends"
            self._sampler.write("warning", "shard_superseded", peer=name, hint=hint)
            self._drop_outlet(other.name)
            self.coordinator.holders.lost(other.name)
            self._send(other.name, Superseded())
        if message.shard is not None:
            holder = self.coordinator.holders.live.get(peer)
            has_left = holder is not None and holder.leaving
            self.coordinator.holders.joined(peer, message.shard, now)
            if message.leaving:
                self.coordinator.holders.leaves(peer)
            elif has_left:
                for shard, lease in self.coordinator.readmit(peer):
                    self._send(shard, lease)
                self._note_leases(now)
        self.access.greeted(peer, message)
        outlet = self._outlet(peer, message, now)
        if not self._tell_ring("shard_joined", peer, []):
            self._send(peer, self._ring_state(peer, []))
        if outlet is not None:
            if message.epoch != self.journal.epoch:
                self._send(peer, States(self.journal.epoch, outlet.cursor, present_states(self.journal, outlet.cursor)))
            self._pump(outlet)

    def _came(self, peer: bytes, message: Came) -> None:
        """Tells the shards that may still have a user. Of each connection that begins: there are none, mostly."""
        owner = self._outlets.get(peer)
        if owner is None:
            return
        others = [outlet for outlet in self._outlets.values() if outlet is not owner]
        for user, connections in message.users if others else ():
            if self._ring.owner(user) != owner.shard:
                continue  # by an older ring, or from outside it: the newer connections are those of its shard now
            for outlet in others:
                if outlet.owned(user):
                    self._send(outlet.peer, Elsewhere(user, connections))

    # ------------------------------------------------------------------------------------------------- the leases

    def _beat(self, peer: bytes, slots: Slots | None, now: float) -> None:
        """Answers a heartbeat, with what a shard or a gateway needs to know of the limits."""
        lease, doors, others = None, None, []
        member = self.members.get(peer)
        if slots is not None:
            leases = self._leases(peer, slots, now)
            lease, others = (leases[0][1], leases[1:]) if leases and leases[0][0] == peer else (None, leases)
            if self.members.get(peer) is None:
                return  # fenced off
        elif member is not None and member.address is None:
            doors = self.coordinator.doors(self.members.gateways)
        self._send(peer, Beat(self.journal.epoch, self.members.version, lease, doors, self.access.version))
        for name, other in others:
            self._send(name, other)

    def _leases(self, peer: bytes, slots: Slots, now: float) -> list[tuple[bytes, Lease]]:
        """Whom to tell what, now that a shard has told what it uses; first the shard itself."""
        try:
            leases = self.coordinator.reported(peer, slots, now)
        except Lie as lie:
            name, hint = peer.decode(errors="replace"), "a fault of that shard, which begins anew: report it"
            self._sampler.write("error", "shard_fenced_off", peer=name, reason=str(lie), hint=hint)
            self.coordinator.fence_off(peer)
            self._drop_outlet(peer)
            self._send(peer, Fenced(str(lie)))
            self.members.remove(peer)
            self._tell_ring("shard_fenced_off", peer, [])
            return []
        self._note_leases(now)
        return leases

    def ended(self, boot: str) -> None:
        """A shard's process that was not heard of has ended; what it held may be granted to others from now on."""
        log.info("absent_shard_ended", boot=boot)
        self.coordinator.holders.ended(boot)

    def _note_leases(self, now: float) -> None:
        word = self.coordinator.word(now)
        if word is not None:
            self.journal.note("leases", word)

    def _drop_outlet(self, peer: bytes) -> None:
        self._outlets.pop(peer, None)
        self.replays.forget(peer)

    def _outlet(self, peer: bytes, message: Hello, now: float) -> Outlet | None:
        if message.shard is None:
            return None
        journal = self.journal
        if message.epoch == journal.epoch:
            # A cursor from the future of this log would wait for events that never come.
            cursor = min(message.offset, journal.last)
        else:
            cursor = max(journal.floor, journal.last - message.recent) if message.recent else journal.floor
        ring = Ring(s.index for s in self.members.shards)
        outlet = Outlet(message.shard.index, peer, cursor, message.credit, ring, self.members.version)
        before = self._outlets.get(peer)
        outlet.level = before is not None and before.level
        outlet.begun_at = now if before is None else before.begun_at
        self._outlets[peer] = outlet
        return outlet

    def _tell_ring(self, why: str, peer: bytes, lost: list[tuple[int, int]]) -> bool:
        """Tells everyone the ring if it has changed since they were told."""
        version = self.members.version
        if version == self._announced:
            return False
        self._announced = version
        self._ring = Ring(s.index for s in self.members.shards)
        self.journal.note("ring", msgspec.msgpack.encode(_Ring(version, self.members.shards)))
        name, shards = peer.decode(errors="replace"), sorted(self._ring.shards)
        self._sampler.write("info", "ring_changed", why=why, peer=name, shards=shards)
        for outlet in self._outlets.values():
            outlet.ring_changed(self._ring, version)
        for member in self.members:
            self._send(member.name, self._ring_state(member.name, lost))
        return True

    def _ring_state(self, peer: bytes, lost: list[tuple[int, int]]) -> RingState:
        outlet = self._outlets.get(peer)
        version = self.members.version
        since = outlet.since if outlet is not None else version
        return RingState(self.journal.epoch, version, self.journal.last, self.members.shards, since, lost)

    def _answer(self, message: Ask) -> Answer:
        journal = self.journal
        gateways = [member.stats for member in self.members if member.address is None]
        return Answer(
            message.request,
            journal.epoch,
            journal.last,
            self.events,
            self.duplicates,
            self.reports(),
            len(gateways),
            sum(stats.refused for stats in gateways),
            sum(stats.refused_per_s for stats in gateways),
        )

    def reports(self) -> list[ShardReport]:
        """What is known of each shard, in the order of their indexes."""
        reports = [self._report(member) for member in self.members if member.address and not member.presumed]
        return sorted((r for r in reports if r is not None), key=lambda report: report.address.index)

    def _report(self, member: Peer) -> ShardReport | None:
        outlet = self._outlets.get(member.name)
        if member.address is None or outlet is None:
            return None
        behind = self.journal.last - outlet.acked
        return ShardReport(member.address, member.stats, outlet.in_flight, behind, member.leaving)
