"""Token buckets (GCRA), one or one for each address or user, each kept as one number.

What it keeps true: within any time t no more than burst + rate × t is taken, but for one thing that is larger than the
burst: it is taken from a full bucket, which is in debt until it is paid for. A bucket is the moment at which it will be
full again (the generic cell rate algorithm, ITU-T I.371, says the same from the other side), so one that is full is no
bucket at all and needs no memory. A table of them has a bound: where more addresses than that are under way, the one
that came least recently is forgotten, and begins with a full bucket when it comes again. So many strangers can't fill
the memory, and can't have anyone refused; what they may do together is bounded by the rate of all.

Times are seconds of any one clock.
"""

from __future__ import annotations

from collections import OrderedDict

_ROUNDING_SECONDS = 1e-6


class Rate:
    """The rate and burst of a token bucket. per_second: in the long run. burst: at once."""

    __slots__ = ("_each", "burst")

    def __init__(self, per_second: float, burst: float) -> None:
        self._each = 1 / per_second
        self.burst = max(burst, 1.0)

    @property
    def per_second(self) -> float:
        return 1 / self._each

    @property
    def refill_seconds(self) -> float:
        """How long an empty bucket takes to be full."""
        return self.burst * self._each

    def wait_seconds(self, full_at: float, now: float, amount: float = 1.0) -> float:
        """Seconds until so many may come; 0 if they may now. An `amount` of 0 asks whether the bucket is in debt."""
        left = full_at - now - (self.burst - min(amount, self.burst)) * self._each
        return left if left > _ROUNDING_SECONDS else 0.0

    def tokens_left(self, full_at: float, now: float) -> float:
        """How many may come now; not below 0."""
        return max(0.0, self.burst - max(0.0, full_at - now) / self._each)

    def full_after(self, full_at: float, now: float, amount: float = 1.0) -> float:
        """When the bucket will be full, after so many have come."""
        return max(full_at, now) + amount * self._each

    def full_after_refund(self, full_at: float, amount: float) -> float:
        """When the bucket will be full, after so many that were taken have been put back."""
        return full_at - amount * self._each

    def try_take(self, full_at: float, now: float, amount: float = 1.0) -> tuple[float, float]:
        """So many come, if they may: when the bucket will be full then, and the seconds to wait, 0 if they came."""
        wait = self.wait_seconds(full_at, now, amount)
        return (full_at if wait else self.full_after(full_at, now, amount)), wait


class BucketTable:
    """A bucket for each address, or user. most: how many are remembered."""

    def __init__(self, rate: Rate, most: int) -> None:
        self.bucket_rate = rate
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()  # by when they came, the last at the end

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_seconds(self, address: str, now: float, amount: float = 1.0) -> float:
        """Seconds until so many more may come from there; 0 if they may now."""
        return self.bucket_rate.wait_seconds(self._full_at.get(address, now), now, amount)

    def tokens_left(self, address: str, now: float) -> float:
        """How many may come from there now."""
        return self.bucket_rate.tokens_left(self._full_at.get(address, now), now)

    def charge_tokens(self, address: str, now: float, amount: float = 1.0) -> None:
        """So many have come, which `wait_seconds` allowed."""
        table = self._full_at
        table[address] = self.bucket_rate.full_after(table.get(address, now), now, amount)
        table.move_to_end(address)
        for _ in range(2):  # more than can come: what is full again goes sooner or later, and nobody waits for it
            first = next(iter(table), None)
            if first is None or table[first] > now:
                break
            del table[first]
        if len(table) > self._most:
            table.popitem(last=False)
