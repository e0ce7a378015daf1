"""The shard: which connections and which log it has, and what to do when something happens.

What goes to the sockets is decided in `delivery`, which events are for whom in `routing`; how a connection begins, and
what its client says, in `beginning` and `answering`.

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
from solowire.backplane.messages import Deliver, Elsewhere, Lease, Replayed, RingState, ShardStats, Slots, States
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.conflation import Pacing
from solowire.fanout.feed_index import Feeds
from solowire.fanout.recent_log import Log
from solowire.model.access import Identity, Role
from solowire.model.catalog import Catalog
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec, Notice, ReconnectNow
from solowire.workers.capacity.eviction import GivingWay
from solowire.workers.capacity.rebalancing import Moves
from solowire.workers.capacity.slots import Admission
from solowire.workers.config import Limits
from solowire.workers.connections.audit_events import Trail
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.ejection import Ejection
from solowire.workers.connections.expiry import Expiry
from solowire.workers.connections.heartbeat import Heartbeats
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import Timers
from solowire.workers.connections.users import GOING, Users
from solowire.workers.delivery.dispatcher import Delivering
from solowire.workers.delivery.event_router import Routing
from solowire.workers.delivery.log_follower import Following
from solowire.workers.delivery.ring_history import RingHistory
from solowire.workers.session.commands import Answering, AwaitKeys, no_keys_to_await
from solowire.workers.session.handshake import Beginning
from solowire.workers.session.inbound_limits import Listening
from solowire.workers.session.replay_budget import ReplayBudget
from solowire.workers.session.ticket_gate import Entrance

log = structlog.get_logger("solowire.shard")

GIVING_WAY_SECONDS = 0.5
COME_BACK_SECONDS = 5.0
"""Who gives way is closed after the one, and asked to come back after the other."""


class Shard:
    """One shard's decisions. wall_offset: what to add to a monotonic time to get unix seconds. boot: its process's."""

    def __init__(
        self,
        index: int,
        *,
        sockets: Sockets,
        tokens: Tokens,
        roles: Mapping[str, Role],
        new_id: Callable[[], str],
        wall_offset: float,
        limits: Limits | None = None,
        catalog: Catalog = CATALOG,
        recent: Log | None = None,
        ask: Callable[[backplane.Replay | backplane.ReplayCancel], bool] = lambda _: False,
        came: Callable[[str, int], None] = lambda user, connections: None,
        stopwatch: Callable[[], float] | None = None,
        await_keys: AwaitKeys = no_keys_to_await,
        audit: Callable[..., None] = lambda event, **fields: None,
        boot: str = "",
    ) -> None:
        self.index = index
        self.log = recent if recent is not None else Log(catalog=catalog)
        self.connections: set[Connection] = set()
        self.wall_offset = wall_offset
        self.ejection = Ejection(self.connections, self._close)
        self.leaving = False
        self.totals: Counter[str] = Counter()
        self._sockets = sockets
        self._new_id = new_id
        self._came = came
        limits = limits or Limits()
        self._users = Users(limits.per_user)
        self._admission = Admission(limits.group_by, limits.per_address, limits.capacity)
        self._leased = False  # as of the last look at the clock
        self._giving_way = GivingWay(self._users)
        self._rings = RingHistory(index)
        self._moves = Moves(limits.moves_per_second)
        self._trail = Trail(audit)
        self._timers = Timers(self.connections)
        self._expiry = Expiry(
            limits.expiry_notice, self._timers, expiring=self._token_expires, expired=self._token_expired
        )
        self._heartbeats = Heartbeats(limits.heartbeat)
        self._entrance = Entrance(
            index,
            tokens,
            self._users,
            self._admission,
            limits.on_duplicate,
            owns=self._rings.owns,
            replaced=lambda connection: self._close(connection, CloseCode.replaced),
            boot=boot,
        )
        self._pacing = Pacing(limits.states, max_keys=self.log.max_keys)
        self.feeds: Feeds[Connection] = Feeds(self.log, self._pacing, limits.telemetry)
        self.delivery = Delivering(
            self.log,
            self._pacing,
            self.feeds,
            sockets,
            self.totals,
            stalled=limits.stalled,
            wall_offset=wall_offset,
            close=self._close,
        )
        self._routing = Routing(
            self.log,
            self._pacing,
            self.feeds,
            self._users,
            self.connections,
            self.totals,
            delays=limits.flush,
            schedule=self.delivery.schedule,
        )
        self._following = Following(
            index,
            self.log,
            self._pacing,
            self._routing,
            self._rings,
            self._moves,
            self.connections,
            lost=self._resync,
        )
        self._beginning = Beginning(
            self.log,
            self._pacing,
            self.delivery,
            sockets,
            self._timers,
            self._trail,
            ReplayBudget(self._users, Rate(limits.replay_rate, limits.replay_burst)),
            roles=roles,
            catalog=catalog,
            limits=limits,
            ask=ask,
            stopwatch=stopwatch,
            epoch=lambda: self._following.epoch,
            whole_from=self._rings.whole_from,
            begun=lambda connection, now: self._answering.begun(connection, now),
            unavailable=lambda connection, now: self._send_away(connection, 1.0, "replay_unavailable", now),
        )
        self._answering: Answering = Answering(
            index,
            self.log,
            self.delivery,
            Listening(self._users, limits, catalog),
            self._beginning,
            self._admission,
            self._expiry,
            self._trail,
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
        return self._following.epoch

    @property
    def ready(self) -> bool:
        """Whether it knows the ring, is in it, has a lease, and the log up to where it was when it came."""
        here = self._following.arrived and self._leased and not self.leaving
        return here and self.index in self._rings.ring.shards

    @property
    def drained(self) -> bool:
        """Whether it wanted to leave and nobody is here any more: no socket, and no handshake under way."""
        return self.leaving and self.empty

    @property
    def empty(self) -> bool:
        """Whether no slot is taken by a connection, so that it may be said that all are free."""
        return not self._admission.taken

    @property
    def settled(self) -> int:
        """The newest version of the ring that has nobody here wait for its turn to move, -1 for none."""
        return self._moves.settled

    def ring_changed(self, state: RingState, now: float) -> None:
        """Takes the ring, and sends away whoever it gives to another shard."""
        self._following.greeted(state.epoch, state.last, now)
        self._beginning.ask_again(now)
        if state.version == self._moves.version and state.since <= self.settled:
            return
        self._moves.version = state.version
        ring = Ring(s.index for s in state.shards)
        if ring.shards != self._rings.ring.shards:
            self._rings.ring_changed(ring, self.log.position, self.log.floor)
        if not ring.shards and not self.leaving:
            return  # nobody could take them
        moving = [c for c in self.connections if c.state is not State.leaving and not self._rings.owns(c.identity.user)]
        if moving:
            log.info("users_move", shard=self.index, users=len(moving), ring=sorted(ring.shards))
        if state.since <= self.settled:
            self._moves.begin(moving, now)
        else:
            # The router has forgotten for whom they wait: from here on this log is not all of theirs.
            self._moves.begin((), now)
            for place, connection in enumerate(moving):
                self._send_away(connection, place * self._moves.pause, "ring_changed", now)
        self.run(now)

    def states(self, message: States, now: float) -> None:
        """The present states, with which a log begins anew."""
        self._following.states(message, now)

    def deliver(self, message: Deliver, now: float) -> bool:
        """Takes a part of the log, and flushes what is due at once; False if the part before it is missing.

        The caller then says hello, and the router goes on from where this log ends.
        """
        if not self._following.deliver(message, now):
            return False
        self.delivery.trim(now)
        self._beginning.moved_on(now)
        self._run_live(now)
        return True

    def replayed(self, message: Replayed, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._beginning.answered(message, now)
        self.run(now)

    def _resync(self) -> None:
        for connection in [c for c in self.connections if c.state is not State.closing]:
            self.delivery.too_late(connection, "events were lost here: come back for the current state")

    # --------------------------------------------------------------------------- connections come and go

    @property
    def lease(self) -> tuple[int, int]:
        """Slots that are taken, and that the lease in force grants."""
        return self._admission.leases.taken, self._admission.leases.room

    def admit(self, ticket: str, now: float) -> Ticket:
        """Whom a ticket lets in, once. Raises InvalidToken or Refused; nothing has been accepted then.

        A slot is taken: `open` or `abandon` must follow. What is raised says `who` it was, if the ticket is good.
        """
        return self._entrance.admit(ticket, now, now + self.wall_offset, leaving=self.leaving, ready=self.ready)

    def abandon(self, identity: Identity, address: str = "") -> None:
        """One that was admitted went away before its handshake was done."""
        self._users.abandon(identity.user)
        self._admission.leave(identity.user, self._admission.group_of(identity), address)

    def open(
        self, identity: Identity, codec: Codec, socket: object, now: float, *, address: str = "", kind: str = "direct"
    ) -> Connection:
        """An accepted connection begins; the user's oldest, if it has more than it may, ends."""
        group = self._admission.group_of(identity)
        connection = Connection(self._new_id(), identity, codec, socket, group=group, address=address)
        connection.heard_at = connection.opened = now
        connection.kind = kind
        self._trail.connected(connection)
        for older in self._users.add(connection):
            self._close(older, CloseCode.replaced)
        self.connections.add(connection)
        self._heartbeats.add(connection)
        self.totals["admitted"] += 1
        self._beginning.expect(connection, now)
        self._expiry.watch(connection, self.wall_offset, now)
        if self.leaving or not self._rings.owns(identity.user):
            self._send_away(connection, 0.0, "ring_changed", now)  # while the connection was accepted
        else:
            # However long ago the ring changed: where the user was before, its turn to move may not have come yet.
            known = self._users.get(identity.user)
            self._came(identity.user, len(known.staying()) if known is not None else 0)
        if self._admission.leases.over:
            self._make_room(now)
        return connection

    def gone(self, connection: Connection) -> None:
        """The socket has ended, whoever ended it."""
        if connection.state is not State.gone:
            self._giving_way.gone(connection)
            if connection.state is not State.closing:
                self._trail.disconnected(connection, None, "the client has gone")
            self._forget(connection)
            connection.become(State.gone)
            self._admission.leave(connection.identity.user, connection.group, connection.address)

    def receive(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client. One that has been told to leave is not listened to any more."""
        if connection.state not in GOING:
            self._answering.take(connection, raw, now)

    def show_alive(self, connection: Connection, now: float) -> None:
        """Its client has answered `Sockets.ping`, so it speaks WebSocket."""
        self._beginning.show_alive(connection, now)

    def broken(self, connection: Connection, code: CloseCode) -> None:
        """The client has sent what is no message, or too large for one."""
        self._close(connection, code)

    def elsewhere(self, message: Elsewhere) -> None:
        """The user has newer connections on another shard: what it has here beyond its limit ends."""
        for connection in self._users.beyond(message.user, message.connections):
            self._close(connection, CloseCode.replaced)

    def close_all(self, code: CloseCode) -> None:
        """Closes everything, before the server stops."""
        for connection in list(self.connections):
            self._close(connection, code)

    def _close(self, connection: Connection, code: CloseCode) -> None:
        if connection.state in (State.closing, State.gone):
            return
        self._giving_way.goes(connection)
        self._forget(connection)
        connection.become(State.closing)
        self.totals[f"closed_{code.value}"] += 1
        self._trail.disconnected(connection, code.value, code.reason)
        self._sockets.close(connection, code, code.reason)

    def _forget(self, connection: Connection) -> None:
        self.delivery.forget(connection)
        self.connections.discard(connection)
        self._heartbeats.discard(connection)
        self._beginning.drop(connection)
        self._users.remove(connection)

    def leave(self, now: float, within: float | None = None) -> None:
        """Takes no more users, and sends its own away, at the set pace. within: seconds in which all must be told."""
        self.leaving = True
        log.info("shard_leaves", shard=self.index, users=len(self.connections))
        self._moves.leave(self.connections, now, within)

    def stay(self, now: float) -> bool:
        """Takes users again after all; False if it was not leaving. Whoever was sent away already goes."""
        if not self.leaving:
            return False
        self.leaving = False
        log.info("shard_stays", shard=self.index, users=len(self.connections))
        self._moves.begin((), now)  # the ring in which it is again says who has to move
        return True

    def _move_who_is_due(self, now: float) -> None:
        reason = "draining" if self.leaving else "ring_changed" if self._leased else "no_lease"
        while (connection := self._moves.turn(now)) is not None:
            self._send_away(connection, 0.0, reason, now)

    def _send_away(
        self, connection: Connection, after: float, reason: str, now: float, close_after: float | None = None
    ) -> None:
        """Tells it to come back elsewhere, and gives it nothing more: its cursor stays what it has seen.

        after, close_after: seconds; by default it has a second more than it is to wait, to go by itself.
        """
        self.delivery.leave(connection)
        self._beginning.drop(connection)
        self._giving_way.goes(connection)
        connection.leaves_for = reason
        connection.become(State.leaving)
        self.delivery.say(connection, ReconnectNow(int(after * 1000), reason), now)
        self._timers.at(now + (after + 1.0 if close_after is None else close_after), self._sent_away, connection)

    def _sent_away(self, connection: Connection, now: float) -> None:
        owned = self._rings.owns(connection.identity.user)
        code = CloseCode.restarting if self.leaving or owned else CloseCode.wrong_shard
        self._close(connection, connection.leaves_with or code)

    # ------------------------------------------------------------------------------------------- the lease

    @property
    def asks(self) -> bool:
        """Whether `slots` should be sent before the next heartbeat."""
        return self._admission.leases.asks

    def slots(self, now: float, *, beat: bool = False) -> Slots:
        """What the router is to know of the slots that are used. beat: as part of a heartbeat."""
        return self._admission.slots(now, beat=beat)

    def leased(self, lease: Lease, now: float) -> None:
        """Takes a lease; whoever it has no slot for gives way."""
        another = self._admission.leased(lease)
        if not self._leased and now < self._admission.leases.ends:
            self._leased = True
            # Whoever was not yet sent away may stay, if the user is still this shard's.
            self._moves.leased_again((c for c in self.connections if not self._rings.owns(c.identity.user)), now)
        if another:
            self._make_room(now)
        self.run(now)

    def _make_room(self, now: float) -> None:
        """Sends away as many as the lease has no slot for."""
        giving_way = self._giving_way.choose(self._admission.leases.excess(), self.connections)
        if giving_way:
            log.info("over_limit", shard=self.index, give_way=len(giving_way))
            self.totals["gave_way"] += len(giving_way)
        for connection in giving_way:
            connection.leaves_with = CloseCode.try_later
            self._send_away(connection, COME_BACK_SECONDS, "over_limit", now, GIVING_WAY_SECONDS)

    def _look_at_lease(self, now: float) -> None:
        """When the lease has run out its slots are soon somebody else's."""
        leases = self._admission.leases
        if self._leased and now >= leases.ends:
            self._leased = False
            users = self._moves.lease_over(self.connections, now, (leases.over_at - leases.ends) / 2)
            log.error("lease_over", shard=self.index, users=users, hint="the router was not heard of for so long")
        if not self._leased and now >= leases.over_at and self.connections:
            for connection in self.connections:
                connection.leaves_for = connection.leaves_for or "no_lease"
            self.close_all(CloseCode.restarting)

    # ------------------------------------------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `run` wants to be called next."""
        times = [self.delivery.due, self._beginning.due]
        if self._timers.due is not None:
            times.append(self._timers.due)
        if self._pacing.due is not None:
            times.append(self._pacing.due)
        if self._heartbeats.due is not None:
            times.append(self._heartbeats.due)
        if self._moves.due is not None:
            times.append(self._moves.due)
        if self._leased:
            times.append(self._admission.leases.ends)
        elif self.connections:
            times.append(self._admission.leases.over_at)
        return min(self._admission.due, *times)

    def run(self, now: float) -> None:
        """Does everything that is due, what was missed by those who come back last."""
        self._run_live(now)
        self._beginning.run(now)

    def _run_live(self, now: float) -> None:
        self._admission.run(now)
        self._look_at_lease(now)
        if self._pacing.due is not None and now >= self._pacing.due:
            self._routing.release(now)
        self._timers.run(now)
        self.delivery.run(now)
        if self._moves.due is not None:
            self._move_who_is_due(now)
        self._heartbeat(now)

    def _heartbeat(self, now: float) -> None:
        alive, dead = self._heartbeats.turns(now)
        for connection in dead:
            self._close(connection, CloseCode.no_heartbeat)
        self._heartbeats.ping(alive, self._sockets, now + self.wall_offset)

    def set_clock(self, wall_offset: float, now: float) -> None:
        """The wall clock, which tokens expire by, may be set while we run."""
        jumped = abs(wall_offset - self.wall_offset) > 1
        self.wall_offset = self.delivery.wall_offset = self._answering.wall_offset = wall_offset
        for connection in self.connections if jumped else ():
            self._expiry.watch(connection, self.wall_offset, now)

    def _token_expires(self, connection: Connection, now: float) -> None:
        left = max(0.0, (connection.expires or now) - now)
        notice = Notice("token_expiring", "send refresh with a new token", after_ms=round(left * 1000))
        self.delivery.say(connection, notice, now)

    def _token_expired(self, connection: Connection) -> None:
        self._close(connection, CloseCode.unauthenticated)

    # ---------------------------------------------------------------------------------------------- numbers

    def stats(self) -> ShardStats:
        """What is counted anyway: `reporting` adds what has to be looked for."""
        t = self.totals
        return ShardStats(
            connections=len(self.connections),
            feeds=len(self.feeds),
            offset=self.log.position,
            oldest=self.log.floor,
            log_bytes=self.log.held_bytes,
            events=t["events"],
            deliveries=t["deliveries"],
            frames=t["frames"],
            bytes=t["bytes"],
            admitted=t["admitted"],
            refused=t["refused"],
        )
