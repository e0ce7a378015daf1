"""Weighted max-min fair shares of a number of slots, in whole slots.

The slots rise in all groups like water, faster where the weight is greater; a group that has what it wants stays there,
and the rest goes on rising in the others (*progressive filling*: Bertsekas and Gallager, Data Networks, 2nd ed.,
section 6.5.2, max-min flow control). What a group has reserved it is given first, whether it wants it or not.

What it keeps true: no more is given than there is, and nothing is left while somebody wants; a group gets less than it
wants only if nobody with more than its own share could give it some. Of the last slots, which can't be divided, those
who hold one keep it, so that a group is not sent away for another that stands where it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple


class Claim(NamedTuple):
    """What a group wants, and how much it counts. reserved: it gets so many at least. limit: and so many at most.

    held: how many it has now. Weights lie between 0.001 and 1000.
    """

    demand: int
    weight: float = 1.0
    reserved: int = 0
    limit: int | None = None
    held: int = 0

    @property
    def low(self) -> int:
        return self.reserved if self.limit is None else min(self.reserved, self.limit)

    @property
    def high(self) -> int:
        wanted = self.demand if self.limit is None else min(self.demand, self.limit)
        return max(wanted, self.low)


_NEW = Claim(0)


class MaxMinFill:
    """`capacity` slots, and who claims them: how high they rise in each group. Costs G log G if there is not enough."""

    def __init__(self, capacity: int, claims: Mapping[str, Claim]) -> None:
        self.capacity = max(0, capacity)
        self._claims = claims
        if sum(claim.low for claim in claims.values()) > self.capacity:
            # Not even what is reserved is there: it is shared as if it were all that they want.
            self._claims = {name: Claim(c.low, c.weight, held=c.held) for name, c in claims.items()}
        self.total_demand = sum(claim.high for claim in self._claims.values())
        self._steps: tuple[list[float], list[float], list[float]] | None = None

    def _make_steps(self) -> tuple[list[float], list[float], list[float]]:
        """Between two steps the sum of all grows evenly with the level: level, sum there, its slope from there on.

        Not needed, and not made, where there is enough for all.
        """
        if self._steps is None:
            growing = [c for c in self._claims.values() if c.high > c.low]
            steps = sorted(
                chain.from_iterable(((c.low / c.weight, c.weight), (c.high / c.weight, -c.weight)) for c in growing)
            )
            levels, slopes = [0.0], [0.0]
            sums = [float(self.total_demand - sum(c.high - c.low for c in growing))]
            for level, change in steps:
                sums.append(sums[-1] + slopes[-1] * (level - levels[-1]))
                levels.append(level)
                slopes.append(slopes[-1] + change)
            self._steps = levels, sums, slopes
        return self._steps

    @property
    def unclaimed(self) -> int:
        """How many nobody claims."""
        return max(0, self.capacity - self.total_demand)

    def compute_shares(self) -> dict[str, int]:
        """How many slots each group gets."""
        if self.total_demand <= self.capacity:
            return {name: claim.high for name, claim in self._claims.items()}
        level = self._final_level()
        given: dict[str, int] = {}
        rising: list[tuple[bool, float, str]] = []
        for name, claim in self._claims.items():
            exact = min(max(level * claim.weight, claim.low), claim.high)
            given[name] = int(exact)
            if given[name] < claim.high and exact > claim.low:
                rising.append((claim.held <= given[name], given[name] - exact, name))
        for _, _, name in sorted(rising)[: self.capacity - sum(given.values())]:
            given[name] += 1
        return given

    def can_add_one(self, name: str) -> bool:
        """Whether the group would get one more than it holds, if it wanted it; also one that claims nothing yet."""
        claim = self._claims.get(name, _NEW)
        if claim.limit is not None and claim.held >= claim.limit:
            return False
        more = claim.held + 1
        level = more / claim.weight
        others = self._filled_at(level)
        if name in self._claims:
            others -= min(max(more, claim.low), claim.high)
        return others + max(more, claim.low) <= self.capacity + 1e-6

    def _filled_at(self, level: float) -> float:
        """How many slots are filled when all have risen to `level`."""
        levels, sums, slopes = self._make_steps()
        step = bisect_right(levels, level) - 1
        return sums[step] + slopes[step] * (level - levels[step])

    def _final_level(self) -> float:
        """How high they rise when all slots are filled: the last step below, and on from there."""
        levels, sums, slopes = self._make_steps()
        step = bisect_right(sums, self.capacity) - 1
        slope = slopes[step]
        return levels[step] + ((self.capacity - sums[step]) / slope if slope > 1e-9 else 0.0)


def share_slots(capacity: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """How many of `capacity` slots each claim gets."""
    return MaxMinFill(capacity, claims).compute_shares()
