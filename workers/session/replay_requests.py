"""Clients that come back with a cursor: what of the log this shard lacks for them, and asks the router for.

    cursor > log.position           it comes from a shard that was ahead: ask whether the cursor is known, wait
    cursor < log.floor              it is older than the recent log: fetch what lies between, keep what its feed accepts
    cursor < find_personal_start(user)       its own events of before went to another shard: fetch those, into the log
    much lies behind the cursor     measure whether what the client may see of it is too much

What it keeps true: a resume is granted when all of it is here, and not before; it is refused with a reason, or comes to
nothing because the router is away, and never granted in part. At most `concurrent` replays are worked on at a time, one
of each user, and none is larger than `max_bytes`; the others wait. Who has had the least of the log read for it comes
first, and does not wait for long for a place of one who has had much. The work is done in turns of TURN_SECONDS, with a
rest after each: a live event waits for one turn at the most. Of a client that has gone nothing is fetched any more,
here or at the router.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, islice
from math import inf

from solowire.backplane import messages as backplane
from solowire.fanout.frame_builder import FeedFilter
from solowire.fanout.recent_log import RecentLog
from solowire.protocol.messages import Hello
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.delivery.known_rings import KnownRings

RECORDS_A_STEP = 50
OWN_RECORDS_A_STEP = 10
"""Each of these is put where it belongs in the recent log, which takes longer."""
MEASURED_A_STEP = 150
TURN_SECONDS = 0.0015
"""A turn ends with the step that is over after that. In one much shorter the rest would be longer than it need be."""
REST = 0.5
"""After a turn there is none for so many times as long as that took."""

YIELD_RECORDS = 50_000
MOVABLE_BYTES = 256 * 1024
"""Who has had so much more read than somebody who waits leaves its place to that one, and goes on later, if it holds no
more than this. Who holds more keeps it: what all of them hold is bounded, and so is how long each can go on.
"""

RECENT = 8
"""To look at so many entries of the recent log takes as long as one record of the router's."""


class ReplayTask:
    """One client's. cursor: it has, or `fragments` hold, all up to it. matcher: says what it may see of the rest.

    cost: how many records are to be read for it, by the look of it. read_count: records that were asked for, or read
    here, so far. rank: the smaller, the sooner it gets its turn; each record read adds to that. began_at: monotonic.
    """

    __slots__ = (
        "ahead_size",
        "began_at",
        "connection",
        "consumed_count",
        "cost",
        "cursor",
        "feed_filter",
        "fragments",
        "hello",
        "is_cursor_known",
        "is_personal",
        "measured",
        "measures_upto",
        "own_upto",
        "part",
        "question",
        "rank",
        "read_count",
        "request",
        "seen_response_count",
        "size",
        "unanswered_checks",
    )

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        cursor: int,
        matcher: FeedFilter,
        *,
        cost: int = 0,
        rank: float = 0.0,
        began: float = 0.0,
    ) -> None:
        self.connection = connection
        self.hello = hello
        self.cursor = cursor
        self.feed_filter = matcher
        self.cost = cost
        self.rank = rank
        self.began_at = began
        self.read_count = 0.0
        self.seen_response_count = (
            -1
        )  # of the router's, whomever for, when this was looked at last while it waited for one
        self.fragments: list[tuple[int, bytes]] = []  # with their offsets
        self.size = 0
        self.is_cursor_known = False  # the router has confirmed that the cursor is none of the future
        self.request: int | None = None  # what the router has not answered
        self.question: backplane.ReplayRequest | None = None  # what it was asked last
        self.unanswered_checks = 0  # how often that was looked at before there was an answer
        self.is_personal = False  # what was asked last
        self.part: backplane.ReplayResponse | None = None  # the answer, while it is taken in
        self.consumed_count = 0  # so many of its events have been
        self.own_upto = 0  # up to where its own events have been fetched
        self.measured = 0  # up to where the recent log has been looked at
        self.measures_upto = 0
        self.ahead_size = 0  # of what the client may see of that

    @property
    def user(self) -> str:
        return self.connection.identity.user


