"""How much a gateway takes of publishers: at a time, and of each in the long run.

What it keeps true: the publish requests that are being read, or are under way to the router, have a bound in number and
in bytes; and so has, by that, what the router finds in its queue: gateways × that bound. A request holds its room until
it is answered and the router has taken it: one that was given up here may lie in a queue still. At the bound a request
is refused at once (503 `overloaded`), before it is read, and so it is while the oldest has been under way for too long,
since a new one would wait no shorter.

Room is shared max-min fairly (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2) among the publishers that
hold any, be it places or bytes. A publisher's share is an equal part of all, where one more is counted than there are:
* who stays within its share is refused for want of room only while what the others have too much of is under way to
  the router. Where all is taken, somebody has more than a share: of the one with the most the request that began to be
  read first is ended (408 `too_slow`), since whoever sends at a good pace is done long before;
* who wants more than its share gets it as long as a quarter of all stays free for others, and never more than half of
  all. Its only request may be as large as any that there is room for.
So whoever sends many requests a byte at a time stops its own publishing and nobody else's, under however many names.

A publisher over its own rate is refused with 429 `publish_rate_limited`. Of publishers the MAX_PUBLISHERS that were
heard last are known; who is forgotten begins with a full bucket.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.algorithms.token_bucket import Rate, Rates
from solowire.errors import Refused

MAX_PUBLISHERS = 10_000
RETRY_SECONDS = 1.0
AGAIN = "publish it again with the same ids"
_RAISE_RATE = "an operator raises SOLOWIRE_PUBLISH_RATE"
_RAISE_ROOM = "an operator raises SOLOWIRE_PUBLISH_HELD_REQUESTS and SOLOWIRE_PUBLISH_HELD_BYTES"
_RESERVE = 4
"""One part in so many of all room is for those who have less than their share."""
_OF_ONE = "one publisher may hold no more than its share of what may be under way"


class _Share:
    """What one publisher holds, while it holds anything. reading: its requests that are being read, oldest first."""

    __slots__ = ("bytes", "reading", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.reading: dict[Room, None] = {}


class Room:
    """What one request of `user` holds. number: of the request to the router, None while none is under way.

    ended: it was taken away for another publisher while the request was read; whoever reads it has been told by `end`.
    """

    __slots__ = ("answered", "bytes", "end", "ended", "number", "share", "user")

    def __init__(self, user: str, share: _Share) -> None:
        self.user = user
        self.share = share
        self.bytes = 0
        self.number: int | None = None
        self.answered = False
        self.ended = False
        self.end: Callable[[], object] = lambda: None


class Intake:
    """requests, bytes: held at a time. patience: seconds that the oldest may be under way before others are refused.

    lost: seconds after which one that is under way is taken for lost. rate, burst: events of one publisher.
    """

    def __init__(self, *, requests: int, bytes: int, patience: float, lost: float, rate: float, burst: float) -> None:
        self.requests = 0
        self.bytes = 0
        self.overloads = 0  # requests refused because of the system's state
        self.limited = 0  # requests refused because of their publisher's rate
        self.slow_requests = 0  # requests ended because their body came too slowly, or others needed their room
        self._max_requests = requests
        self._max_bytes = bytes
        self._shares: dict[str, _Share] = {}  # of those who hold anything: no more than there are requests
        self._patience = patience
        self._lost = lost
        self._rate = rate
        self._publishers = Rates(Rate(rate, burst), MAX_PUBLISHERS)
        self._under_way: dict[int, tuple[float, Room]] = {}  # in the order in which they were sent

    def open(self, user: str, now: float) -> Room:
        """Room for a request of `user`, before it is read. Raises Refused."""
        self.check(user, 0, now)
        if self._oldest(now) > self._patience:
            raise self._overloaded()
        share = self._shares.get(user)
        if self.bytes >= self._max_bytes and self._find_victim(share, in_bytes=True) is None:
            raise self._overloaded()  # not a byte of it could be kept
        wanted = 1 if share is None else share.requests + 1
        if wanted == 1 or wanted <= self._share(share, self._max_requests):
            while self.requests >= self._max_requests:
                self._end(self._find_victim(share, in_bytes=False))
        elif _is_too_much(wanted, self.requests + 1, self._max_requests):
            raise self._overloaded(_OF_ONE)
        if share is None:
            share = self._shares[user] = _Share()
        room = Room(user, share)
        self.requests += 1
        share.requests += 1
        share.reading[room] = None
        return room

    def grow(self, room: Room, bytes: int) -> None:
        """So much of the request has come, and is kept. Raises Refused; then it is not to be kept."""
        if room.ended:
            raise self.slow(room)
        share = room.share
        wanted = share.bytes + bytes
        if wanted <= self._share(share, self._max_bytes):
            while self.bytes + bytes > self._max_bytes:
                self._end(self._find_victim(share, in_bytes=True))
        elif self.bytes + bytes > self._max_bytes:
            raise self._overloaded()
        elif share.requests > 1 and _is_too_much(wanted, self.bytes + bytes, self._max_bytes):
            raise self._overloaded(_OF_ONE)
        self._add(room, bytes)

    def empty(self, room: Room) -> None:
        """What had come of the request is not kept any more; it holds its place until it is closed."""
        self._add(room, -room.bytes)

    def slow(self, room: Room) -> Refused:
        """Why the request, whose body has not come in time, is not read any more."""
        self.slow_requests += 1
        if room.ended:
            message = "the place of this request, which was still being read, was needed for other publishers"
            return Refused(408, "too_slow", message, AGAIN, RETRY_SECONDS)
        return Refused(408, "too_slow", "the request's body comes too slowly", "send fewer events in each")

    def check(self, user: str, events: int, now: float) -> None:
        """Whether the publisher may send so many events now; 0 asks whether it is in debt. Raises Refused."""
        wait = self._publishers.wait(user, now, events)
        if wait:
            self.limited += 1
            message = f"one publisher may send {self._rate:g} events a second to a gateway"
            raise Refused(429, "publish_rate_limited", message, f"{AGAIN}; {_RAISE_RATE}", wait)

    def charge(self, user: str, events: int, now: float) -> None:
        """The publisher has sent so many events, which `check` allowed."""
        self._publishers.take(user, now, events)

    def sent(self, room: Room, number: int, now: float) -> None:
        """The request is under way to the router, as `number`, which grows."""
        room.number = number
        room.share.reading.pop(room, None)
        self._under_way[number] = (now, room)

    def taken(self, number: int) -> None:
        """The router has taken `number`, and so all that was sent before: it takes them in their order."""
        while self._under_way and (first := next(iter(self._under_way))) <= number:
            _, room = self._under_way.pop(first)
            room.number = None
            if room.answered:
                self._release(room)

    def forget(self) -> None:
        """The router is another, or away: what was under way to it is in no queue any more."""
        if self._under_way:
            self.taken(next(reversed(self._under_way)))

    def close(self, room: Room) -> None:
        """The publisher has its answer, or nobody waits for it any more."""
        room.answered = True
        if room.number is None and not room.ended:
            self._release(room)

    def _oldest(self, now: float) -> float:
        """Seconds for which the oldest has been under way, of those that are not lost."""
        while self._under_way:
            number, (sent_at, _) = next(iter(self._under_way.items()))
            if now - sent_at <= self._lost:
                return now - sent_at
            self.taken(number)
        return 0.0

    def _share(self, share: _Share | None, most: int) -> float:
        """How much of `most` each publisher may hold in any case, with one that holds nothing yet (None) among them."""
        return most / (len(self._shares) + (share is None) + 1)

    def _find_victim(self, share: _Share | None, *, in_bytes: bool) -> Room | None:
        """The request to end for one of the publisher with `share`, which wants no more than what is fair.

        None where all that the others have too much of is under way.
        """
        if in_bytes:
            fair = self._share(share, self._max_bytes)
            over = [(other.bytes, other) for other in self._shares.values() if other.bytes > fair]
        else:
            fair = max(1.0, self._share(share, self._max_requests))
            over = [(other.requests, other) for other in self._shares.values() if other.requests > fair]
        for _, greedy in sorted(over, key=_amount, reverse=True):
            if greedy is not share:
                for room in greedy.reading:
                    if room.bytes or not in_bytes:
                        return room
        return None

    def _end(self, room: Room | None) -> None:
        """Takes the room of a request that is being read. Raises Refused if there is none."""
        if room is None:
            raise self._overloaded()
        self._release(room)
        room.ended = True
        room.end()

    def _add(self, room: Room, bytes: int) -> None:
        self.bytes += bytes
        room.share.bytes += bytes
        room.bytes += bytes

    def _release(self, room: Room) -> None:
        self.empty(room)
        self.requests -= 1
        share = room.share
        share.requests -= 1
        share.reading.pop(room, None)
        if not share.requests:
            del self._shares[room.user]

    def _overloaded(self, message: str = "more is under way to the log than it can take") -> Refused:
        self.overloads += 1
        return Refused(503, "overloaded", message, f"{AGAIN}; {_RAISE_ROOM}", RETRY_SECONDS)


def _is_too_much(wanted: int, together: int, most: int) -> bool:
    """Whether one who wants more than its share, be it requests or bytes, can't have it."""
    return wanted * 2 > most + 1 or together > most - most // _RESERVE


def _amount(held: tuple[int, _Share]) -> int:
    return held[0]
