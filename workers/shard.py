"""The shard: which connections and which log it has, and what to do when something happens.

What goes to the sockets is decided in `dispatcher`, and which events are for whom in `event_router`; how a connection
begins in `handshake`, and what comes of its client's messages in `commands`.

What it keeps true:

* A user has at most as many connections here as the setting says, one by default; a newer one replaces the oldest
  (4409), or is refused.
* Each connection has a slot of the shard's lease until its socket is gone. When the lease grants less than is used, as
  many are sent away (1013); when it has run out, all are.
* A connection that the ring gives to another shard is sent there when it is its turn, with a cursor that its next
  shard can trust: until then it gets everything, as the router goes on with its own events, or, where the router
  doesn't, it gets nothing more from the moment the shard knows.

It reads no clock and touches no socket: `now` is an argument (seconds, monotonic), and `Sockets` is the seam. After
each call, `next_due` says when `run` wants to be called, and `take_questions`, `take_arrivals` and
`take_pending_refreshes` what else is to be done.

Its parts call each other downwards only. What they decide about a connection's end they return, and it is done here:
by `Departures` and `_settle`, with which each call that may have decided something ends.

The file is long because it is the one place where connections, log and lease are judged together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.token_bucket import Rate
from solowire.auth.revocations import index_revocations
from solowire.auth.tokens import Ticket, Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import (
    HistoryResponse,
    Lease,
    LeaseUsage,
    LogBatch,
    ReplayResponse,
    Revocation,
    RingState,
    ShardStats,
    StateSnapshot,
    UserConnectedElsewhere,
)
from solowire.errors import InvalidToken
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity, Role
from solowire.model.dialect import Dialect
from solowire.observability.tracer import Tracer
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.dialect_requests import is_hello
from solowire.protocol.messages import Codec, Notice
from solowire.runtime.settings.system_settings import Settings
from solowire.workers.capacity.eviction import EvictionPolicy
from solowire.workers.capacity.rebalancer import Rebalancer
from solowire.workers.capacity.slots import SlotManager
from solowire.workers.clock import Clock
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.connections.expiry import TokenExpiry
from solowire.workers.connections.heartbeat import Heartbeats
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import TimerKind, Timers
from solowire.workers.connections.users import ENDING_STATES, UserRegistry
from solowire.workers.delivery.delivery_traces import DeliveryTraces
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.delivery.event_router import EventRouter
from solowire.workers.delivery.known_rings import KnownRings
from solowire.workers.delivery.log_follower import BatchUse, LogFollower
from solowire.workers.departures import Departures
from solowire.workers.history.dialect_pages import DialectPages
from solowire.workers.history.dialect_replays import DialectReplays
from solowire.workers.history.history_commands import HistoryCommands
from solowire.workers.history.history_scheduler import HistoryScheduler
from solowire.workers.session.commands import CommandHandler, PendingRefresh
from solowire.workers.session.dialect_handler import DialectHandler
from solowire.workers.session.handshake import Handshake
from solowire.workers.session.inbound_limits import InboundLimits
from solowire.workers.session.replay_budget import ReplayBudget
from solowire.workers.session.ticket_gate import SlotRefusal, TicketGate

logger = structlog.get_logger("solowire.shard")

ShardQuestion = backplane.ReplayRequest | backplane.ReplayCancel | backplane.HistoryRequest | backplane.HistoryCancel
"""What it asks the router about the log."""

EVICTION_SECONDS = 0.5
COME_BACK_SECONDS = 5.0
"""Who gives way is closed after the one, and asked to come back after the other."""


class Shard:
    """One shard's decisions. incarnation: its process's.

    max_pending_refreshes: that may wait for a provider's keys. capacity: how many connections the process can have, 0
    for no limit. tracer: where spans go, if they go anywhere.
    """

    def __init__(
        self,
        index: int,
        *,
        sockets: Sockets,
        tokens: Tokens,
        roles: Mapping[str, Role],
        new_id: Callable[[], str],
        clock: Clock,
        settings: Settings,
        capacity: int = 0,
        recent_log: RecentLog,
        max_pending_refreshes: int = 0,
        audit: Callable[..., None] = lambda event, **fields: None,
        incarnation: str = "",
        dialect: Dialect | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.index = index
        self.log = recent_log
        catalog = recent_log.catalog
        self.connections: set[Connection] = set()
        self.clock = clock
        self.is_draining = False
        self.totals: Counter[str] = Counter()
        self._sockets = sockets
        self._new_id = new_id
        self._arrivals: list[tuple[str, int]] = []
        limits, session, replay = settings.limits, settings.session, settings.replay
        self._users = UserRegistry(limits.max_connections_per_user, settings.legacy_connections_per_user)
        self._slot_manager = SlotManager(limits.group_by, limits.max_connections_per_address, capacity)
        self._has_lease = False  # as of the last look at the clock
        self._eviction = EvictionPolicy(self._users)
        self._rings = KnownRings(index)
        self._rebalancer = Rebalancer(settings.shard.rebalance_users_per_s)
        self._connection_audit = ConnectionAudit(audit)
        self._timers = Timers(self.connections)
        self._expiry = TokenExpiry(session.expiry_notice_s, self._timers, clock)
        self._heartbeats = Heartbeats(session.heartbeat_interval_s)
        self._ticket_gate = TicketGate(
            index,
            tokens,
            self._users,
            self._slot_manager,
            session.on_duplicate,
            self._rings,
            incarnation=incarnation,
        )
        self._conflator = Conflator(settings.shard.conflation, max_keys=self.log.max_keys)
        self.feeds: FeedIndex[Connection] = FeedIndex(self.log, self._conflator, settings.shard.aggregation)
        self.traces = None if tracer is None else DeliveryTraces(tracer, self.log, self.feeds, self._users, sockets)
        self.dispatcher = Dispatcher(
            self.log,
            self._conflator,
            self.feeds,
            sockets,
            self.totals,
            stalled=settings.listen.write_timeout_s,
            clock=clock,
            traces=self.traces,
        )
        self._event_router = EventRouter(
            self.log,
            self._conflator,
            self.feeds,
            self.dispatcher,
            self._users,
            self.connections,
            self.totals,
            delays=settings.shard.flush,
        )
        self._log_follower = LogFollower(
            index,
            self.log,
            self._conflator,
            self.dispatcher,
            self._rings,
            self._rebalancer,
            self.connections,
        )
        self._handshake = Handshake(
            self.log,
            self._conflator,
            self.dispatcher,
            sockets,
            self._timers,
            self._connection_audit,
            ReplayBudget(self._users, Rate(replay.rate, replay.burst)),
            self._rings,
            clock,
            roles=roles,
            catalog=catalog,
            session=session,
            replay=replay,
        )
        inbound_limits = InboundLimits(self._users, session, catalog)
        self._hello_timeout_s = session.hello_timeout_s
        self._tokens = tokens
        self.history = HistoryScheduler(self.log, settings.history, clock, roles=roles)
        self.dialects = None if dialect is None else self._make_dialects(dialect, inbound_limits, settings)
        self._departures = Departures(
            self.connections,
            self._users,
            self.dispatcher,
            self._handshake,
            self.history,
            self._heartbeats,
            self._eviction,
            self._timers,
            sockets,
            self._connection_audit,
            self.totals,
            dialect,
            self.dialects,
        )
        self._command_handler = CommandHandler(
            index,
            self.log,
            self.dispatcher,
            inbound_limits,
            self._handshake,
            self._slot_manager,
            self._expiry,
            self._connection_audit,
            self.totals,
            tokens=tokens,
            catalog=catalog,
            clock=clock,
            max_pending=max_pending_refreshes,
            history=HistoryCommands(self.history, self.dispatcher, catalog, settings.history, clock),
        )

    def _make_dialects(self, dialect: Dialect, inbound_limits: InboundLimits, settings: Settings) -> DialectHandler:
        pages = DialectPages(self.history, self.log.catalog, self.clock)
        return DialectHandler(
            dialect,
            self.log.catalog,
            self.dispatcher,
            inbound_limits,
            self._handshake,
            self._users,
            self.connections,
            self.totals,
            clock=self.clock,
            warns=settings.legacy == "warn",
            pages=pages,
            replays=DialectReplays(pages, self.dispatcher, self._sockets, self._timers),
        )

    # ------------------------------------------------------------------------------------- from the router

    @property
    def epoch(self) -> str:
        """Of the log that is here; "" before there is one."""
        return self.log.epoch

    @property
    def is_ready(self) -> bool:
        """Whether it knows the ring, is in it, has a lease, and the log up to where it was when it came."""
        return self.can_take_users and not self.is_draining and self.index in self._rings.ring.shards

    @property
    def can_take_users(self) -> bool:
        """Whether it is ready but for its place in the ring."""
        return self._log_follower.is_caught_up and self._has_lease

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
        self.log.earlier_epochs = state.earlier_epochs
        self._departures.close_lost()
        self._handshake.replays.repeat_requests()
        self.history.repeat_requests()
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
            logger.info("rebalance_started", shard=self.index, users=len(moving), ring=sorted(ring.shards))
        if state.personal_since <= self.completed_version:
            self._rebalancer.schedule(moving, now)
        else:
            # The router has forgotten for whom they wait: from here on this log is not all of theirs.
            self._rebalancer.schedule((), now)
            for place, connection in enumerate(moving):
                self._departures.send_away(connection, place * self._rebalancer.pause_s, "ring_changed", now)
        self.run(now)

    def on_snapshot(self, message: StateSnapshot, now: float) -> None:
        """The present states, with which a log begins anew."""
        if self._log_follower.on_snapshot(message, now):
            self._event_router.seed_states(message.events)
            self.log.forgotten_types.update(message.forgotten_types)
        self._departures.close_lost()

    def on_batch(self, message: LogBatch, now: float) -> bool:
        """Takes a part of the log, and flushes what is due at once; False if the part before it is missing.

        The caller then says hello, and the router goes on from where this log ends.
        """
        use = self._log_follower.judge_batch(message, now)
        if use is BatchUse.rejoin:
            return False
        if use is BatchUse.route:
            self._event_router.route_batch(message, now)
            if message.traces and self.traces is not None:
                self.traces.follow(message.traces)
        if message.events:
            self.history.record_live_events(now)
        self.dispatcher.trim_log(now)
        self._departures.close_lost()
        self._handshake.on_log_advanced(now)
        self._run_live(now)
        return True

    def on_replay_response(self, message: ReplayResponse, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._handshake.on_replay_response(message, now)
        self.run(now)

    def on_history_response(self, message: HistoryResponse, now: float) -> None:
        """What the router says to a question about history."""
        self.history.on_response(message, now)
        self.run(now)

    # --------------------------------------------------------------------------- connections come and go

    @property
    def lease_usage(self) -> tuple[int, int]:
        """Slots that are taken, and that the lease in force grants."""
        return self._slot_manager.lease.used_count, self._slot_manager.lease.total

    def admit(self, ticket: str, now: float, *, is_dialect: bool = False, takes_old: bool = False) -> Ticket:
        """Whom a ticket lets in, once. Raises InvalidToken or RequestRejected; nothing has been accepted then.

        A slot is taken: `open_connection` or `cancel_admission` must follow. What is raised says `who` it was, if the
        ticket is good. is_dialect, takes_old: as `TicketGate.redeem` says.
        """
        answer = self._ticket_gate.redeem(
            ticket,
            now,
            self.clock.to_unix(now),
            leaving=self.is_draining,
            ready=self.is_ready,
            is_dialect=is_dialect,
            takes_old=takes_old,
        )
        if isinstance(answer, SlotRefusal):
            if answer.replaced is not None:
                self._departures.close(answer.replaced, CloseCode.replaced)
            raise answer.error
        return answer

    def cancel_admission(self, identity: Identity, address: str = "") -> None:
        """One that was admitted went away before its handshake was done."""
        self._users.cancel_handshake(identity.user)
        self._slot_manager.release(identity.user, self._slot_manager.get_group(identity), address)

    def open_connection(
        self,
        identity: Identity,
        codec: Codec,
        socket: object,
        now: float,
        *,
        address: str = "",
        kind: str = "direct",
        dialect: DialectClient | None = None,
    ) -> Connection:
        """An accepted connection begins; the user's oldest, if it has more than it may, ends.

        dialect: what its client speaks, or may speak, in the place of `solowire.v1`. Such a one ends no other.
        """
        group = self._slot_manager.get_group(identity)
        connection = Connection(self._new_id(), identity, codec, socket, group=group, address=address)
        connection.last_message_at = connection.opened_at = now
        connection.transport = kind
        connection.dialect = dialect
        self._connection_audit.record_connected(connection)
        for older in self._users.add(connection):
            self._departures.close(older, CloseCode.replaced)
        self.connections.add(connection)
        self.totals["connections_opened"] += 1
        self._heartbeats.add(connection)
        if dialect is None:
            self._handshake.start_timer(connection, now)
        self._expiry.watch_token(connection, now)
        if self.is_draining or not self._rings.owns(identity.user):
            self._departures.send_away(connection, 0.0, "ring_changed", now)  # while the connection was accepted
        elif dialect is not None:
            self._begin_dialect(connection, dialect, now)
        else:
            # However long ago the ring changed: where the user was before, its turn to move may not have come yet.
            known = self._users.get(identity.user)
            self._arrivals.append((identity.user, len(known.active()) if known is not None else 0))
        if self._slot_manager.lease.is_overcommitted:
            self._make_room(now)
        self._departures.close_lost()
        return connection

    def _begin_dialect(self, connection: Connection, client: DialectClient, now: float) -> None:
        """At once; where `solowire.v1` may be spoken, too, with its first message, or when the time for a hello ends.

        TCP's own keep-alive judges it: it is sent no message unasked, and need not say anything.
        """
        if not client.is_decided:
            self._timers.schedule(now + self._hello_timeout_s, TimerKind.dialect, connection)
        elif self.dialects is not None:
            self.dialects.begin(connection, now)

    def _leave_dialect(self, connection: Connection) -> None:
        """Its first message is a hello: it is a connection like any other, and replaces the user's older ones.

        It may be the oldest itself, and has ended then.
        """
        connection.dialect = None
        user = connection.identity.user
        for older in self._users.excess_over(user, 0):
            self._departures.close(older, CloseCode.replaced)
        if connection.state in ENDING_STATES:
            return  # the user's others have been opened since: it was the oldest itself
        known = self._users.get(user)
        self._arrivals.append((user, len(known.active()) if known is not None else 0))

    def on_closed(self, connection: Connection) -> None:
        """The socket has ended, whoever ended it."""
        if self._departures.finish(connection):
            self._slot_manager.release(connection.identity.user, connection.group, connection.address)

    def receive(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client. One that has been told to leave is not listened to any more."""
        if connection.state not in ENDING_STATES:
            code = self._handle_message(connection, raw, now)
            self._settle(now)
            if code is not None:
                self._departures.close(connection, code)

    def _handle_message(self, connection: Connection, raw: str | bytes, now: float) -> CloseCode | None:
        client = connection.dialect
        if client is not None and self.dialects is not None:
            if client.is_decided or not is_hello(raw):
                self.dialects.begin(connection, now)
                return self.dialects.on_message(connection, raw, now)
            self._leave_dialect(connection)
            if connection.state in ENDING_STATES:
                return None
        return self._command_handler.on_message(connection, raw, now)

    def show_alive(self, connection: Connection, now: float) -> None:
        """Its client has answered `Sockets.ping`, so it speaks WebSocket."""
        self._handshake.show_alive(connection, now)
        self._settle(now)

    def on_protocol_error(self, connection: Connection, code: CloseCode) -> None:
        """The client has sent what is no message, or too large for one."""
        self._departures.close(connection, code)

    def on_newer_elsewhere(self, message: UserConnectedElsewhere) -> None:
        """The user has newer connections on another shard: what it has here beyond its limit ends."""
        for connection in self._users.excess_over(message.user, message.connections):
            self._departures.close(connection, CloseCode.replaced)

    def retry_refresh(self, pending: PendingRefresh, now: float, keys_wait: float | None) -> None:
        """The keys that it waits for have been read again, or can't be for `keys_wait` seconds."""
        code = self._command_handler.retry_refresh(pending, now, keys_wait)
        self._settle(now)
        if code is not None:
            self._departures.close(pending.connection, code)

    def disconnect(self, user: str) -> int:
        """An administrator wants none of the user's connections here; how many there were."""
        self._ticket_gate.signed_out.sign_out(user)
        found = [c for c in self.connections if c.identity.user == user]
        return self._departures.eject(found, CloseCode.disconnected, "disconnected")

    def revoke(self, revocations: Iterable[Revocation], now: float) -> int:
        """These have just come into force: whom they cover is closed in this same turn. How many that are."""
        table = index_revocations(revocations)
        self.history.apply_revocations(table, now)
        found = [c for c in self.connections if table.covers(c.identity)]
        return self._departures.eject(found, CloseCode.unauthenticated, "token_revoked")

    def apply_roles(self) -> int:
        """Roles have been read again: whoever has more than its role grants now is closed. How many that are.

        Who still may connect comes back at once, is judged anew, and misses nothing.
        """
        count = 0
        for connection in tuple(self.connections):
            code = self._judge_role(connection.identity)
            if code is not None:
                count += self._departures.eject([connection], code, "role_changed")
        return count

    def _judge_role(self, identity: Identity) -> CloseCode | None:
        """With which code a connection is to be closed; None if nothing was taken from it."""
        try:
            is_same = self._tokens.narrow_to_role(identity) is identity
        except InvalidToken:
            return CloseCode.forbidden
        if not self._tokens.may_connect(identity):
            return CloseCode.forbidden
        return None if is_same else CloseCode.restarting

    def close_all(self, code: CloseCode) -> None:
        """Closes everything, before the server stops."""
        self._departures.close_all(self.connections, code)

    def start_drain(self, now: float, within: float | None = None) -> None:
        """Takes no more users, and sends its own away, at the set pace. within: seconds in which all must be told."""
        self.is_draining = True
        logger.info("drain_started", shard=self.index, users=len(self.connections))
        self._rebalancer.schedule_drain(self.connections, now, within)

    def cancel_drain(self, now: float) -> bool:
        """Takes users again after all; False if it was not leaving. Whoever was sent away already goes."""
        if not self.is_draining:
            return False
        self.is_draining = False
        logger.info("drain_cancelled", shard=self.index, users=len(self.connections))
        self._rebalancer.schedule((), now)  # the ring in which it is again says who has to move
        return True

    def _move_due_connections(self, now: float) -> None:
        reason = "draining" if self.is_draining else "ring_changed" if self._has_lease else "no_lease"
        while (connection := self._rebalancer.next_due(now)) is not None:
            self._departures.send_away(connection, 0.0, reason, now)

    def _close_drained(self, connection: Connection) -> None:
        owned = self._rings.owns(connection.identity.user)
        code = CloseCode.restarting if self.is_draining or owned else CloseCode.wrong_shard
        self._departures.close(connection, connection.drain_close_code or code)

    # ------------------------------------------------------------------------------------------- the lease

    @property
    def wants_lease_report(self) -> bool:
        """Whether `lease_usage_report` should be sent before the next heartbeat."""
        return self._slot_manager.lease.wants_report

    def lease_usage_report(self, now: float, *, is_heartbeat: bool = False) -> LeaseUsage:
        """What the router is to know of the slots that are used. is_heartbeat: as part of a heartbeat."""
        return self._slot_manager.usage_report(now, is_heartbeat=is_heartbeat)

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
            logger.info("evicting_over_limit", shard=self.index, connections=len(giving_way))
            self.totals["evicted"] += len(giving_way)
        for connection in giving_way:
            connection.drain_close_code = CloseCode.try_later
            self._departures.send_away(connection, COME_BACK_SECONDS, "over_limit", now, EVICTION_SECONDS)

    def _check_lease(self, now: float) -> None:
        """When the lease has run out its slots are soon somebody else's."""
        leases = self._slot_manager.lease
        if self._has_lease and now >= leases.ends_at:
            self._has_lease = False
            users = self._rebalancer.start_lease_expiry(self.connections, now, (leases.over_at - leases.ends_at) / 2)
            logger.error(
                "lease_expired",
                shard=self.index,
                users=users,
                hint="no answer from the router; users are sent away. Does the router run, and is it reachable?",
            )
        if not self._has_lease and now >= leases.over_at and self.connections:
            for connection in self.connections:
                connection.drain_reason = connection.drain_reason or "no_lease"
            self.close_all(CloseCode.restarting)

    # ------------------------------------------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `run` wants to be called next."""
        times = [self.dispatcher.due_at, self._handshake.due_at, self.history.due_at]
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
        self.history.run(now)
        self._settle(now)

    def _run_live(self, now: float) -> None:
        self._slot_manager.run(now)
        self._check_lease(now)
        if self._conflator.due_at is not None and now >= self._conflator.due_at:
            self._event_router.release_due(now)
        self._run_timers(now)
        self.dispatcher.run(now)
        self._settle(now)
        if self._rebalancer.due_at is not None:
            self._move_due_connections(now)
        self._heartbeat(now)
        self._departures.close_lost()

    def _run_timers(self, now: float) -> None:
        while (due := self._timers.pop_due(now)) is not None:
            kind, connection = due
            if kind is TimerKind.hello:
                self._handshake.check_hello(connection, now)
            elif kind is TimerKind.replay:
                if self._handshake.check_replay(connection, now):
                    self._departures.send_away(connection, 1.0, "replay_unavailable", now)
            elif kind is TimerKind.token:
                match self._expiry.check_token(connection, now):
                    case Notice() as notice:
                        self.dispatcher.send_reply(connection, notice, now)
                    case CloseCode() as code:
                        connection.drain_reason = "token_expired"  # an old frontend may have a newer one
                        self._departures.close(connection, code)
            elif kind is not TimerKind.leave and self.dialects is not None:
                self.dialects.on_timer(kind, connection, now)
            else:
                self._close_drained(connection)
            self._departures.close_lost()

    def _settle(self, now: float) -> None:
        """Does what was decided in this call: who was lost ends, and who has come back is listened to."""
        self._departures.close_lost()
        for connection in self._handshake.take_resumed():
            if connection.state not in ENDING_STATES:
                code = self._command_handler.handle_early(connection, now)
                self._departures.close_lost()
                if code is not None:
                    self._departures.close(connection, code)

    def _heartbeat(self, now: float) -> None:
        alive, dead = self._heartbeats.due_connections(now)
        for connection in dead:
            self._departures.close(connection, CloseCode.no_heartbeat)
        self._heartbeats.ping(alive, self._sockets, self.clock.to_unix(now))

    def set_clock(self, wall_offset: float, now: float) -> None:
        """The wall clock, which tokens expire by, may be set while we run."""
        jumped = abs(wall_offset - self.clock.wall_offset) > 1
        self.clock.wall_offset = wall_offset
        for connection in self.connections if jumped else ():
            self._expiry.watch_token(connection, now)

    # -------------------------------------------------------------------------------- what others have to do

    def take_questions(self) -> Sequence[ShardQuestion]:
        """What is to be sent to the router."""
        replays, history = self._handshake.replays, self.history
        if not replays.questions and not history.questions:
            return ()
        questions: list[ShardQuestion] = [*replays.questions, *history.questions]
        replays.questions, history.questions = [], []
        return questions

    @property
    def has_arrivals(self) -> bool:
        return bool(self._arrivals)

    def take_arrivals(self) -> list[tuple[str, int]]:
        """Users who have come, each with how many connections it has here: the router is to be told of them."""
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def take_pending_refreshes(self) -> Sequence[PendingRefresh]:
        """Refreshes for which a provider's keys are to be read; each is then given to `retry_refresh`."""
        return self._command_handler.take_pending_refreshes()

    # ---------------------------------------------------------------------------------------------- numbers

    def stats(self) -> ShardStats:
        """What is counted anyway; `solowire.workers.stats.report` adds what has to be looked for."""
        t = self.totals
        return ShardStats(
            connections=len(self.connections),
            feeds=len(self.feeds),
            log_end_offset=self.log.position,
            log_start_offset=self.log.start_offset,
            log_bytes=self.log.held_bytes,
            events=t["events"],
            deliveries=t["deliveries"],
            frames=t["frames"],
            sent_bytes=t["sent_bytes"],
            connections_opened=t["connections_opened"],
            connections_rejected=t["connections_rejected"],
            users=len(self._users),
        )
