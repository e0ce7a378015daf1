"""The limits on publish requests: how many are in flight at a time, and each publisher's rate.

What it keeps true: the publish requests that are being read, or are under way to the router, have a bound in number and
in bytes; and so has, by that, what the router finds in its queue: gateways × that bound. A request holds its room until
it is answered and the router has taken it: one that was given up here may lie in a queue still. At the bound a request
is refused at once (503 `overloaded`), before it is read, and so it is while its publisher's oldest has been under way
for too long, or the router has answered nobody for so long, since a new one would wait no shorter.

Room is shared max-min fairly (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2) among the publishers that
hold any, be it places or bytes. A publisher's share is an equal part of all, where one more is counted than there are:
* who stays within its share is refused for want of room only while what the others have too much of is under way to
  the router. Where all is taken, somebody has more than a share: of the one with the most the request that began to be
  read first is ended (408 `too_slow`), since whoever sends at a good pace is done long before;
* who wants more than its share gets it as long as a quarter of all stays free for others, and never more than half of
  all. Its only request may be as large as any that there is room for.
So whoever sends many requests a byte at a time stops its own publishing and nobody else's, under however many names.

A publisher over its own rate, in events or in bytes of the log, is refused with 429 `publish_rate_limited`. Of
publishers the MAX_PUBLISHERS that were heard last are known; who is forgotten begins with a full bucket. Over several
gateways the router keeps to the rate in bytes, since what one publisher writes takes the log from others.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.errors import RequestRejected
from solowire.runtime.settings.publish_settings import PublishSettings

MAX_PUBLISHERS = 10_000
RETRY_SECONDS = 1.0
AGAIN = "publish it again with the same ids"
_RAISE_RATE = "an operator raises SOLOWIRE_PUBLISH__RATE"
BYTES_HINT = f"{AGAIN}; an operator raises SOLOWIRE_PUBLISH__BYTES_PER_S"
"""For who has sent more than that to the log, be it through this gateway or through all."""
_RAISE_ROOM = "an operator raises SOLOWIRE_PUBLISH__MAX_HELD_REQUESTS and SOLOWIRE_PUBLISH__MAX_HELD_BYTES"
_RESERVE = 4
"""One part in so many of all room is for those who have less than their share."""
_OVER_SHARE = "one publisher may hold no more than its share of what may be under way"


class PublisherUsage:
    """What one publisher holds, while it holds anything. reading: its requests that are being read, oldest first.

    sent_at: of those under way to the router, by number, in the order in which they were sent.
    """

    __slots__ = ("bytes", "reading", "requests", "sent_at")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.reading: dict[Reservation, None] = {}
        self.sent_at: dict[int, float] = {}


class Reservation:
    """What one request of `user` holds. request_number: of the one to the router, None while none is under way.

    is_evicted: it was taken away for another publisher while the request was read; whoever reads it has been told by
    `on_evicted`.
    """

    __slots__ = ("bytes", "is_answered", "is_evicted", "on_evicted", "request_number", "usage", "user")

    def __init__(self, user: str, share: PublisherUsage) -> None:
        self.user = user
        self.usage = share
        self.bytes = 0
        self.request_number: int | None = None
        self.is_answered = False
        self.is_evicted = False
        self.on_evicted: Callable[[], object] = lambda: None


class PublishLimiter:
    """Limits the publish requests in flight and their publishers' rates, as the settings of `[publish]` say.

    A request is refused while the oldest of its publisher is under way for half of what a gateway waits for the
    router's answer, or the router is silent for so long; after twice that time one is taken for lost.
    """

    def __init__(self, settings: PublishSettings) -> None:
        self.requests = 0
        self.bytes = 0
        self.overload_count = 0  # requests refused because of the system's state
        self.rate_limited_count = 0  # requests refused because of their publisher's rate
        self.slow_count = 0  # requests ended because their body came too slowly, or others needed their room
        self._max_requests = settings.max_held_requests
        self._max_bytes = settings.max_held_bytes
        self._usage_by_user: dict[
            str, PublisherUsage
        ] = {}  # of those who hold anything: no more than there are requests
        self._max_age_s = settings.timeout_s / 2
        self._lost_after_s = settings.timeout_s * 2
        self._rate = settings.rate
        self._buckets = BucketTable(Rate(settings.rate, settings.burst), MAX_PUBLISHERS)
        self._bytes_per_s = settings.bytes_per_s
        self._byte_buckets = BucketTable(Rate(settings.bytes_per_s, settings.burst_bytes), MAX_PUBLISHERS)
        self._under_way: dict[int, tuple[float, Reservation]] = {}  # in the order in which they were sent
        self._heard_at = float("-inf")  # when the router answered last

    def reserve(self, user: str, now: float) -> Reservation:
        """Room for a request of `user`, before it is read. Raises RequestRejected."""
        self.check(user, 0, now)
        self.check_bytes(user, 0, now)
        if self._waiting_s(user, now) > self._max_age_s:
            raise self._make_overloaded()
        share = self._usage_by_user.get(user)
        if self.bytes >= self._max_bytes and self._find_victim(share, in_bytes=True) is None:
            raise self._make_overloaded()  # not a byte of it could be kept
        wanted = 1 if share is None else share.requests + 1
        if wanted == 1 or wanted <= self._fair_share(share, self._max_requests):
            while self.requests >= self._max_requests:
                self._evict(self._find_victim(share, in_bytes=False))
        elif _is_too_much(wanted, self.requests + 1, self._max_requests):
            raise self._make_overloaded(_OVER_SHARE)
        if share is None:
            share = self._usage_by_user[user] = PublisherUsage()
        room = Reservation(user, share)
        self.requests += 1
        share.requests += 1
        share.reading[room] = None
        return room

    def grow(self, room: Reservation, bytes: int) -> None:
        """So much of the request has come, and is kept. Raises RequestRejected; then it is not to be kept."""
        if room.is_evicted:
            raise self.reject_slow(room)
        share = room.usage
        wanted = share.bytes + bytes
        if wanted <= self._fair_share(share, self._max_bytes):
            while self.bytes + bytes > self._max_bytes:
                self._evict(self._find_victim(share, in_bytes=True))
        elif self.bytes + bytes > self._max_bytes:
            raise self._make_overloaded()
        elif share.requests > 1 and _is_too_much(wanted, self.bytes + bytes, self._max_bytes):
            raise self._make_overloaded(_OVER_SHARE)
        self._add_bytes(room, bytes)

    def discard_body(self, room: Reservation) -> None:
        """What had come of the request is not kept any more; it holds its place until it is closed."""
        self._add_bytes(room, -room.bytes)

    def reject_slow(self, room: Reservation) -> RequestRejected:
        """Why the request, whose body has not come in time, is not read any more."""
        self.slow_count += 1
        if room.is_evicted:
            message = "the place of this request, which was still being read, was needed for other publishers"
            return RequestRejected(408, "too_slow", message, AGAIN, RETRY_SECONDS)
        return RequestRejected(408, "too_slow", "the request's body comes too slowly", "send fewer events in each")

    def check(self, user: str, weight: int, now: float, *, read_weight: int = 0) -> None:
        """Whether the publisher may send events of that weight now; 0 asks whether it is in debt.

        read_weight: what it pays also if it may not, since they have been read. Raises RequestRejected.
        """
        wait = self._buckets.wait_seconds(user, now, weight)
        if wait:
            self.rate_limited_count += 1
            message = f"one publisher may send {self._rate:g} events a second to a gateway"
            if read_weight:
                self.charge(user, read_weight, now)
                wait = self._buckets.wait_seconds(user, now, weight)
                message += f", and by their size and number of values these count as {weight}"
            raise RequestRejected(429, "publish_rate_limited", message, f"{AGAIN}; {_RAISE_RATE}", wait)

    def charge(self, user: str, weight: int, now: float) -> None:
        """The publisher has sent events of that weight, which `check` allowed."""
        self._buckets.charge_tokens(user, now, weight)

    def check_bytes(self, user: str, size: int, now: float) -> None:
        """Whether the log may take so many bytes more of the publisher now; as `check`."""
        wait = self._byte_buckets.wait_seconds(user, now, size)
        if wait:
            self.rate_limited_count += 1
            limit = self._bytes_per_s / 2**20
            message = f"the log takes {limit:.3g} MiB of events a second from one publisher"
            raise RequestRejected(429, "publish_rate_limited", message, BYTES_HINT, wait)

    def charge_bytes(self, user: str, size: int, now: float) -> None:
        """The publisher has sent so many bytes, which `check_bytes` allowed."""
        self._byte_buckets.charge_tokens(user, now, size)

    def mark_sent(self, room: Reservation, number: int, now: float) -> None:
        """The request is under way to the router, as `number`, which grows."""
        room.request_number = number
        room.usage.reading.pop(room, None)
        room.usage.sent_at[number] = now
        self._under_way[number] = (now, room)

    def mark_received(self, number: int, now: float) -> None:
        """The router has answered `number`: it is in its queue no more. Others may be, which were sent before it."""
        self._heard_at = now
        self._drop(number)

    def _drop(self, number: int) -> None:
        """The request is not under way any more."""
        found = self._under_way.pop(number, None)
        if found is not None:
            _, room = found
            room.request_number = None
            del room.usage.sent_at[number]
            if room.is_answered:
                self._free(room)

    def reset(self) -> None:
        """The router is another, or away: what was under way to it is in no queue any more."""
        for number in list(self._under_way):
            self._drop(number)

    def release(self, room: Reservation) -> None:
        """The publisher has its answer, or nobody waits for it any more."""
        room.is_answered = True
        if room.request_number is None and not room.is_evicted:
            self._free(room)

    def _waiting_s(self, user: str, now: float) -> float:
        """Seconds for which the publisher's oldest has been under way, or the router silent while any has been."""
        while self._under_way:
            number, (sent_at, _) = next(iter(self._under_way.items()))
            if now - sent_at <= self._lost_after_s:
                share = self._usage_by_user.get(user)
                own_at = next(iter(share.sent_at.values()), now) if share is not None else now
                return now - min(own_at, max(sent_at, self._heard_at))
            self._drop(number)
        return 0.0

    def _fair_share(self, share: PublisherUsage | None, most: int) -> float:
        """How much of `most` each publisher may hold in any case, with one that holds nothing yet (None) among them."""
        return most / (len(self._usage_by_user) + (share is None) + 1)

    def _find_victim(self, share: PublisherUsage | None, *, in_bytes: bool) -> Reservation | None:
        """The request to end for one of the publisher with `share`, which wants no more than what is fair.

        None where all that the others have too much of is under way.
        """
        if in_bytes:
            fair = self._fair_share(share, self._max_bytes)
            over = [(other.bytes, other) for other in self._usage_by_user.values() if other.bytes > fair]
        else:
            fair = max(1.0, self._fair_share(share, self._max_requests))
            over = [(other.requests, other) for other in self._usage_by_user.values() if other.requests > fair]
        for _, greedy in sorted(over, key=_amount, reverse=True):
            if greedy is not share:
                for room in greedy.reading:
                    if room.bytes or not in_bytes:
                        return room
        return None

    def _evict(self, room: Reservation | None) -> None:
        """Takes the room of a request that is being read. Raises RequestRejected if there is none."""
        if room is None:
            raise self._make_overloaded()
        self._free(room)
        room.is_evicted = True
        room.on_evicted()

    def _add_bytes(self, room: Reservation, bytes: int) -> None:
        self.bytes += bytes
        room.usage.bytes += bytes
        room.bytes += bytes

    def _free(self, room: Reservation) -> None:
        self.discard_body(room)
        self.requests -= 1
        share = room.usage
        share.requests -= 1
        share.reading.pop(room, None)
        if not share.requests:
            del self._usage_by_user[room.user]

    def _make_overloaded(self, message: str = "more is under way to the log than it can take") -> RequestRejected:
        self.overload_count += 1
        return RequestRejected(503, "overloaded", message, f"{AGAIN}; {_RAISE_ROOM}", RETRY_SECONDS)


def _is_too_much(wanted: int, together: int, most: int) -> bool:
    """Whether one who wants more than its share, be it requests or bytes, can't have it."""
    return wanted * 2 > most + 1 or together > most - most // _RESERVE


def _amount(held: tuple[int, PublisherUsage]) -> int:
    return held[0]
