"""Clients that come back with a cursor: what of the log this shard lacks for them, and asks the router for.

    cursor > log.position           it comes from a shard that was ahead: ask whether the cursor is known, wait
    cursor < log.floor              it is older than the recent log: fetch what lies between, keep what its feed accepts
    cursor < whole_from(user)       its own events of before went to another shard: fetch those, into the log

What it keeps true: a resume is granted when all of it is here, and not before; it is refused with a reason, or comes to
nothing because the router is away, and never granted in part. At most `concurrent` replays are fetched at a time, and
none is larger than `max_bytes`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count

import msgspec
import structlog

from solowire import backplane
from solowire.client_protocol import Hello
from solowire.feed import Feed
from solowire.log import Entry, Log
from workers.connection import Connection

log = structlog.get_logger("solowire.shard")


class Replay:
    """One client's. cursor: it has, or `fragments` hold, all up to it. matcher: says what it may see of the rest."""

    __slots__ = ("connection", "cursor", "fragments", "hello", "known", "matcher", "own_upto", "personal", "size")

    def __init__(self, connection: Connection, hello: Hello, cursor: int, matcher: Feed[Connection]) -> None:
        self.connection = connection
        self.hello = hello
        self.cursor = cursor
        self.matcher = matcher
        self.fragments: list[tuple[int, bytes]] = []  # with their offsets
        self.size = 0
        self.known = False  # the router has confirmed that the cursor is none of the future
        self.personal = False  # what was asked last
        self.own_upto = 0  # up to where its own events have been fetched


class Replays:
    """done(replay, refusal) is called when all is here (refusal None) or it can't be had. ask: sends to the router."""

    def __init__(
        self,
        recent: Log,
        *,
        concurrent: int,
        max_bytes: int,
        ask: Callable[[backplane.Replay], bool],
        epoch: Callable[[], str],
        whole_from: Callable[[str], int],
        done: Callable[[Replay, str | None], None],
    ) -> None:
        self._log = recent
        self._concurrent = concurrent
        self._max_bytes = max_bytes
        self._ask = ask
        self._epoch = epoch
        self._whole_from = whole_from
        self._done = done
        self._requests = count(1)
        self._asked: dict[int, Replay] = {}
        self._queue: deque[Replay] = deque()
        self._ahead: list[Replay] = []

    def start(self, replay: Replay) -> None:
        if self._lacks(replay) and len(self._asked) >= self._concurrent:
            self._queue.append(replay)
        else:
            self._step(replay)

    def drop(self, connection: Connection) -> None:
        """The connection has gone."""
        self._ahead = [r for r in self._ahead if r.connection is not connection]
        self._queue = deque(r for r in self._queue if r.connection is not connection)
        for request, replay in list(self._asked.items()):
            if replay.connection is connection:
                del self._asked[request]
        self._next()

    def of(self, connection: Connection) -> Replay | None:
        """What is fetched for the connection, or waits for its turn to be; None if nothing is to be fetched."""
        return next((r for r in (*self._asked.values(), *self._queue) if r.connection is connection), None)

    def answered(self, message: backplane.Replayed) -> None:
        """What the router says; an answer for one that has gone is nothing."""
        replay = self._asked.pop(message.request, None)
        if replay is None:
            return
        if message.refusal is not None:
            self._done(replay, message.refusal)
        elif replay.personal:
            self._take_own(replay, message)
            self._step(replay)
        elif replay.cursor > self._log.position:
            replay.known = True
            self._step(replay)
        elif self._take(replay, message):
            self._step(replay)
        else:
            self._done(replay, "too_much")
        self._next()

    def moved_on(self) -> None:
        """The log's position has moved."""
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            for replay in ahead:
                self._step(replay)

    def _lacks(self, replay: Replay) -> bool:
        user = replay.connection.identity.user
        here = self._log.floor <= replay.cursor <= self._log.position
        return not here or max(replay.cursor, replay.own_upto) < self._whole_from(user)

    def _step(self, replay: Replay) -> None:
        """Fetches the next part that is lacking, or is done."""
        user, cursor = replay.connection.identity.user, replay.cursor
        if cursor > self._log.position:
            if replay.known:
                self._ahead.append(replay)
            else:
                self._fetch(replay, cursor, cursor, personal=False)
        elif cursor < self._log.floor:
            self._fetch(replay, cursor, self._log.floor, personal=False)
        elif max(cursor, replay.own_upto) < self._whole_from(user):
            self._fetch(replay, max(cursor, replay.own_upto), self._whole_from(user), personal=True)
        elif self._is_too_much(replay):
            self._done(replay, "too_much")
        else:
            self._done(replay, None)

    def _fetch(self, replay: Replay, after: int, upto: int, *, personal: bool) -> None:
        replay.personal = personal
        request = next(self._requests)
        self._asked[request] = replay
        user = replay.connection.identity.user
        self._ask(backplane.Replay(request, self._epoch(), user, after, upto, personal))

    def _take(self, replay: Replay, message: backplane.Replayed) -> bool:
        """Keeps what the client may see of a part of the log; False if that is too much."""
        for offset, body in message.events:
            entry = self._entry(offset, body)
            if entry is None or not replay.matcher.accepts(entry):
                continue
            fragment = replay.matcher.fragment(entry)
            if fragment is not None:
                replay.fragments.append((offset, fragment))
                replay.size += len(fragment)
        replay.cursor = max(replay.cursor, message.upto)
        return replay.size <= self._max_bytes

    def _take_own(self, replay: Replay, message: backplane.Replayed) -> None:
        for offset, body in message.events:
            entry = self._entry(offset, body)
            if entry is not None:
                self._log.insert(entry)
        replay.own_upto = message.upto

    def _entry(self, offset: int, body: bytes) -> Entry | None:
        try:
            return self._log.entry(offset, body)
        except (msgspec.DecodeError, ValueError) as error:
            hint = "no client gets it: a fault of ours, or processes of several versions"
            log.error("event_undecodable", offset=offset, error=str(error), hint=hint)
            return None

    def _is_too_much(self, replay: Replay) -> bool:
        left = self._max_bytes - replay.size
        behind = self._log.count_after(replay.cursor)
        if not behind or behind * (self._log.bytes // len(self._log)) * 2 <= left:
            return False  # however much of it the client sees: the usual case, without looking at each event
        user = replay.connection.identity.user
        for entry in self._log.after(replay.cursor):
            if entry.event.user in (None, user) and replay.matcher.accepts(entry):
                left -= len(replay.matcher.fragment(entry) or b"")
                if left < 0:
                    return True
        return False

    def _next(self) -> None:
        while self._queue and len(self._asked) < self._concurrent:
            self._step(self._queue.popleft())
