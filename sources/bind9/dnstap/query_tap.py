"""From frames of dnstap to events: decoded, paired, made into JSON, shown to observers.

Pure but for its observers; time is an argument. One damaged message costs itself alone: it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage, make_message_decoder
from solowire.sources.bind9.dnstap.exchange_table import Exchange, ExchangeTable
from solowire.sources.bind9.dnstap.query_event import QueryEventMaker
from solowire.sources.bind9.queries.query_observer import QueryObserver


class TapCounts(msgspec.Struct):
    """Counts since the tap began.

    frames: all. queries: events made. unanswered, unasked: those among them without an answer, and without a query.
    skipped: frames that tell of no query. damaged: what could not be understood.
    """

    frames: int = 0
    queries: int = 0
    unanswered: int = 0
    unasked: int = 0
    skipped: int = 0
    damaged: int = 0


class QueryTap:
    """Turns the frames of one server into events.

    observers: are shown each query. observe_upstream: is shown each message between the server and those that it asks,
    and `now`. last_fault: what the newest damaged message had.
    """

    def __init__(
        self,
        events: QueryEventMaker,
        observers: Sequence[QueryObserver] = (),
        observe_upstream: Callable[[TappedMessage, float], None] = lambda message, now: None,
    ) -> None:
        self.counts = TapCounts()
        self.last_fault = ""
        self._decode = make_message_decoder()
        self._exchanges = ExchangeTable()
        self._events = events
        self._observers = tuple(observers)
        self._observe_upstream = observe_upstream

    def take_frames(self, frames: Iterable[bytes], now: float, wall: float) -> list[bytes]:
        """The events that are complete with these frames, as JSON. now: seconds by a clock that is not set; wall: unix.

        Each frame is one message, with all of its bytes.
        """
        counts = self.counts
        events: list[bytes] = []
        for frame in frames:
            counts.frames += 1
            try:
                message = self._decode(frame)
            except DnstapError as error:
                self._note_damaged(error)
                continue
            if message is None:
                counts.skipped += 1
            elif message.is_upstream:
                self._observe_upstream(message, now)
            elif (exchange := self._exchanges.add(message, now)) is not None:
                self._make_event(exchange, wall, events)
        return events

    def expire(self, now: float, wall: float) -> list[bytes]:
        """The events of queries and answers that have waited long enough for the other."""
        return self._make_events(self._exchanges.expire(now), wall)

    def end(self, wall: float) -> list[bytes]:
        """The events of all that still waits."""
        return self._make_events(self._exchanges.clear(), wall)

    def _make_events(self, exchanges: Iterable[Exchange], wall: float) -> list[bytes]:
        events: list[bytes] = []
        for exchange in exchanges:
            self._make_event(exchange, wall, events)
        return events

    def _make_event(self, exchange: Exchange, wall: float, events: list[bytes]) -> None:
        counts = self.counts
        try:
            made = self._events.make_event(exchange, wall)
        except DnstapError as error:
            self._note_damaged(error)
            return
        if made is None:
            counts.skipped += 1
            return
        event, observed = made
        counts.queries += 1
        if exchange.response is None:
            counts.unanswered += 1
        elif exchange.query is None:
            counts.unasked += 1
        events.append(event)
        for observer in self._observers:
            observer.observe_query(observed)

    def _note_damaged(self, error: DnstapError) -> None:
        self.counts.damaged += 1
        self.last_fault = str(error)
