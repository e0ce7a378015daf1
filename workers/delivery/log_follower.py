"""The follower of the router's log: the part of it that this shard has.

What it keeps true: what is here is of one epoch, and up to its position nothing is missing that is for this shard. A
part that comes without the one before it is not taken, nor what comes behind it, until a hello is answered; the router
then goes on from where this log ends. What the router doesn't have any more either is a gap: the log begins anew behind
it, and whoever is here comes back for the current state.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import structlog

from solowire.backplane.messages import LogBatch, StateSnapshot
from solowire.fanout.conflation import Conflator
from solowire.fanout.recent_log import RecentLog
from solowire.workers.capacity.rebalancer import Rebalancer
from solowire.workers.connections.connection import Connection
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.delivery.known_rings import KnownRings

logger = structlog.get_logger("solowire.shard")


class BatchUse(Enum):
    """What becomes of a part of the log that has come."""

    route = "route"  # it is what comes next: its events are for the feeds
    skip = "skip"  # nothing, until a hello is answered
    rejoin = "rejoin"  # nothing, and a hello has to be said: the part before it is missing


class LogFollower:
    """Judges what comes of the router's log; the events go to the feeds from the caller.

    index: the shard's. connections: those that there are.
    """

    def __init__(
        self,
        index: int,
        recent_log: RecentLog,
        conflator: Conflator,
        dispatcher: Dispatcher,
        rings: KnownRings,
        rebalancer: Rebalancer,
        connections: Collection[Connection],
    ) -> None:
        self._index = index
        self._log = recent_log
        self._conflator = conflator
        self._dispatcher = dispatcher
        self._rings = rings
        self._rebalancer = rebalancer
        self._connections = connections
        self._ready_offset: int | None = None
        self._is_awaiting_first_batch = True  # the next part of the log is the answer to a hello
        self._is_out_of_sync = False  # a part is missing: what comes is not taken until a hello is answered

    @property
    def is_caught_up(self) -> bool:
        """Whether it has the log up to where the router's was when it came."""
        return self._ready_offset is not None and self._log.position >= self._ready_offset

    def on_ring(self, epoch: str, last: int, now: float) -> None:
        """The router answers a hello. last: its newest offset."""
        self._is_out_of_sync, self._is_awaiting_first_batch = False, True
        if epoch != self._log.epoch:
            self._start_epoch(epoch, now)
        if self._ready_offset is None:
            self._ready_offset = last

    def on_snapshot(self, message: StateSnapshot, now: float) -> bool:
        """A log begins anew where the router says; whether the present states with it are to be taken."""
        if message.epoch != self._log.epoch:
            self._start_epoch(message.epoch, now)
        if self._log.position >= message.end_offset:
            return False  # said twice
        self._restart_log(message.end_offset)
        return True

    def judge_batch(self, message: LogBatch, now: float) -> BatchUse:
        """Says what becomes of a part of the log. One that is to be routed brings the log to its end."""
        if self._is_out_of_sync:
            return BatchUse.skip
        if message.epoch != self._log.epoch:
            self._start_epoch(message.epoch, now)
        if message.prev_offset > self._log.position:
            if not self._is_awaiting_first_batch:
                position, hint = self._log.position, "the missing events are requested from the router"
                logger.warning(
                    "log_gap_detected", shard=self._index, position=position, got=message.prev_offset, hint=hint
                )
                self._is_out_of_sync = True
                return BatchUse.rejoin
            self._skip_gap(message.prev_offset, now)
        self._is_awaiting_first_batch = False
        return BatchUse.route

    def _start_epoch(self, epoch: str, now: float) -> None:
        if self._log.epoch:
            hint = "the router started a new log; its own log says why"
            logger.warning("epoch_changed", shard=self._index, old=self._log.epoch, new=epoch, hint=hint)
            self._lose_all()
        self._log.epoch = epoch
        self._ready_offset = None
        self._rebalancer.reset()
        self._is_awaiting_first_batch = True
        self._restart_log(0)

    def _skip_gap(self, after: int, now: float) -> None:
        """The router's log no longer has what comes next: everything between is gone for this shard."""
        if self._log.position or self._connections:
            hint = "it was away for longer than the journal keeps: raise SOLOWIRE_JOURNAL__MAX_BYTES, _EVENTS or _AGE_S"
            logger.error("log_events_lost", shard=self._index, position=self._log.position, log_begins=after, hint=hint)
            self._lose_all()
        self._restart_log(after)

    def _lose_all(self) -> None:
        """Events are lost for everybody who is here."""
        self._dispatcher.lose_all(list(self._connections), "events were lost here: come back for the current state")

    def _restart_log(self, position: int) -> None:
        self._log.reset(position)
        self._conflator.reset()
        self._rings.reset(position)