class ReplayScheduler:
    """Asks the router for what clients have missed, in turns.

    questions: what is to be sent to the router. record_rank: what each record that is read for a replay adds to its
    rank. By the clock's stopwatch it learns how long a turn takes; without one a turn is one step.
    """

    def __init__(
        self,
        recent_log: RecentLog,
        rings: KnownRings,
        clock: Clock,
        *,
        concurrent: int,
        max_bytes: int,
        record_rank: float = 0.0,
    ) -> None:
        self._log = recent_log
        self._concurrent = concurrent
        self._max_bytes = max_bytes
        self.questions: list[backplane.ReplayRequest | backplane.ReplayCancel] = []
        self._finished: list[tuple[ReplayTask, str | None]] = []
        self._rings = rings
        self._clock = clock
        self._record_rank = record_rank
        self._requests = count(1)
        self._replays: dict[Connection, ReplayTask] = {}  # all that are not done
        self._waiting: dict[Connection, ReplayTask] = {}  # for a place, who came first first
        self._ahead: dict[Connection, ReplayTask] = {}  # until this shard is where they are
        self._active: dict[str, ReplayTask] = {}  # who has one, by user
        self._asked: dict[int, ReplayTask] = {}  # of those, for whom the router is asked
        self._ready: dict[Connection, ReplayTask] = {}  # and for whom there is something to do here
        self._turn_at = 0.0
        self._is_giving_places = False

    @property
    def due_at(self) -> float:
        """When `run` or `take_finished` has something; infinity if never."""
        if self._finished:
            return -inf
        return self._turn_at if self._ready else inf

    def take_finished(self) -> Iterable[tuple[ReplayTask, str | None]]:
        """For whom all is here, or, with the reason, can't be had."""
        if not self._finished:
            return ()
        finished, self._finished = self._finished, []
        return finished

    def is_waiting(self, replay: ReplayTask) -> bool:
        """Whether the router has a question to answer before the replay can go on, or the log to reach its cursor."""
        return bool(self._asked) or replay.connection in self._ahead

    def start(self, replay: ReplayTask) -> None:
        self._replays[replay.connection] = replay
        if self._is_incomplete(replay) or not self._is_measured(replay):
            self._waiting[replay.connection] = replay
            self._give_places()
        else:
            self._step(replay)

    def cancel(self, connection: Connection) -> ReplayTask | None:
        """Nothing is to be done for the connection any more; returns its replay, if it has one that was not done."""
        replay = self._replays.get(connection)
        if replay is None:
            return None
        self._end(replay)
        self._give_places()
        return replay

    def find(self, connection: Connection) -> ReplayTask | None:
        """What is done for the connection, or waits for its turn to be; None if it has all that it needs."""
        return self._replays.get(connection)

    def on_response(self, message: backplane.ReplayResponse) -> None:
        """What the router says; an answer for one that has gone is nothing."""
        replay = self._asked.pop(message.request, None)
        if replay is None:
            return
        replay.request = None
        if message.refusal is not None:
            self._finish(replay, message.refusal)
        elif not replay.is_personal and replay.cursor > self._log.position:
            replay.is_cursor_known = True
            self._step(replay)
        else:
            replay.part, replay.consumed_count = message, 0
            self._ready[replay.connection] = replay

    def repeat_requests(self) -> None:
        """The router may have begun anew, and forgotten what it was asked. To be asked twice costs it nothing more."""
        for replay in self._asked.values():
            if replay.question is not None:
                self.questions.append(replay.question)

    def on_log_advanced(self) -> None:
        """The log's position has moved."""
        if self._ahead:
            for replay in [r for r in self._ahead.values() if r.cursor <= self._log.position]:
                del self._ahead[replay.connection]
                self.start(replay)

    def run(self, now: float) -> None:
        """One turn, each step of it for the one that comes first."""
        if now < self._turn_at:
            return
        clock = self._clock.stopwatch
        began = clock() if clock is not None else 0.0
        while self._ready:
            replay = min(self._ready.values(), key=self._rank)
            if replay.part is not None:
                self._consume_part(replay, replay.part)
            else:
                self._measure(replay)
            if clock is None:
                return
            took = clock() - began
            self._turn_at = now + took * (1 + REST)
            if took >= TURN_SECONDS:
                return

    # -------------------------------------------------------------------------------------------------- places

    def _give_places(self) -> None:
        if self._is_giving_places:
            return  # one that is done at once leaves its place to the next, however many they are
        self._is_giving_places = True
        try:
            while self._waiting and len(self._active) < self._concurrent:
                replay = min(
                    (r for r in self._waiting.values() if r.user not in self._active), key=self._rank, default=None
                )
                if replay is None:
                    return
                del self._waiting[replay.connection]
                self._active[replay.user] = replay
                self._step(replay)
        finally:
            self._is_giving_places = False

    def _end(self, replay: ReplayTask) -> None:
        for kept in (self._replays, self._waiting, self._ahead, self._ready):
            kept.pop(replay.connection, None)
        self._free_place(replay)
        if replay.request is not None:
            del self._asked[replay.request]
            self.questions.append(backplane.ReplayCancel(replay.request))

    def _must_yield(self, replay: ReplayTask) -> bool:
        """Whether somebody who waits comes before one that has a place, and holds little."""
        others = (r for r in self._waiting.values() if r.user not in self._active)
        rank = self._rank(replay) - YIELD_RECORDS * self._record_rank
        return replay.size <= MOVABLE_BYTES and any(self._rank(other) < rank for other in others)

    def _rank(self, replay: ReplayTask) -> float:
        return replay.rank + replay.read_count * self._record_rank

    def _free_place(self, replay: ReplayTask) -> None:
        if self._active.get(replay.user) is replay:
            del self._active[replay.user]

    def _finish(self, replay: ReplayTask, refusal: str | None) -> None:
        self._end(replay)
        self._finished.append((replay, refusal))
        self._give_places()

    # ------------------------------------------------------------------------------------------------ the work

    def _is_incomplete(self, replay: ReplayTask) -> bool:
        here = self._log.start_offset <= replay.cursor <= self._log.position
        return not here or max(replay.cursor, replay.own_upto) < self._rings.find_personal_start(replay.user)

    def _step(self, replay: ReplayTask) -> None:
        """Goes on to the next thing that is lacking, or is done."""
        cursor = replay.cursor
        find_personal_start = self._rings.find_personal_start(replay.user)
        if cursor > self._log.position:
            if replay.is_cursor_known:
                self._ahead[replay.connection] = replay
                self._free_place(replay)
                self._give_places()
            else:
                self._fetch(replay, cursor, cursor, personal=False)
        elif cursor < self._log.start_offset:
            self._fetch(replay, cursor, self._log.start_offset, personal=False)
        elif max(cursor, replay.own_upto) < find_personal_start:
            self._fetch(replay, max(cursor, replay.own_upto), find_personal_start, personal=True)
        elif not self._is_measured(replay):
            self._ready[replay.connection] = replay
        else:
            self._finish(replay, None)

    def _fetch(self, replay: ReplayTask, after: int, upto: int, *, personal: bool) -> None:
        if self._must_yield(replay):
            self._free_place(replay)
            self._waiting[replay.connection] = replay
            self._give_places()
            return
        replay.is_personal = personal
        replay.unanswered_checks = 0
        replay.measured = replay.measures_upto = replay.ahead_size = 0
        # One who leaves before the answer is here has it read all the same.
        replay.read_count += 1 if personal else min(upto - after, backplane.REPLAY_RECORDS)
        request = replay.request = next(self._requests)
        self._asked[request] = replay
        replay.question = backplane.ReplayRequest(request, self._log.epoch, replay.user, after, upto, personal)
        self.questions.append(replay.question)

    def _consume_part(self, replay: ReplayTask, part: backplane.ReplayResponse) -> None:
        """Takes in some of a part of the log: what the client may see of it, or its own events into the log."""
        end = replay.consumed_count + (OWN_RECORDS_A_STEP if replay.is_personal else RECORDS_A_STEP)
        for offset, body in part.events[replay.consumed_count : end]:
            entry = self._log.decode_entry(offset, body)
            if entry is None:
                continue
            if replay.is_personal:
                self._log.insert_entry(entry)
            elif replay.feed_filter.accepts(entry):
                fragment = replay.feed_filter.encode_for(entry)
                if fragment is not None:
                    replay.fragments.append((offset, fragment))
                    replay.size += len(fragment)
        replay.consumed_count = end
        if replay.size > self._max_bytes:
            self._finish(replay, "too_much")
        elif end >= len(part.events):
            del self._ready[replay.connection]
            replay.part = None
            if replay.is_personal:
                replay.own_upto = part.end_offset
                replay.read_count += len(part.events)
            else:
                replay.cursor = max(replay.cursor, part.end_offset)
            self._step(replay)

    def _is_measured(self, replay: ReplayTask) -> bool:
        """Whether what lies behind the cursor is known not to be too much."""
        if replay.measures_upto and replay.measured >= replay.measures_upto:
            return True
        behind = self._log.count_after(replay.cursor)
        # However much of it the client sees: the usual case, without looking at each event.
        return not behind or behind * (self._log.written_bytes // len(self._log)) * 2 <= self._max_bytes - replay.size

    def _measure(self, replay: ReplayTask) -> None:
        """Looks at some of what lies behind the cursor and was here when that began."""
        if not replay.measures_upto:
            replay.measured, replay.measures_upto = replay.cursor, self._log.position
        entries = list(islice(self._log.entries_after(replay.measured), MEASURED_A_STEP))
        for entry in entries:
            replay.measured = entry.offset
            if entry.event.user in (None, replay.user) and replay.feed_filter.accepts(entry):
                replay.ahead_size += len(replay.feed_filter.encode_for(entry) or b"")
        replay.read_count += len(entries) / RECENT
        if len(entries) < MEASURED_A_STEP:
            replay.measured = replay.measures_upto
        if replay.size + replay.ahead_size > self._max_bytes:
            self._finish(replay, "too_much")
        elif replay.measured >= replay.measures_upto:
            del self._ready[replay.connection]
            self._step(replay)
