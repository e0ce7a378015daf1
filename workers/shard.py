"""The shard: its users' connections, its recent log, its feeds, and what to do when something happens.

What it keeps true:

* A user has at most as many connections here as the setting says, one by default; a newer one replaces the oldest
  (4409), or is refused.
* Each connection has a slot of the shard's lease until its socket is gone. When the lease grants less than is used, as
  many are sent away (1013); when it has run out, all are.
* A connection gets only what its view allows at the moment of sending: whenever identity or subscriptions change it
  changes feeds, and it takes nothing along but its cursor.
* A connection that the ring gives to another shard is sent there when it is its turn, with a cursor that its next
  shard can trust: until then it gets everything, as the router goes on with its own events, or, where the router
  doesn't, it gets nothing more from the moment the shard knows.
* A cursor is resumed from in full, or refused with a reason: what this shard lacks for it comes from the router.
* No connection is waited for. One that is busy falls behind in its cursor, and is looked at again every 20 ms.

It reads no clock and touches no socket: `now` is an argument (seconds, monotonic), and `Sockets` is the seam. After
each call, `next_due` says when `run` wants to be called.

Longer than 500 lines: what can be told apart stands in modules of its own (`entrance`, `admission`, `users`,
`giving_way`, `heartbeat`, `timers`, `expiry`, `moves`, `listening`, `ring_history`, `replay`), and what is left decides
over one set of connections and one log, and every part of it changes both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import count

import msgspec
import structlog

from solowire import backplane
from solowire.access import Identity, Role
from solowire.backplane import Came, Deliver, Elsewhere, Lease, Replayed, RingState, ShardStats, Slots, States
from solowire.catalog import CATALOG, Catalog
from solowire.client_protocol import (
    ClientMessage,
    Codec,
    Hello,
    Id,
    Notice,
    Ping,
    Pong,
    Reconnect,
    ReconnectNow,
    Refresh,
    Reply,
    ServerMessage,
    Stats,
    Subscribe,
    Subscriptions,
    Unsubscribe,
    Welcome,
)
from solowire.codes import CloseCode
from solowire.compaction import Frame, Lag
from solowire.errors import InvalidMessage, InvalidToken
from solowire.events import Delivery
from solowire.feed import NEXT_FRAME_SECONDS, Feed, feed_key
from solowire.feeds import Feeds
from solowire.histogram import Histogram
from solowire.log import Entry, Log
from solowire.pacing import Pacing
from solowire.ring import Ring
from solowire.subscriptions import (
    Filter,
    Resolved,
    resolve,
)
from solowire.tokens import Ticket, Tokens
from workers.admission import Admission
from workers.connection import MAX_ANSWERS, Connection, State
from workers.entrance import Entrance
from workers.expiry import Expiry
from workers.giving_way import GivingWay
from workers.heartbeat import Heartbeats
from workers.limits import Limits
from workers.listening import Listening, changed, complaint, first_wanted, too_big
from workers.moves import Moves
from workers.replay import Replay, Replays
from workers.ring_history import RingHistory
from workers.slow_readers import FRAME_READS, SEND_READS, TURN_SECONDS, SlowReaders
from workers.sockets import Sockets
from workers.timers import Timers
from workers.users import Users

log = structlog.get_logger("solowire.shard")

_STATE, _TELEMETRY = Delivery.state, Delivery.telemetry  # an enumeration looks its members up by name, each time

BLOCKED_LOOK_SECONDS = 0.02
REPLAY_SECONDS = 5.0
"""How long a client waits for what the router is asked for, before it is sent away to try again."""

LATE_SECONDS = 0.1
"""A timer that comes later than this tells of a loop that was held up, and of messages that wait to be read."""

HAND_OVER_BYTES = 128 * 1024

AUDITED_SUBSCRIPTIONS = 50
"""How many of a client's wishes a line of the audit log names."""

GIVING_WAY_SECONDS = 0.5
COME_BACK_SECONDS = 5.0
"""Who gives way is closed after the one, and asked to come back after the other."""

MOVING_SECONDS = 60.0
"""So long after the ring has changed, the shard that a user comes from may still have connections of it."""


