"""Queries and their answers brought together, though `named` tells of each by itself and in no strict order.

Pure: messages in, exchanges out; time is an argument. What it keeps true:

* Each query and each answer leaves in exactly one exchange, alone if the other never came.
* What waits has two bounds: a time, and MAX_WAITING messages of each kind; at that bound the oldest leaves alone.
* A query whose client sends it again, and one whose id its client uses again, leaves alone when the next one comes.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from solowire.sources.bind9.dnstap.dns_message import HEADER_BYTES
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage

ANSWER_TIMEOUT_S = 11.0
"""For which a query waits for its answer: `named` gives up after 10 s (`resolver-query-timeout`), and answers so."""
QUERY_TIMEOUT_S = 0.25
"""For which an answer waits for its query: frames of several threads overtake each other by milliseconds."""
MAX_WAITING = 65_536

_Key = tuple[bytes, int, bytes]
_Waiting = OrderedDict[_Key, tuple[float, TappedMessage]]  # of a dict, the first is found slowly once many have left


class Exchange(msgspec.Struct, frozen=True, gc=False):
    """A query and its answer; one of both may be missing."""

    query: TappedMessage | None
    response: TappedMessage | None


class ExchangeTable:
    """Brings messages of one server together, by the client's address and port and by the message's id."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._queries: _Waiting = OrderedDict()
        self._responses: _Waiting = OrderedDict()

    def __len__(self) -> int:
        return len(self._queries) + len(self._responses)

    def add(self, message: TappedMessage, now: float) -> Exchange | None:
        """Takes in a query or an answer of a client's; `now`: seconds by a clock that is not set.

        Returns what is complete with it, or has to leave for it.
        """
        key = (message.asker, message.asker_port, message.wire[:2])
        is_response = message.is_response
        others = self._queries if is_response else self._responses
        if (waiting := others.get(key)) is not None:
            query, response = (waiting[1], message) if is_response else (message, waiting[1])
            if _is_answer(response, query):
                del others[key]
                return Exchange(query, response)
            if is_response:
                return Exchange(None, message)
        return self._wait(self._responses if is_response else self._queries, key, message, now)

    def expire(self, now: float) -> list[Exchange]:
        """What has waited long enough, oldest first."""
        expired = []
        for table, timeout in ((self._queries, ANSWER_TIMEOUT_S), (self._responses, QUERY_TIMEOUT_S)):
            while table and next(iter(table.values()))[0] + timeout <= now:
                expired.append(_leave_alone(table.popitem(last=False)[1][1]))
        return expired

    def clear(self) -> list[Exchange]:
        """All that waits, when nothing more comes."""
        waiting = [_leave_alone(message) for table in (self._queries, self._responses) for _, message in table.values()]
        self._queries.clear()
        self._responses.clear()
        return waiting

    def _wait(self, table: _Waiting, key: _Key, message: TappedMessage, now: float) -> Exchange | None:
        leaving = table.pop(key, None)
        if leaving is None and len(table) >= self._max_waiting:
            leaving = table.popitem(last=False)[1]
        table[key] = (now, message)
        return None if leaving is None else _leave_alone(leaving[1])


def _leave_alone(message: TappedMessage) -> Exchange:
    return Exchange(None, message) if message.is_response else Exchange(message, None)


def _is_answer(response: TappedMessage, query: TappedMessage) -> bool:
    """Whether both have the same question, as far as it is compared quickly, or the answer has none."""
    asked, answered = query.wire, response.wire
    end = asked.find(b"\0", HEADER_BYTES) + 5
    return asked[HEADER_BYTES:end] == answered[HEADER_BYTES:end] or answered[4:6] == b"\0\0"
