"""The shard: which connections and which log it has, and what to do when something happens.

What goes to the sockets is decided in `dispatcher`, which events are for whom in `routing`; how a connection begins,
and what its client says, in `beginning` and `answering`.

What it keeps true:

* A user has at most as many connections here as the setting says, one by default; a newer one replaces the oldest
  (4409), or is refused.
* Each connection has a slot of the shard's lease until its socket is gone. When the lease grants less than is used, as
  many are sent away (1013); when it has run out, all are.
* A connection that the ring gives to another shard is sent there when it is its turn, with a cursor that its next
  shard can trust: until then it gets everything, as the router goes on with its own events, or, where the router
  doesn't, it gets nothing more from the moment the shard knows.

It reads no clock and touches no socket: `now` is an argument (seconds, monotonic), and `Sockets` is the seam. After
each call, `next_due` says when `run` wants to be called.

The file is long because it is the one place where connections, log and lease are judged together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.token_bucket import Rate
from solowire.auth.tokens import Ticket, Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import (
    Lease,
    LeaseUsage,
    LogBatch,
    ReplayResponse,
    RingState,
    ShardStats,
    StateSnapshot,
    UserConnectedElsewhere,
)
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity, Role
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec, Notice, ReconnectNow
from solowire.runtime.settings.system_settings import Settings
from solowire.workers.capacity.eviction import EvictionPolicy
from solowire.workers.capacity.rebalancing import Rebalancer
from solowire.workers.capacity.slots import SlotManager
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.ejection import Ejection
from solowire.workers.connections.expiry import TokenExpiry
from solowire.workers.connections.heartbeat import Heartbeats
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import Timers
from solowire.workers.connections.users import ENDING_STATES, UserRegistry
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.delivery.event_router import EventRouter
from solowire.workers.delivery.log_follower import LogFollower
from solowire.workers.delivery.ring_history import RingHistory
from solowire.workers.session.commands import AwaitKeys, CommandHandler, no_keys_to_await
from solowire.workers.session.handshake import Handshake
from solowire.workers.session.inbound_limits import InboundLimits
from solowire.workers.session.replay_budget import ReplayBudget
from solowire.workers.session.ticket_gate import TicketGate

logger = structlog.get_logger("solowire.shard")

EVICTION_SECONDS = 0.5
COME_BACK_SECONDS = 5.0
"""Who gives way is closed after the one, and asked to come back after the other."""


class Shard:
    """One shard's decisions. wall_offset: what to add to a monotonic time to get unix seconds. boot: its process's.

    capacity: how many connections the process can have, 0 for no limit.
    """

    def __init__(
        self,
        index: int,
        *,
        sockets: Sockets,
        tokens: Tokens,
        roles: Mapping[str, Role],
        new_id: Callable[[], str],
        wall_offset: float,
        settings: Settings,
        capacity: int = 0,
        recent: RecentLog,
        ask: Callable[[backplane.ReplayRequest | backplane.ReplayCancel], bool] = lambda _: False,
        came: Callable[[str, int], None] = lambda user, connections: None,
        stopwatch: Callable[[], float] | None = None,
        await_keys: AwaitKeys = no_keys_to_await,
        audit: Callable[..., None] = lambda event, **fields: None,
        boot: str = "",
    ) -> None:
        self.index = index
        self.log = recent
        catalog = recent.catalog
        self.connections: set[Connection] = set()
        self.wall_offset = wall_offset
        self.ejection = Ejection(self.connections, self._close)
        self.is_draining = False
        self.totals: Counter[str] = Counter()
        self._sockets = sockets
        self._new_id = new_id
        self._notify_connected = came
        limits, session, replay = settings.limits, settings.session, settings.replay
        self._users = UserRegistry(limits.max_connections_per_user)
        self._slot_manager = SlotManager(limits.group_by, limits.max_connections_per_address, capacity)
        self._has_lease = False  # as of the last look at the clock
        self._eviction = EvictionPolicy(self._users)
        self._rings = RingHistory(index)
        self._rebalancer = Rebalancer(settings.shard.rebalance_users_per_s)
        self._connection_audit = ConnectionAudit(audit)
        self._timers = Timers(self.connections)
        self._expiry = TokenExpiry(
            session.expiry_notice_s, self._timers, expiring=self._warn_of_expiry, expired=self._close_expired
        )
        self._heartbeats = Heartbeats(session.heartbeat_interval_s)
        self._ticket_gate = TicketGate(
            index,
            tokens,
            self._users,
            self._slot_manager,
            session.on_duplicate,
            owns=self._rings.owns,
            replaced=lambda connection: self._close(connection, CloseCode.replaced),
            boot=boot,
        )
        self._conflator = Conflator(settings.shard.conflation, max_keys=self.log.max_keys)
        self.feeds: FeedIndex[Connection] = FeedIndex(self.log, self._conflator, settings.shard.aggregation)
        self.dispatcher = Dispatcher(
            self.log,
            self._conflator,
            self.feeds,
            sockets,
            self.totals,
            stalled=settings.listen.write_timeout_s,
            wall_offset=wall_offset,
            close=self._close,
        )
        self._event_router = EventRouter(
            self.log,
            self._conflator,
            self.feeds,
            self._users,
            self.connections,
            self.totals,
            delays=settings.shard.flush,
            schedule=self.dispatcher.schedule_feed,
        )
        self._log_follower = LogFollower(
            index,
            self.log,
            self._conflator,
            self._event_router,
            self._rings,
            self._rebalancer,
            self.connections,
            lost=self._resync,
        )
        self._handshake = Handshake(
            self.log,
            self._conflator,
            self.dispatcher,
            sockets,
            self._timers,
            self._connection_audit,
            ReplayBudget(self._users, Rate(replay.rate, replay.burst)),
            roles=roles,
            catalog=catalog,
            session=session,
            replay=replay,
            ask=ask,
            stopwatch=stopwatch,
            epoch=lambda: self._log_follower.epoch,
            whole_from=self._rings.whole_from,
            begun=lambda connection, now: self._command_handler.handle_early(connection, now),
            unavailable=lambda connection, now: self._send_away(connection, 1.0, "replay_unavailable", now),
        )
        self._command_handler: CommandHandler = CommandHandler(
            index,
            self.log,
            self.dispatcher,
            InboundLimits(self._users, session, catalog),
            self._handshake,
            self._slot_manager,
            self._expiry,
            self._connection_audit,
            self.totals,
            tokens=tokens,
            catalog=catalog,
            wall_offset=wall_offset,
            close=self._close,
            await_keys=await_keys,
        )

    # ------------------------------------------------------------------------------------- from the router

    @property
    def epoch(self) -> str:
        """Of the log that is here; "" before there is one."""
        return self._log_follower.epoch

    @property
    def is_ready(self) -> bool:
        """Whether it knows the ring, is in it, has a lease, and the log up to where it was when it came."""
        here = self._log_follower.is_caught_up and self._has_lease and not self.is_draining
        return here and self.index in self._rings.ring.shards

    @property
    def is_drained(self) -> bool:
        """Whether it wanted to leave and nobody is here any more: no socket, and no handshake under way."""
        return self.is_draining and self.is_empty

    @property
    def is_empty(self) -> bool:
        """Whether no slot is taken by a connection, so that it may be said that all are free."""
        return not self._slot_manager.used_count

    @property
    def completed_version(self) -> int:
        """The newest version of the ring that has nobody here wait for its turn to move, -1 for none."""
        return self._rebalancer.completed_version

    def on_ring(self, state: RingState, now: float) -> None:
        """Takes the ring, and sends away whoever it gives to another shard."""
        self._log_follower.on_ring(state.epoch, state.last_offset, now)
        self._handshake.repeat_requests(now)
        if state.version == self._rebalancer.ring_version and state.personal_since <= self.completed_version:
            return
        self._rebalancer.ring_version = state.version
        ring = Ring(s.index for s in state.shards)
        if ring.shards != self._rings.ring.shards:
            self._rings.add_ring(ring, self.log.position, self.log.start_offset)
        if not ring.shards and not self.is_draining:
            return  # nobody could take them
        moving = [
            c for c in self.connections if c.state is not State.draining and not self._rings.owns(c.identity.user)
        ]
        if moving:
            logger.info("users_move", shard=self.index, users=len(moving), ring=sorted(ring.shards))
        if state.personal_since <= self.completed_version:
            self._rebalancer.schedule(moving, now)
        else:
            # The router has forgotten for whom they wait: from here on this log is not all of theirs.
            self._rebalancer.schedule((), now)
            for place, connection in enumerate(moving):
                self._send_away(connection, place * self._rebalancer.pause_s, "ring_changed", now)
        self.run(now)

    def on_snapshot(self, message: StateSnapshot, now: float) -> None:
        """The present states, with which a log begins anew."""
        self._log_follower.on_snapshot(message, now)

    def on_batch(self, message: LogBatch, now: float) -> bool:
        """Takes a part of the log, and flushes what is due at once; False if the part before it is missing.

        The caller then says hello, and the router goes on from where this log ends.
        """
        if not self._log_follower.on_batch(message, now):
            return False
        self.dispatcher.trim_log(now)
        self._handshake.on_log_advanced(now)
        self._run_live(now)
        return True

    def on_replay_response(self, message: ReplayResponse, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._handshake.on_replay_response(message, now)
        self.run(now)

    def _resync(self) -> None:
        for connection in [c for c in self.connections if c.state is not State.closing]:
            self.dispatcher.close_too_slow(connection, "events were lost here: come back for the current state")

    # --------------------------------------------------------------------------- connections come and go

    @property
    def lease_usage(self) -> tuple[int, int]:
        """Slots that are taken, and that the lease in force grants."""
        return self._slot_manager.lease.used_count, self._slot_manager.lease.total

    def admit(self, ticket: str, now: float) -> Ticket:
        """Whom a ticket lets in, once. Raises InvalidToken or RequestRejected; nothing has been accepted then.

        A slot is taken: `open_connection` or `cancel_admission` must follow. What is raised says `who` it was, if the
        ticket is good.
        """
        return self._ticket_gate.redeem(
            ticket, now, now + self.wall_offset, leaving=self.is_draining, ready=self.is_ready
        )

    def cancel_admission(self, identity: Identity, address: str = "") -> None:
        """One that was admitted went away before its handshake was done."""
        self._users.cancel_handshake(identity.user)
        self._slot_manager.release(identity.user, self._slot_manager.get_group(identity), address)

    def open_connection(
        self, identity: Identity, codec: Codec, socket: object, now: float, *, address: str = "", kind: str = "direct"
    ) -> Connection:
        """An accepted connection begins; the user's oldest, if it has more than it may, ends."""
        group = self._slot_manager.get_group(identity)
        connection = Connection(self._new_id(), identity, codec, socket, group=group, address=address)
        connection.last_message_at = connection.opened_at = now
        connection.transport = kind
        self._connection_audit.record_connected(connection)
        for older in self._users.add(connection):
            self._close(older, CloseCode.replaced)
        self.connections.add(connection)
        self._heartbeats.add(connection)
        self.totals["admitted"] += 1
        self._handshake.start_timer(connection, now)
        self._expiry.watch_token(connection, self.wall_offset, now)
        if self.is_draining or not self._rings.owns(identity.user):
            self._send_away(connection, 0.0, "ring_changed", now)  # while the connection was accepted
        else:
            # However long ago the ring changed: where the user was before, its turn to move may not have come yet.
            known = self._users.get(identity.user)
            self._notify_connected(identity.user, len(known.active()) if known is not None else 0)
        if self._slot_manager.lease.is_overcommitted:
            self._make_room(now)
        return connection

    def on_closed(self, connection: Connection) -> None:
        """The socket has ended, whoever ended it."""
        if connection.state is not State.closed:
            self._eviction.mark_closed(connection)
            if connection.state is not State.closing:
                self._connection_audit.record_disconnected(connection, None, "the client has gone")
            self._forget(connection)
            connection.become(State.closed)
            self._slot_manager.release(connection.identity.user, connection.group, connection.address)

    def receive(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client. One that has been told to leave is not listened to any more."""
        if connection.state not in ENDING_STATES:
            self._command_handler.on_message(connection, raw, now)

    def show_alive(self, connection: Connection, now: float) -> None:
        """Its client has answered `Sockets.ping`, so it speaks WebSocket."""
        self._handshake.show_alive(connection, now)

    def on_protocol_error(self, connection: Connection, code: CloseCode) -> None:
        """The client has sent what is no message, or too large for one."""
        self._close(connection, code)

    def on_newer_elsewhere(self, message: UserConnectedElsewhere) -> None:
        """The user has newer connections on another shard: what it has here beyond its limit ends."""
        for connection in self._users.excess_over(message.user, message.connections):
            self._close(connection, CloseCode.replaced)

    def close_all(self, code: CloseCode) -> None:
        """Closes everything, before the server stops."""
        for connection in list(self.connections):
            self._close(connection, code)

    def _close(self, connection: Connection, code: CloseCode) -> None:
        if connection.state in (State.closing, State.closed):
            return
        self._eviction.mark_ending(connection)
        self._forget(connection)
        connection.become(State.closing)
        self.totals[f"closed_{code.value}"] += 1
        self._connection_audit.record_disconnected(connection, code.value, code.reason)
        self._sockets.close(connection, code, code.reason)

    def _forget(self, connection: Connection) -> None:
        self.dispatcher.forget_connection(connection)
        self.connections.discard(connection)
        self._heartbeats.discard(connection)
        self._handshake.cancel(connection)
        self._users.remove(connection)

    def start_drain(self, now: float, within: float | None = None) -> None:
        """Takes no more users, and sends its own away, at the set pace. within: seconds in which all must be told."""
        self.is_draining = True
        logger.info("shard_leaves", shard=self.index, users=len(self.connections))
        self._rebalancer.schedule_drain(self.connections, now, within)

    def cancel_drain(self, now: float) -> bool:
        """Takes users again after all; False if it was not leaving. Whoever was sent away already goes."""
        if not self.is_draining:
            return False
        self.is_draining = False
        logger.info("shard_stays", shard=self.index, users=len(self.connections))
        self._rebalancer.schedule((), now)  # the ring in which it is again says who has to move
        return True

    def _move_due_connections(self, now: float) -> None:
        reason = "draining" if self.is_draining else "ring_changed" if self._has_lease else "no_lease"
        while (connection := self._rebalancer.next_due(now)) is not None:
            self._send_away(connection, 0.0, reason, now)

    def _send_away(
        self, connection: Connection, after: float, reason: str, now: float, close_after: float | None = None
    ) -> None:
        """Tells it to come back elsewhere, and gives it nothing more: its cursor stays what it has seen.

        after, close_after: seconds; by default it has a second more than it is to wait, to go by itself.
        """
        self.dispatcher.leave_feed(connection)
        self._handshake.cancel(connection)
        self._eviction.mark_ending(connection)
        connection.drain_reason = reason
        connection.become(State.draining)
        self.dispatcher.send_reply(connection, ReconnectNow(int(after * 1000), reason), now)
        self._timers.schedule(
            now + (after + 1.0 if close_after is None else close_after), self._close_drained, connection
        )

    def _close_drained(self, connection: Connection, now: float) -> None:
        owned = self._rings.owns(connection.identity.user)
        code = CloseCode.restarting if self.is_draining or owned else CloseCode.wrong_shard
        self._close(connection, connection.drain_close_code or code)

    # ------------------------------------------------------------------------------------------- the lease

    @property
    def wants_lease_report(self) -> bool:
        """Whether `slots` should be sent before the next heartbeat."""
        return self._slot_manager.lease.wants_report

    def lease_usage_report(self, now: float, *, beat: bool = False) -> LeaseUsage:
        """What the router is to know of the slots that are used. beat: as part of a heartbeat."""
        return self._slot_manager.usage_report(now, beat=beat)

    def on_lease(self, lease: Lease, now: float) -> None:
        """Takes a lease; whoever it has no slot for gives way."""
        another = self._slot_manager.apply_lease(lease)
        if not self._has_lease and now < self._slot_manager.lease.ends_at:
            self._has_lease = True
            # Whoever was not yet sent away may stay, if the user is still this shard's.
            self._rebalancer.cancel_lease_expiry(
                (c for c in self.connections if not self._rings.owns(c.identity.user)), now
            )
        if another:
            self._make_room(now)
        self.run(now)

    def _make_room(self, now: float) -> None:
        """Sends away as many as the lease has no slot for."""
        giving_way = self._eviction.select(self._slot_manager.lease.overcommit(), self.connections)
        if giving_way:
            logger.info("over_limit", shard=self.index, give_way=len(giving_way))
            self.totals["gave_way"] += len(giving_way)
        for connection in giving_way:
            connection.drain_close_code = CloseCode.try_later
            self._send_away(connection, COME_BACK_SECONDS, "over_limit", now, EVICTION_SECONDS)

    def _check_lease(self, now: float) -> None:
        """When the lease has run out its slots are soon somebody else's."""
        leases = self._slot_manager.lease
        if self._has_lease and now >= leases.ends_at:
            self._has_lease = False
            users = self._rebalancer.start_lease_expiry(self.connections, now, (leases.over_at - leases.ends_at) / 2)
            logger.error("lease_over", shard=self.index, users=users, hint="the router was not heard of for so long")
        if not self._has_lease and now >= leases.over_at and self.connections:
            for connection in self.connections:
                connection.drain_reason = connection.drain_reason or "no_lease"
            self.close_all(CloseCode.restarting)

    # ------------------------------------------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `run` wants to be called next."""
        times = [self.dispatcher.due_at, self._handshake.due_at]
        if self._timers.due_at is not None:
            times.append(self._timers.due_at)
        if self._conflator.due_at is not None:
            times.append(self._conflator.due_at)
        if self._heartbeats.due_at is not None:
            times.append(self._heartbeats.due_at)
        if self._rebalancer.due_at is not None:
            times.append(self._rebalancer.due_at)
        if self._has_lease:
            times.append(self._slot_manager.lease.ends_at)
        elif self.connections:
            times.append(self._slot_manager.lease.over_at)
        return min(self._slot_manager.due_at, *times)

    def run(self, now: float) -> None:
        """Does everything that is due, what was missed by those who come back last."""
        self._run_live(now)
        self._handshake.run(now)

    def _run_live(self, now: float) -> None:
        self._slot_manager.run(now)
        self._check_lease(now)
        if self._conflator.due_at is not None and now >= self._conflator.due_at:
            self._event_router.release_due(now)
        self._timers.run(now)
        self.dispatcher.run(now)
        if self._rebalancer.due_at is not None:
            self._move_due_connections(now)
        self._heartbeat(now)

    def _heartbeat(self, now: float) -> None:
        alive, dead = self._heartbeats.due_connections(now)
        for connection in dead:
            self._close(connection, CloseCode.no_heartbeat)
        self._heartbeats.ping(alive, self._sockets, now + self.wall_offset)

    def set_clock(self, wall_offset: float, now: float) -> None:
        """The wall clock, which tokens expire by, may be set while we run."""
        jumped = abs(wall_offset - self.wall_offset) > 1
        self.wall_offset = self.dispatcher.wall_offset = self._command_handler.wall_offset = wall_offset
        for connection in self.connections if jumped else ():
            self._expiry.watch_token(connection, self.wall_offset, now)

    def _warn_of_expiry(self, connection: Connection, now: float) -> None:
        left = max(0.0, (connection.expires_at or now) - now)
        notice = Notice("token_expiring", "send refresh with a new token", after_ms=round(left * 1000))
        self.dispatcher.send_reply(connection, notice, now)

    def _close_expired(self, connection: Connection) -> None:
        self._close(connection, CloseCode.unauthenticated)

    # ---------------------------------------------------------------------------------------------- numbers

    def stats(self) -> ShardStats:
        """What is counted anyway: `reporting` adds what has to be looked for."""
        t = self.totals
        return ShardStats(
            connections=len(self.connections),
            feeds=len(self.feeds),
            offset=self.log.position,
            oldest=self.log.start_offset,
            log_bytes=self.log.held_bytes,
            events=t["events"],
            deliveries=t["deliveries"],
            frames=t["frames"],
            bytes=t["bytes"],
            admitted=t["admitted"],
            refused=t["refused"],
        )
