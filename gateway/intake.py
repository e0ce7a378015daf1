"""How much a gateway takes of publishers: at a time, and of each in the long run.

What it keeps true: the publish requests that are being read, or are under way to the router, have a bound in number and
in bytes; and so has, by that, what the router finds in its queue: gateways × that bound. A request holds its room until
it is answered and the router has taken it: one that was given up here may lie in a queue still. At the bound a request
is refused at once (503 `overloaded`), before it is read, and so it is while the oldest has been under way for too long,
since a new one would wait no shorter. One publisher alone never holds more than half of the requests, nor of the bytes
with more than one of them: whoever sends many requests a byte at a time stops its own publishing and nobody else's.

A publisher over its own rate is refused with 429 `publish_rate_limited`. Of publishers the MAX_PUBLISHERS that were
heard last are known; who is forgotten begins with a full bucket.
"""

from __future__ import annotations

from solowire.errors import Refused
from solowire.rates import Rate, Rates

MAX_PUBLISHERS = 10_000
RETRY_SECONDS = 1.0
AGAIN = "publish it again with the same ids"
_RAISE_RATE = "an operator raises SOLOWIRE_PUBLISH_RATE"
_RAISE_ROOM = "an operator raises SOLOWIRE_PUBLISH_HELD_REQUESTS and SOLOWIRE_PUBLISH_HELD_BYTES"
_OF_ONE = "one publisher may hold no more than half of what may be under way"


class _Share:
    """What one publisher holds, while it holds anything."""

    __slots__ = ("bytes", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0


class Room:
    """What one request of `user` holds. number: of the request to the router, None while none is under way."""

    __slots__ = ("answered", "bytes", "number", "share", "user")

    def __init__(self, user: str, share: _Share) -> None:
        self.user = user
        self.share = share
        self.bytes = 0
        self.number: int | None = None
        self.answered = False


class Intake:
    """requests, bytes: held at a time. patience: seconds that the oldest may be under way before others are refused.

    lost: seconds after which one that is under way is taken for lost. rate, burst: events of one publisher.
    """

    def __init__(self, *, requests: int, bytes: int, patience: float, lost: float, rate: float, burst: float) -> None:
        self.requests = 0
        self.bytes = 0
        self.overloads = 0  # requests refused because of the system's state
        self.limited = 0  # requests refused because of their publisher's rate
        self._max_requests = requests
        self._max_bytes = bytes
        self._most_of_one = (requests + 1) // 2
        self._most_bytes_of_one = bytes // 2
        self._shares: dict[str, _Share] = {}  # of those who hold anything: no more than there are requests
        self._patience = patience
        self._lost = lost
        self._rate = rate
        self._publishers = Rates(Rate(rate, burst), MAX_PUBLISHERS)
        self._under_way: dict[int, tuple[float, Room]] = {}  # in the order in which they were sent

    def open(self, user: str, now: float) -> Room:
        """Room for a request of `user`, before it is read. Raises Refused."""
        self.check(user, 0, now)
        oldest = self._oldest(now)
        if self.requests >= self._max_requests or self.bytes >= self._max_bytes or oldest > self._patience:
            raise self._overloaded()
        share = self._shares.get(user)
        if share is None:
            share = self._shares[user] = _Share()
        elif share.requests >= self._most_of_one:
            raise self._overloaded(_OF_ONE)
        self.requests += 1
        share.requests += 1
        return Room(user, share)

    def grow(self, room: Room, bytes: int) -> None:
        """So much of the request has come, and is kept. Raises Refused; then it is not to be kept."""
        share = room.share
        if self.bytes + bytes > self._max_bytes:
            raise self._overloaded()
        # Its only request may be as large as any: half of what there is may be less than one.
        if share.bytes + bytes > self._most_bytes_of_one and share.requests > 1:
            raise self._overloaded(_OF_ONE)
        self._add(room, bytes)

    def empty(self, room: Room) -> None:
        """What had come of the request is not kept any more; it holds its place until it is closed."""
        self._add(room, -room.bytes)

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
        if room.number is None:
            self._release(room)

    def _oldest(self, now: float) -> float:
        """Seconds for which the oldest has been under way, of those that are not lost."""
        while self._under_way:
            number, (sent_at, _) = next(iter(self._under_way.items()))
            if now - sent_at <= self._lost:
                return now - sent_at
            self.taken(number)
        return 0.0

    def _add(self, room: Room, bytes: int) -> None:
        self.bytes += bytes
        room.share.bytes += bytes
        room.bytes += bytes

    def _release(self, room: Room) -> None:
        self.empty(room)
        self.requests -= 1
        room.share.requests -= 1
        if not room.share.requests:
            del self._shares[room.user]

    def _overloaded(self, message: str = "more is under way to the log than it can take") -> Refused:
        self.overloads += 1
        return Refused(503, "overloaded", message, f"{AGAIN}; {_RAISE_ROOM}", RETRY_SECONDS)
