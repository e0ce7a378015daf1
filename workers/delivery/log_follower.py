"""Which part of the router's log this shard has.

What it keeps true: what is here is of one epoch, and up to its position nothing is missing that is for this shard. A
part that comes without the one before it is not taken, nor what comes behind it, until a hello is answered; the router
then goes on from where this log ends. What the router doesn't have any more either is a gap: the log begins anew behind
it, and whoever is here comes back for the current state.
"""

from __future__ import annotations

from collections.abc import Callable, Sized

import structlog

from solowire.backplane.messages import Deliver, States
from solowire.fanout.conflation import Pacing
from solowire.fanout.recent_log import Log
from solowire.workers.capacity.rebalancing import Moves
from solowire.workers.delivery.event_router import Routing
from solowire.workers.delivery.ring_history import RingHistory

log = structlog.get_logger("solowire.shard")


class Following:
    """index: the shard's. epoch: of the log that is here, "" before there is one. connections: those that there are.

    lost(): called when events are lost for all of them.
    """

    def __init__(
        self,
        index: int,
        recent: Log,
        pacing: Pacing,
        routing: Routing,
        rings: RingHistory,
        moves: Moves,
        connections: Sized,
        *,
        lost: Callable[[], None],
    ) -> None:
        self.epoch = ""
        self._index = index
        self._log = recent
        self._pacing = pacing
        self._routing = routing
        self._rings = rings
        self._moves = moves
        self._connections = connections
        self._lost = lost
        self._ready_at: int | None = None
        self._fresh = True  # the next part of the log is the answer to a hello
        self._astray = False  # a part is missing: what comes is not taken until a hello is answered

    @property
    def arrived(self) -> bool:
        """Whether it has the log up to where the router's was when it came."""
        return self._ready_at is not None and self._log.position >= self._ready_at

    def greeted(self, epoch: str, last: int, now: float) -> None:
        """The router answers a hello. last: its newest offset."""
        self._astray, self._fresh = False, True
        if epoch != self.epoch:
            self._new_epoch(epoch, now)
        if self._ready_at is None:
            self._ready_at = last

    def states(self, message: States, now: float) -> None:
        """Begins a log anew, where the router says, with the present states."""
        if message.epoch != self.epoch:
            self._new_epoch(message.epoch, now)
        if self._log.position >= message.upto:
            return  # said twice
        self._begin(message.upto)
        self._routing.remember(message.events)

    def deliver(self, message: Deliver, now: float) -> bool:
        """Takes a part of the log; False if the part before it is missing, and a hello has to be said."""
        if self._astray:
            return True
        if message.epoch != self.epoch:
            self._new_epoch(message.epoch, now)
        if message.after > self._log.position:
            if not self._fresh:
                position, hint = self._log.position, "it asks the router for what is between"
                log.warning("log_astray", shard=self._index, position=position, got=message.after, hint=hint)
                self._astray = True
                return False
            self._gap(message.after, now)
        self._fresh = False
        self._routing.take(message.events, now)
        self._log.position = max(self._log.position, message.upto)
        self._pacing.mark(self._log.position, now)
        return True

    def _new_epoch(self, epoch: str, now: float) -> None:
        if self.epoch:
            hint = "the router began a new log: its own log says why"
            log.warning("epoch_changed", shard=self._index, old=self.epoch, new=epoch, hint=hint)
            self._lost()
        self.epoch = epoch
        self._ready_at = None
        self._moves.reset()
        self._fresh = True
        self._begin(0)

    def _gap(self, after: int, now: float) -> None:
        """The router's log no longer has what comes next: everything between is gone for this shard."""
        if self._log.position or self._connections:
            hint = "it was away for longer than the journal keeps: raise SOLOWIRE_JOURNAL_BYTES, _EVENTS or _AGE_S"
            log.error("gap", shard=self._index, position=self._log.position, log_begins=after, hint=hint)
            self._lost()
        self._begin(after)

    def _begin(self, position: int) -> None:
        self._log.reset(position)
        self._pacing.reset()
        self._rings.reset(position)
