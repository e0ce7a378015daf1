"""Clients that come back with a cursor: what of the log this shard lacks for them, and asks the router for.

    cursor > log.position           it comes from a shard that was ahead: ask whether the cursor is known, wait
    cursor < log.floor              it is older than the recent log: fetch what lies between, keep what its feed accepts
    cursor < whole_from(user)       its own events of before went to another shard: fetch those, into the log
    much lies behind the cursor     measure whether what the client may see of it is too much

What it keeps true: a resume is granted when all of it is here, and not before; it is refused with a reason, or comes to
nothing because the router is away, and never granted in part. At most `concurrent` replays are worked on at a time, one
of each user, and none is larger than `max_bytes`; the others wait. Who has had the least of the log read for it comes
first, and does not wait for long for a place of one who has had much. The work is done in turns of TURN_SECONDS, with a
rest after each: a live event waits for one turn at the most. Of a client that has gone nothing is fetched any more,
here or at the router.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from math import inf

from solowire.backplane import messages as backplane
from solowire.fanout.feed import Feed
from solowire.fanout.recent_log import Log
from solowire.protocol.messages import Hello
from solowire.workers.connections.connection import Connection

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


class Replay:
    """One client's. cursor: it has, or `fragments` hold, all up to it. matcher: says what it may see of the rest.

    cost: how many records are to be read for it, by the look of it. read: records that were asked for, or read here, so
    far. rank: the smaller, the sooner it gets its turn; each record read adds to that. began: when, seconds, monotonic.
    """

    __slots__ = (
        "ahead_size",
        "answers",
        "began",
        "connection",
        "cost",
        "cursor",
        "fragments",
        "hello",
        "known",
        "matcher",
        "measured",
        "measures_upto",
        "own_upto",
        "part",
        "personal",
        "question",
        "rank",
        "read",
        "request",
        "size",
        "taken",
        "unanswered",
    )

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        cursor: int,
        matcher: Feed[Connection],
        *,
        cost: int = 0,
        rank: float = 0.0,
        began: float = 0.0,
    ) -> None:
        self.connection = connection
        self.hello = hello
        self.cursor = cursor
        self.matcher = matcher
        self.cost = cost
        self.rank = rank
        self.began = began
        self.read = 0.0
        self.answers = -1  # of the router's, whomever for, when this was looked at last while it waited for one
        self.fragments: list[tuple[int, bytes]] = []  # with their offsets
        self.size = 0
        self.known = False  # the router has confirmed that the cursor is none of the future
        self.request: int | None = None  # what the router has not answered
        self.question: backplane.Replay | None = None  # what it was asked last
        self.unanswered = 0  # how often that was looked at before there was an answer
        self.personal = False  # what was asked last
        self.part: backplane.Replayed | None = None  # the answer, while it is taken in
        self.taken = 0  # so many of its events have been
        self.own_upto = 0  # up to where its own events have been fetched
        self.measured = 0  # up to where the recent log has been looked at
        self.measures_upto = 0
        self.ahead_size = 0  # of what the client may see of that

    @property
    def user(self) -> str:
        return self.connection.identity.user


class Replays:
    """done(replay, refusal) is called when all is here (refusal None) or it can't be had. ask: sends to the router.

    stopwatch: reads a clock, in seconds, to learn how long a turn takes; without it a turn is one step. record_rank:
    what each record that is read for a replay adds to its rank.
    """

    def __init__(
        self,
        recent: Log,
        *,
        concurrent: int,
        max_bytes: int,
        ask: Callable[[backplane.Replay | backplane.ReplayCancel], bool],
        epoch: Callable[[], str],
        whole_from: Callable[[str], int],
        done: Callable[[Replay, str | None], None],
        stopwatch: Callable[[], float] | None = None,
        record_rank: float = 0.0,
    ) -> None:
        self._log = recent
        self._concurrent = concurrent
        self._max_bytes = max_bytes
        self._ask = ask
        self._epoch = epoch
        self._whole_from = whole_from
        self._done = done
        self._stopwatch = stopwatch
        self._record_rank = record_rank
        self._requests = count(1)
        self._replays: dict[Connection, Replay] = {}  # all that are not done
        self._waiting: dict[Connection, Replay] = {}  # for a place, who came first first
        self._ahead: dict[Connection, Replay] = {}  # until this shard is where they are
        self._active: dict[str, Replay] = {}  # who has one, by user
        self._asked: dict[int, Replay] = {}  # of those, for whom the router is asked
        self._ready: dict[Connection, Replay] = {}  # and for whom there is something to do here
        self._turn_at = 0.0
        self._gives_places = False

    @property
    def due(self) -> float:
        """When `run` has something to do; infinity if never."""
        return self._turn_at if self._ready else inf

    def waits(self, replay: Replay) -> bool:
        """Whether the router has a question to answer before the replay can go on, or the log to reach its cursor."""
        return bool(self._asked) or replay.connection in self._ahead

    def start(self, replay: Replay) -> None:
        self._replays[replay.connection] = replay
        if self._lacks(replay) or not self._is_measured(replay):
            self._waiting[replay.connection] = replay
            self._give_places()
        else:
            self._step(replay)

    def drop(self, connection: Connection) -> Replay | None:
        """Nothing is to be done for the connection any more; returns its replay, if it has one that was not done."""
        replay = self._replays.get(connection)
        if replay is None:
            return None
        self._end(replay)
        self._give_places()
        return replay

    def of(self, connection: Connection) -> Replay | None:
        """What is done for the connection, or waits for its turn to be; None if it has all that it needs."""
        return self._replays.get(connection)

    def answered(self, message: backplane.Replayed) -> None:
        """What the router says; an answer for one that has gone is nothing."""
        replay = self._asked.pop(message.request, None)
        if replay is None:
            return
        replay.request = None
        if message.refusal is not None:
            self._finish(replay, message.refusal)
        elif not replay.personal and replay.cursor > self._log.position:
            replay.known = True
            self._step(replay)
        else:
            replay.part, replay.taken = message, 0
            self._ready[replay.connection] = replay

    def ask_again(self) -> None:
        """The router may have begun anew, and forgotten what it was asked. To be asked twice costs it nothing more."""
        for replay in self._asked.values():
            if replay.question is not None:
                self._ask(replay.question)

    def moved_on(self) -> None:
        """The log's position has moved."""
        if self._ahead:
            for replay in [r for r in self._ahead.values() if r.cursor <= self._log.position]:
                del self._ahead[replay.connection]
                self.start(replay)

    def run(self, now: float) -> None:
        """One turn, each step of it for the one that comes first."""
        if now < self._turn_at:
            return
        clock = self._stopwatch
        began = clock() if clock is not None else 0.0
        while self._ready:
            replay = min(self._ready.values(), key=self._rank)
            if replay.part is not None:
                self._take(replay, replay.part)
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
        if self._gives_places:
            return  # one that is done at once leaves its place to the next, however many they are
        self._gives_places = True
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
            self._gives_places = False

    def _end(self, replay: Replay) -> None:
        for kept in (self._replays, self._waiting, self._ahead, self._ready):
            kept.pop(replay.connection, None)
        self._leave(replay)
        if replay.request is not None:
            del self._asked[replay.request]
            self._ask(backplane.ReplayCancel(replay.request))

    def _gives_way(self, replay: Replay) -> bool:
        """Whether somebody who waits comes before one that has a place, and holds little."""
        others = (r for r in self._waiting.values() if r.user not in self._active)
        rank = self._rank(replay) - YIELD_RECORDS * self._record_rank
        return replay.size <= MOVABLE_BYTES and any(self._rank(other) < rank for other in others)

    def _rank(self, replay: Replay) -> float:
        return replay.rank + replay.read * self._record_rank

    def _leave(self, replay: Replay) -> None:
        if self._active.get(replay.user) is replay:
            del self._active[replay.user]

    def _finish(self, replay: Replay, refusal: str | None) -> None:
        self._end(replay)
        self._done(replay, refusal)
        self._give_places()

    # ------------------------------------------------------------------------------------------------ the work

    def _lacks(self, replay: Replay) -> bool:
        here = self._log.floor <= replay.cursor <= self._log.position
        return not here or max(replay.cursor, replay.own_upto) < self._whole_from(replay.user)

    def _step(self, replay: Replay) -> None:
        """Goes on to the next thing that is lacking, or is done."""
        cursor = replay.cursor
        whole_from = self._whole_from(replay.user)
        if cursor > self._log.position:
            if replay.known:
                self._ahead[replay.connection] = replay
                self._leave(replay)
                self._give_places()
            else:
                self._fetch(replay, cursor, cursor, personal=False)
        elif cursor < self._log.floor:
            self._fetch(replay, cursor, self._log.floor, personal=False)
        elif max(cursor, replay.own_upto) < whole_from:
            self._fetch(replay, max(cursor, replay.own_upto), whole_from, personal=True)
        elif not self._is_measured(replay):
            self._ready[replay.connection] = replay
        else:
            self._finish(replay, None)

    def _fetch(self, replay: Replay, after: int, upto: int, *, personal: bool) -> None:
        if self._gives_way(replay):
            self._leave(replay)
            self._waiting[replay.connection] = replay
            self._give_places()
            return
        replay.personal = personal
        replay.unanswered = 0
        replay.measured = replay.measures_upto = replay.ahead_size = 0
        # One who leaves before the answer is here has it read all the same.
        replay.read += 1 if personal else min(upto - after, backplane.REPLAY_RECORDS)
        request = replay.request = next(self._requests)
        self._asked[request] = replay
        replay.question = backplane.Replay(request, self._epoch(), replay.user, after, upto, personal)
        self._ask(replay.question)

    def _take(self, replay: Replay, part: backplane.Replayed) -> None:
        """Takes in some of a part of the log: what the client may see of it, or its own events into the log."""
        end = replay.taken + (OWN_RECORDS_A_STEP if replay.personal else RECORDS_A_STEP)
        for offset, body in part.events[replay.taken : end]:
            entry = self._log.entry(offset, body)
            if entry is None:
                continue
            if replay.personal:
                self._log.insert(entry)
            elif replay.matcher.accepts(entry):
                fragment = replay.matcher.fragment(entry)
                if fragment is not None:
                    replay.fragments.append((offset, fragment))
                    replay.size += len(fragment)
        replay.taken = end
        if replay.size > self._max_bytes:
            self._finish(replay, "too_much")
        elif end >= len(part.events):
            del self._ready[replay.connection]
            replay.part = None
            if replay.personal:
                replay.own_upto = part.upto
                replay.read += len(part.events)
            else:
                replay.cursor = max(replay.cursor, part.upto)
            self._step(replay)

    def _is_measured(self, replay: Replay) -> bool:
        """Whether what lies behind the cursor is known not to be too much."""
        if replay.measures_upto and replay.measured >= replay.measures_upto:
            return True
        behind = self._log.count_after(replay.cursor)
        # However much of it the client sees: the usual case, without looking at each event.
        return not behind or behind * (self._log.written_bytes // len(self._log)) * 2 <= self._max_bytes - replay.size

    def _measure(self, replay: Replay) -> None:
        """Looks at some of what lies behind the cursor and was here when that began."""
        if not replay.measures_upto:
            replay.measured, replay.measures_upto = replay.cursor, self._log.position
        entries = list(islice(self._log.after(replay.measured), MEASURED_A_STEP))
        for entry in entries:
            replay.measured = entry.offset
            if entry.event.user in (None, replay.user) and replay.matcher.accepts(entry):
                replay.ahead_size += len(replay.matcher.fragment(entry) or b"")
        replay.read += len(entries) / RECENT
        if len(entries) < MEASURED_A_STEP:
            replay.measured = replay.measures_upto
        if replay.size + replay.ahead_size > self._max_bytes:
            self._finish(replay, "too_much")
        elif replay.measured >= replay.measures_upto:
            del self._ready[replay.connection]
            self._step(replay)