class Shard:
    """One shard's decisions. wall_offset: what to add to a monotonic time to get unix seconds."""

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
        ask: Callable[[backplane.Replay], bool] = lambda _: False,
        came: Callable[[Came], bool] = lambda _: False,
        audit: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        self.index = index
        self.epoch = ""
        self.log = recent if recent is not None else Log(catalog=catalog)
        limits = limits or Limits()
        self._pacing = Pacing(limits.states, max_keys=self.log.max_keys)
        self.feeds: Feeds[Connection] = Feeds(self.log, self._pacing, limits.telemetry)
        self.connections: set[Connection] = set()
        self.wall_offset = wall_offset
        self.ready_at: int | None = None
        self.leaving = False
        self.totals: Counter[str] = Counter()
        self.latency = Histogram()
        self._timed: tuple[int, float, float | None] = (-1, 0.0, None)  # cursor, time: how late what comes next is
        self._audit = audit
        self._sockets = sockets
        self._tokens = tokens
        self._roles = roles
        self._new_id = new_id
        self._limits = limits
        self._users = Users(self._limits.per_user)
        self._listening = Listening(self._users, self._limits)
        self._admission = Admission(self._limits.group_by, self._limits.per_address)
        self._leased = False  # as of the last look at the clock
        self._giving_way = GivingWay(self._users)
        self._came = came
        self._catalog = catalog
        self._rings = RingHistory(index)
        self._replay_heard_at = float("-inf")  # when the router answered such a question last
        self._entrance = Entrance(
            index,
            tokens,
            self._users,
            self._admission,
            self._limits.on_duplicate,
            owns=self._rings.owns,
            replaced=lambda connection: self._close(connection, CloseCode.replaced),
        )
        self._fresh = True  # the next part of the log is the answer to a hello
        self._astray = False  # a part is missing: what comes is not taken until a hello is answered
        self._moves = Moves(self._limits.moves_per_second)
        self._ring_changed_at = float("-inf")
        self._replays = Replays(
            self.log,
            concurrent=self._limits.replays,
            max_bytes=self._limits.replay_bytes,
            ask=ask,
            epoch=lambda: self.epoch,
            whole_from=self._rings.whole_from,
            done=self._replayed,
        )
        self._blocked: dict[Connection, float] = {}
        self._looks_again: float | None = None
        self._slow = SlowReaders()
        self._now = 0.0  # of the call that is under way, for what calls back
        self._order = count()
        self._due_feeds: list[tuple[float, int, Feed[Connection]]] = []
        self._timers = Timers(self.connections)
        self._expiry = Expiry(
            self._limits.expiry_notice, self._timers, expiring=self._token_expires, expired=self._token_expired
        )
        self._heartbeats = Heartbeats(self._limits.heartbeat)

    # ------------------------------------------------------------------------------------- from the router

    @property
    def ready(self) -> bool:
        """Whether it knows the ring, is in it, has a lease, and the log up to where it was when it came."""
        arrived = self.ready_at is not None and self.log.position >= self.ready_at
        return arrived and self._leased and not self.leaving and self.index in self._rings.ring.shards

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
        self._astray, self._fresh = False, True
        if state.epoch != self.epoch:
            self._new_epoch(state.epoch, now)
        elif state.version == self._moves.version:
            return
        if self.ready_at is None:
            self.ready_at = state.last
        self._moves.version = state.version
        ring = Ring(s.index for s in state.shards)
        if ring.shards != self._rings.ring.shards:
            self._rings.ring_changed(ring, self.log.position, self.log.floor)
            self._ring_changed_at = now
        if not ring.shards and not self.leaving:
            return  # nobody could take them
        moving = [c for c in self.connections if c.state is not State.leaving and not self._owns(c.identity.user)]
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
        """Begins a log anew, where the router says, with the present states."""
        if message.epoch != self.epoch:
            self._new_epoch(message.epoch, now)
        if self.log.position >= message.upto:
            return  # said twice
        self._begin_log(message.upto)
        for offset, body in message.events:
            try:
                entry = self.log.entry(offset, body)
            except (msgspec.DecodeError, ValueError) as error:
                self.totals["undecodable"] += 1
                log.error("event_undecodable", offset=offset, error=str(error))
                continue
            if entry is not None:
                self.log.remember(entry)

    def deliver(self, message: Deliver, now: float) -> bool:
        """Takes a part of the log, and flushes what is due at once; False if the part before it is missing.

        The caller then says hello, and the router goes on from where this log ends.
        """
        if self._astray:
            return True
        if message.epoch != self.epoch:
            self._new_epoch(message.epoch, now)
        if message.after > self.log.position:
            if not self._fresh:
                log.warning("log_astray", shard=self.index, position=self.log.position, got=message.after)
                self._astray = True
                return False
            self._lost(message.after, now)
        self._fresh = False
        for offset, body in message.events:
            if offset <= self.log.position:
                continue  # sent again after a reconnect
            try:
                entry = self.log.append(offset, body)
            except (msgspec.DecodeError, ValueError) as error:
                self.totals["undecodable"] += 1
                log.error("event_undecodable", offset=offset, error=str(error))
                continue
            if entry is None:
                self.totals["unknown_types"] += 1
            else:
                self._route(entry, now)
        self.log.position = max(self.log.position, message.upto)
        self._pacing.mark(self.log.position, now)
        self._trim(now)
        self._now = now
        self._replays.moved_on()
        self.run(now)
        return True

    def replayed(self, message: Replayed, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._replay_heard_at = now
        self._now = now
        self._replays.answered(message)
        self.run(now)

    def _route(self, entry: Entry, now: float) -> None:
        self.totals["events"] += 1
        event = entry.event
        delivery = event.delivery
        if delivery is _STATE and not self._is_due(entry, now):
            return
        delay = self._limits.flush.of(event.priority, len(self.connections))
        user = event.user
        if user is None:
            if delivery is _TELEMETRY:
                sooner, summed = self.feeds.add_telemetry(entry, delay, now)
                self.totals["aggregated"] += summed
                for feed in sooner:
                    self._schedule(feed)
                return
            for feed in self.feeds.matching(entry):
                if feed.add(entry, delay, now):
                    self._schedule(feed)
            return
        known = self._users.get(user)
        for connection in known.connections if known is not None else ():
            own = connection.feed
            if own is not None and own.accepts(entry) and own.add_for(connection, entry, delay, now):
                self._schedule(own)

    def _is_due(self, entry: Entry, now: float) -> bool:
        """Whether a state may be sent at once; else it is held back."""
        due, overtaken = self._pacing.take(entry, now)
        if overtaken is not None:
            self._overtaken(overtaken.last, overtaken.states)
        return due

    def _overtaken(self, last: Entry, states: int) -> None:
        self.totals["overtaken"] += states
        for feed in self.feeds.matching(last) if last.event.user is None else ():
            if feed.shows(last):
                feed.leave_out(last.event.type, states)

    def _release(self, now: float) -> None:
        """Sends the states whose interval has ended."""
        for number, entry, overtaken in self._pacing.release(now):
            if overtaken:
                self._overtaken(entry, overtaken)
            delay = self._limits.flush.of(entry.event.priority, len(self.connections))
            user = entry.event.user
            if user is None:
                for feed in self.feeds.matching(entry):
                    if feed.release(number, None, delay, now):
                        self._schedule(feed)
                continue
            known = self._users.get(user)
            for connection in known.connections if known is not None else ():
                own = connection.feed
                if own is not None and own.accepts(entry) and own.release(number, connection, delay, now):
                    self._schedule(own)

    def _trim(self, now: float) -> None:
        """Lets the log drop what is over its bounds, when nobody depends on it any more."""
        floor = self.log.floor_when_trimmed()
        if floor is None:
            return
        lagging: dict[Feed[Connection], list[tuple[Lag, str]]] = {}
        for feed in list(self.feeds):
            while feed.waits_below(floor):
                feed.urgent = True
                self._flush(feed, now)
            lags = [(lag, c.identity.user) for c, lag in feed.behind.items() if not lag.lost and lag.cursor < floor]
            if lags:
                lagging[feed] = lags
        if lagging:
            oldest = min(lag.cursor for lags in lagging.values() for lag, _ in lags)
            dropped = self.feeds.dropped(set(lagging), oldest, floor)
            for feed, lags in lagging.items():
                feed.forget(lags, dropped, floor)
                if feed.wake(now):
                    self._schedule(feed)
        self.log.trim()

    def _new_epoch(self, epoch: str, now: float) -> None:
        if self.epoch:
            log.warning("epoch_changed", shard=self.index, old=self.epoch, new=epoch)
            self._resync(now)
        self.epoch = epoch
        self.ready_at = None
        self._moves.reset()
        self._fresh = True
        self._begin_log(0)

    def _lost(self, after: int, now: float) -> None:
        """The router's log no longer has what comes next: everything between is gone for this shard."""
        if self.log.position or self.connections:
            log.error("gap", shard=self.index, position=self.log.position, log_begins=after)
            self._resync(now)
        self._begin_log(after)

    def _begin_log(self, position: int) -> None:
        self.log.reset(position)
        self._pacing.reset()
        self._rings.reset(position)

    def _resync(self, now: float) -> None:
        for connection in [c for c in self.connections if c.state is not State.closing]:
            self._say(connection, Notice("gap", "events were lost here: come back for the current state"), now)
            self._close(connection, CloseCode.too_slow)

    # --------------------------------------------------------------------------- connections come and go

    @property
    def lease(self) -> tuple[int, int]:
        """Slots that are taken, and that the lease in force grants."""
        return self._admission.leases.taken, self._admission.leases.room

    @property
    def blocked(self) -> Mapping[Connection, float]:
        """The connections whose socket is busy with an older frame, and since when."""
        return self._blocked

    def lagging(self) -> set[Connection]:
        """Who is behind its feed, whether its socket is busy or it waits for its turn. Looks at all who are behind."""
        late = {c for feed in self.feeds for c, lag in feed.lags() if lag.cursor < feed.position}
        return late.union(self._blocked)

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
        self._tell("connected", connection, codec=codec.label, kind=kind)
        for older in self._users.add(connection):
            self._close(older, CloseCode.replaced)
        self.connections.add(connection)
        self._heartbeats.add(connection)
        self.totals["admitted"] += 1
        connection.hello_by = now + self._limits.hello_timeout
        self._timers.at(connection.hello_by, self._no_hello, connection)
        self._expiry.watch(connection, self.wall_offset, now)
        if self.leaving or not self._owns(identity.user):
            self._send_away(connection, 0.0, "ring_changed", now)  # while the connection was accepted
        elif now - self._ring_changed_at < MOVING_SECONDS:
            known = self._users.get(identity.user)
            self._came(Came(identity.user, len(known.staying()) if known is not None else 0))
        if self._admission.leases.over:
            self._make_room(now)
        return connection

    def gone(self, connection: Connection) -> None:
        """The socket has ended, whoever ended it."""
        if connection.state is not State.gone:
            self._giving_way.gone(connection)
            if connection.state is not State.closing:
                reason = connection.leaves_for or "the client has gone"
                self._tell("disconnected", connection, code=None, reason=reason)
            self._forget(connection)
            connection.become(State.gone)
            self._admission.leave(connection.identity.user, connection.group, connection.address)

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
        self._tell("disconnected", connection, code=code.value, reason=connection.leaves_for or code.reason)
        self._sockets.close(connection, code, code.reason)

    def _tell(self, event: str, connection: Connection, **fields: object) -> None:
        """The audit log."""
        identity = connection.identity
        self._audit(
            event,
            user=identity.user,
            role=identity.role,
            address=connection.address,
            session=connection.session,
            **fields,
        )

    def _forget(self, connection: Connection) -> None:
        self._leave_feed(connection)
        self.connections.discard(connection)
        self._blocked.pop(connection, None)
        self._slow.discard(connection)
        self._heartbeats.discard(connection)
        self._replays.drop(connection)
        self._users.remove(connection)

    def leave(self, now: float, within: float | None = None) -> None:
        """Takes no more users, and sends its own away, at the set pace. within: seconds in which all must be told."""
        self.leaving = True
        log.info("shard_leaves", shard=self.index, users=len(self.connections))
        self._moves.leave(self.connections, now, within)

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
        self._leave_feed(connection)
        self._replays.drop(connection)
        self._giving_way.goes(connection)
        connection.leaves_for = reason
        connection.become(State.leaving)
        self._say(connection, ReconnectNow(int(after * 1000), reason), now)
        self._timers.at(now + (after + 1.0 if close_after is None else close_after), self._sent_away, connection)

    def _owns(self, user: str) -> bool:
        return self._rings.owns(user)

    def _sent_away(self, connection: Connection, now: float) -> None:
        owned = self._owns(connection.identity.user)
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
            self._moves.leased_again((c for c in self.connections if not self._owns(c.identity.user)), now)
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

    # ------------------------------------------------------------------------------ messages from a client

    def receive(self, connection: Connection, raw: str | bytes, now: float) -> None:
        """One message of a client."""
        if connection.state in (State.leaving, State.closing, State.gone):
            return
        connection.heard = True
        if too_big(raw):
            self._close(connection, CloseCode.too_big)
            return
        try:
            message = self._listening.take(connection, raw, now)
            if message is not None:
                self._obey(connection, message, now)
        except InvalidMessage as error:
            self._complain(connection, error, now)

    def _complain(self, connection: Connection, error: InvalidMessage, now: float) -> None:
        self.totals["bad_messages"] += 1
        self._say(connection, complaint(error), now)
        if connection.strike(now):
            self._close(connection, CloseCode.bad_protocol)

    def _obey(self, connection: Connection, message: ClientMessage, now: float) -> None:
        try:
            self._listening.count(connection, message, now)
            match message:
                case Pong():
                    pass  # that it was heard is all there is to it
                case Ping():
                    self._say(connection, Pong(message.id, now + self.wall_offset), now)
                case Hello():
                    self._begin(connection, message, now)
                case Subscribe() | Unsubscribe():
                    self._want(connection, changed(connection, message, self._catalog), now, message.id)
                case Refresh():
                    self._refresh(connection, message, now)
                case Stats():
                    self._say(connection, Reply(self._about(connection), message.id), now)
        except InvalidMessage as error:
            error.id = message.id  # the answer repeats it, wherever the fault was found
            raise

    def _no_hello(self, connection: Connection, now: float) -> None:
        if connection.state is not State.waiting:
            return
        late = now - connection.hello_by
        if late > LATE_SECONDS:
            # It is this process that was late: the hello may be here, and not read yet.
            connection.hello_by = now + late
            self._timers.at(connection.hello_by, self._no_hello, connection)
        else:
            self._begin(connection, Hello(), now)

    def _begin(self, connection: Connection, hello: Hello, now: float) -> None:
        connection.wanted = first_wanted(connection, hello, self._roles, self._catalog)
        resume = hello.resume
        if resume is None or resume.epoch != self.epoch:
            self._welcome(connection, hello, None, "epoch" if resume is not None else None, now)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        key = feed_key(resolved.selection, connection.view, connection.codec, self._catalog)
        connection.become(State.resuming)
        self._timers.at(now + REPLAY_SECONDS, self._replay_late, connection)
        self._now = now
        self._replays.start(Replay(connection, hello, resume.cursor, Feed(key, self.log)))

    def _replayed(self, replay: Replay, refusal: str | None) -> None:
        now, connection = self._now, replay.connection
        self._welcome(connection, replay.hello, replay if refusal is None else None, refusal, now)
        early, connection.early = connection.early, []
        for message in early:
            if connection.state is State.live:
                try:
                    self._obey(connection, message, now)
                except InvalidMessage as error:
                    self._complain(connection, error, now)

    def _replay_late(self, connection: Connection, now: float) -> None:
        """What was missed does not come in time.

        If the router answers, it is too much, for it or for all who come back now: one who came again would have missed
        more still. If it doesn't, the client keeps its cursor, and comes again with it.
        """
        if connection.state is not State.resuming:
            return
        replay = self._replays.of(connection)
        if replay is None or now - self._replay_heard_at > REPLAY_SECONDS:
            self._send_away(connection, 1.0, "replay_unavailable", now)
            return
        self._replays.drop(connection)
        self._now = now
        self._replayed(replay, "too_much")

    def _welcome(
        self, connection: Connection, hello: Hello, replay: Replay | None, refusal: str | None, now: float
    ) -> None:
        """Begins: with what was missed, if there is a replay, else with the present states."""
        if len(connection.answers) >= MAX_ANSWERS:
            self._close(connection, CloseCode.too_slow)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        connection.become(State.live)
        lag = Lag(replay.cursor if replay else self.log.position, self._pacing.last)
        if replay is not None:
            lag.whole_upto = self.log.position
        feed = self._join_feed(connection, resolved, lag, now)
        if replay is not None:
            told = replay.hello.resume.cursor if replay.hello.resume else 0
            frames = self._held_back(feed, connection.identity.user, told)
            if replay.fragments:
                frames += feed.frames_of(replay.fragments, replay.cursor)
        else:
            # A cursor says what has arrived: one that is cut off before the states must come back for them.
            before, frames = feed.states(connection.identity.user, self.log.position)
            told = self.log.position if before is None else before
        welcome = Welcome(
            session=connection.session,
            user=connection.identity.user,
            role=connection.identity.role,
            epoch=self.epoch,
            cursor=told,
            resumed=replay is not None,
            subscriptions=resolved.names,
            denied=resolved.denied,
            heartbeat_s=self._limits.heartbeat,
            reconnect=Reconnect(self._limits.reconnect_min_ms, self._limits.reconnect_max_ms),
            token_expires_at=_rfc3339(connection.identity.expires),
            reason=refusal,
            id=hello.id,
        )
        connection.answers.append(connection.codec.encode(welcome))
        connection.answers += frames
        connection.backlog = len(connection.answers)
        if self._sockets.busy(connection):
            self._block((connection,), now)
        else:
            self._hand_over(connection, now)
        if connection.answers:
            feed.hold(connection)
        self._tell_subscriptions(connection, resolved)
        self.run(now)

    def _tell_subscriptions(self, connection: Connection, resolved: Resolved) -> None:
        patterns, denied = list(connection.wanted), [d.type for d in resolved.denied]
        most = AUDITED_SUBSCRIPTIONS
        more = max(0, len(patterns) - most) + max(0, len(denied) - most)
        fields = {"denied": denied[:most]} if denied else {}
        self._tell("subscribed", connection, subscriptions=patterns[:most], more=more, **fields)

    def _held_back(self, feed: Feed[Connection], user: str, cursor: int) -> list[str | bytes]:
        """The states that the client may not have got where it was, because they were held back there."""
        lacks = (e for e in self._pacing.may_lack(self.log.latest(), cursor) if e.event.user in (None, user))
        return feed.older_frames(lacks, cursor)

    def _want(self, connection: Connection, wanted: dict[str, Filter], now: float, id: Id) -> None:
        connection.wanted = wanted
        resolved = resolve(wanted, connection.view, self._catalog)
        lag = self._leave_feed(connection)
        if not self._say(connection, Subscriptions(resolved.names, resolved.denied, id), now):
            return
        self._tell_subscriptions(connection, resolved)
        if lag.lost or lag.cursor < self.log.floor:
            self._too_late(connection, now)  # nobody has counted for the new feed
            return
        self._join_feed(connection, resolved, Lag(lag.cursor, lag.seen, whole_upto=lag.whole_upto, busy=lag.busy), now)
        self.run(now)

    def _refresh(self, connection: Connection, message: Refresh, now: float) -> None:
        try:
            identity = self._tokens.identify(message.token, now + self.wall_offset)
        except InvalidToken as error:
            raise InvalidMessage(error.code, error.message, error.hint) from None
        if identity.user != connection.identity.user:
            raise InvalidMessage("wrong_user", "the token is another user's", "open a connection of its own for it")
        before = connection.view
        connection.identify(identity)
        if connection.backlog and connection.view != before:
            self._close(connection, CloseCode.too_slow)  # it was written for the old rights, and is not sent yet
            return
        group = self._admission.group_of(identity)
        if group != connection.group and self._admission.leases.move(connection.group, group, now):
            connection.group = group  # else it goes on in the slot that it has
        self._expiry.watch(connection, self.wall_offset, now)
        self._say(connection, Reply({"token_expires_at": _rfc3339(identity.expires)}, message.id), now)
        if connection.state is State.live:
            self._want(connection, connection.wanted, now, None)

    def _about(self, connection: Connection) -> dict[str, object]:
        feed = connection.feed
        return {
            "session": connection.session,
            "shard": self.index,
            "cursor": feed.cursor_of(connection) if feed is not None else self.log.position,
            "position": self.log.position,
            "subscriptions": [name for name, _ in connection.selection],
            "feed_connections": len(feed) if feed is not None else 0,
        }

    # ------------------------------------------------------------------------------------------------ feeds

    def _join_feed(self, connection: Connection, resolved: Resolved, lag: Lag, now: float) -> Feed[Connection]:
        connection.selection = resolved.selection
        feed = self.feeds.get(feed_key(resolved.selection, connection.view, connection.codec, self._catalog))
        connection.feed = feed
        apart = bool(connection.answers) or self.log.has_for(connection.identity.user, lag.cursor)
        if feed.join(connection, lag, now, apart=apart):
            self._schedule(feed)
        if connection in self._blocked:
            feed.set_aside(connection)
        return feed

    def _leave_feed(self, connection: Connection) -> Lag:
        feed = connection.feed
        if feed is None:
            return Lag(self.log.position, self._pacing.last)
        lag = feed.leave(connection)
        connection.feed = None
        if not len(feed):
            self.feeds.drop(feed)
        return lag

    def _schedule(self, feed: Feed[Connection]) -> None:
        if feed.due is not None:
            heappush(self._due_feeds, (feed.due, next(self._order), feed))

    def _flush(self, feed: Feed[Connection], now: float) -> None:
        before = feed.place
        frame = feed.flush(now)
        if frame.payload is not None and feed.current:
            busy = self._sockets.send(frame.payload, feed.current)
            sent = len(feed.current) - len(busy)
            self._sent(frame, sent, before.cursor, now)
            feed.largest = max(feed.largest, len(frame.payload))
            if busy:
                feed.fell_behind(busy, before)
                self._block(busy, now)
                for connection in busy if len(self._slow) else ():
                    self._slow.fell_behind(connection)
        if feed.reading:
            self._catch_up(feed, now)
        self._schedule(feed)

    def _catch_up(self, feed: Feed[Connection], now: float) -> None:
        """One frame for each connection that is behind and whose socket is free; built once for each place."""
        frames: dict[object, Frame] = {}
        more = starved = False
        for connection, lag in list(feed.reading.items()):
            if self._sockets.busy(connection):
                lag.busy = True
                self._block((connection,), now)
                continue
            if lag.lost or lag.seen < min(self._pacing.forgotten, feed.released):
                self._too_late(connection, now)
                continue
            slow = connection in self._slow
            if (slow or lag.busy) and not self._slow.may_read(now):
                starved = True
                continue
            frame = self._frame(frames, feed, connection, lag, slow)
            if frame.full and lag.busy and not slow and not lag.is_whole:
                slow = True
                self._slow_down(connection, lag, now)
                frame = self._frame(frames, feed, connection, lag, slow)
            if frame.payload is not None:
                self._sockets.queue(frame.payload, connection)
                self._sent(frame, 1, lag.cursor, now)
                if slow or lag.busy:
                    self._slow.has_read(SEND_READS)
            apart = self.log.has_for(connection.identity.user, frame.cursor)
            level = feed.caught_up(connection, frame, apart=apart)
            # One that stands further on than the feed waits for its flush.
            more = more or (not level and (frame.full or frame.cursor < feed.position))
        if more and feed.reading:
            feed.wake(now + NEXT_FRAME_SECONDS)
        elif starved and feed.reading:
            feed.wake(now + TURN_SECONDS)

    def _frame(
        self, frames: dict[object, Frame], feed: Feed[Connection], connection: Connection, lag: Lag, slow: bool
    ) -> Frame:
        user = connection.identity.user
        own = self.log.has_for(user, lag.cursor) or self._pacing.has_for(user, lag.seen) or lag.cursor < lag.forgotten
        key = (lag.place(), user if own else None, slow)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = feed.read(lag, key[1], compacted=slow)
            if slow or lag.busy:
                self._slow.has_read(FRAME_READS + frame.scanned)
        return frame

    def _slow_down(self, connection: Connection, lag: Lag, now: float) -> None:
        self._slow.add(connection, now)
        self.totals["slow"] += 1
        behind = self.log.count_after(lag.cursor)
        text = "you read too slowly: events are summed up and left out until you have caught up"
        self._say(connection, Notice("slow_consumer", text, active=True, behind=behind), now)

    def _look_at_slow(self, now: float) -> None:
        for connection in self._slow.recovered(now, self._sockets.busy):
            text = "you have caught up: everything is sent again"
            self._say(connection, Notice("slow_consumer", text, active=False), now)

    def _too_late(self, connection: Connection, now: float) -> None:
        """What it has not read is gone here: it comes back with its cursor."""
        self._say(connection, Notice("gap", "you were too slow: events between are lost"), now)
        self._close(connection, CloseCode.too_slow)

    def _sent(self, frame: Frame, connections: int, cursor: int, now: float) -> None:
        """cursor: where they stood. The frame is as late as the oldest event in it, which comes next there."""
        if cursor != self._timed[0] or now != self._timed[1]:
            # Feeds and connections that stand at the same place come one after the other: looked up once.
            oldest = self.log.first_after(cursor)
            taken = oldest.event.taken if oldest is not None else 0.0
            self._timed = (cursor, now, max(0.0, now + self.wall_offset - taken) if taken else None)
        late = self._timed[2]
        if late is not None:
            self.latency.add(late, connections)
        totals = self.totals
        totals["frames"] += connections
        totals["deliveries"] += connections * frame.events
        totals["bytes"] += connections * len(frame.payload or "")
        if frame.left:
            totals["compacted"] += connections * frame.left

    # --------------------------------------------------------------------------------------------- sending

    def _say(self, connection: Connection, message: ServerMessage, now: float) -> bool:
        """Sends an answer or a notice, or keeps it while the socket is busy; False if that closed the connection."""
        frame = connection.codec.encode(message)
        if not connection.answers and not self._sockets.send(frame, (connection,)):
            return True
        if len(connection.answers) - connection.backlog >= MAX_ANSWERS:
            self._close(connection, CloseCode.too_slow)
            return False
        connection.answers.append(frame)
        if connection.feed is not None:
            connection.feed.hold(connection)  # no event may overtake the answer
        self._block((connection,), now)
        return True

    def _block(self, connections: Iterable[Connection], now: float) -> None:
        for connection in connections:
            self._blocked.setdefault(connection, now)
            if connection.feed is not None:
                connection.feed.set_aside(connection)
        if self._looks_again is None:
            self._looks_again = now + BLOCKED_LOOK_SECONDS

    def _hand_over(self, connection: Connection, now: float) -> None:
        """Sends of what waits for a connection whose socket is free as much as it takes at a time."""
        size = 0
        while connection.answers and size < HAND_OVER_BYTES:
            frame = connection.answers.popleft()
            connection.backlog = max(0, connection.backlog - 1)
            size += len(frame)
            self._sockets.queue(frame, connection)
        if connection.answers:
            self._block((connection,), now)

    def _look_at_blocked(self, now: float) -> None:
        for connection, since in list(self._blocked.items()):
            if self._sockets.busy(connection):
                if now - since > self._limits.stalled:
                    self._close(connection, CloseCode.too_slow)
                continue
            del self._blocked[connection]
            self._hand_over(connection, now)
            if connection in self._blocked:
                continue
            if connection.feed is not None:
                connection.feed.take_up(connection)
                if connection.feed.wake(now):
                    self._schedule(connection.feed)
        self._looks_again = now + BLOCKED_LOOK_SECONDS if self._blocked else None

    # ------------------------------------------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `run` wants to be called next."""
        times = [self._due_feeds[0][0]] if self._due_feeds else []
        if self._timers.due is not None:
            times.append(self._timers.due)
        if self._looks_again is not None:
            times.append(self._looks_again)
        if self._slow.due is not None:
            times.append(self._slow.due)
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
        """Does everything that is due."""
        self._admission.run(now)
        self._look_at_lease(now)
        if self._looks_again is not None and now >= self._looks_again:
            self._look_at_blocked(now)
        if self._slow.due is not None and now >= self._slow.due:
            self._look_at_slow(now)
        if self._pacing.due is not None and now >= self._pacing.due:
            self._release(now)
        self._timers.run(now)
        while self._due_feeds and self._due_feeds[0][0] <= now:
            due, _, feed = heappop(self._due_feeds)
            if feed.due == due:  # else it was flushed since, and is in the heap again if it has to be
                self._flush(feed, now)
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
        self.wall_offset = wall_offset
        for connection in self.connections if jumped else ():
            self._expiry.watch(connection, self.wall_offset, now)

    def _token_expires(self, connection: Connection, now: float) -> None:
        self._say(connection, Notice("token_expiring", "send refresh with a new token"), now)

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
            log_bytes=self.log.bytes,
            events=t["events"],
            deliveries=t["deliveries"],
            frames=t["frames"],
            bytes=t["bytes"],
            admitted=t["admitted"],
            refused=t["refused"],
        )


def _rfc3339(unix: float | None) -> str | None:
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
