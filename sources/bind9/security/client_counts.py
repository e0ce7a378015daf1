"""Counts per client within a sliding window, in bounded memory, also under a flood of invented addresses.

Pure. What it keeps true:

* A window slides in two halves: what was counted in the window before counts by the share of it that is still covered.
* CLIENTS are counted at most. With more, those are forgotten that were counted least: who does much is kept, and who
  comes new has time to do as much until CLIENTS / 2 others have come. A count may be too low by that, never too high.
"""

from __future__ import annotations

CLIENTS = 10_000
SAMPLES = 5


class ClientCount:
    """One client's. count, matched: in the present window; before, matched_before: in the one before.

    samples: the first names of the window. first_at, last_at: unix seconds. is_exempt: None if nobody has looked yet.
    """

    __slots__ = (
        "before",
        "began_at",
        "client",
        "count",
        "first_at",
        "is_exempt",
        "last_at",
        "matched",
        "matched_before",
        "samples",
    )

    def __init__(self, client: str, at: float) -> None:
        self.client = client
        self.began_at = self.first_at = self.last_at = at
        self.count = self.matched = self.before = self.matched_before = 0
        self.samples: list[str] | None = None
        self.is_exempt: bool | None = None

    def estimate(self, at: float, window_s: float) -> tuple[float, float]:
        """How many there were within the window that ends at `at`: of all, and of those that matched."""
        share = min(1.0, max(0.0, 1.0 - (at - self.began_at) / window_s))
        return self.count + self.before * share, self.matched + self.matched_before * share


class ClientCounts:
    """The counts of one rule."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._counts: dict[str, ClientCount] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def find_count(self, client: str, at: float) -> ClientCount:
        """The count of a client, its window moved on to `at`. The caller adds to it."""
        count = self._counts.get(client)
        if count is None:
            if len(self._counts) >= CLIENTS:
                self._shed(at)
            count = self._counts[client] = ClientCount(client, at)
            return count
        elapsed = at - count.began_at
        if elapsed >= self.window_s or elapsed < -self.window_s:
            self._move_window(count, elapsed)
        return count

    def _move_window(self, count: ClientCount, elapsed: float) -> None:
        if 0 <= elapsed < 2 * self.window_s:
            count.before, count.matched_before = count.count, count.matched
            count.began_at += self.window_s
        else:  # a long pause, or a clock that was set back
            count.before = count.matched_before = 0
            count.began_at += elapsed
            count.first_at = count.began_at
        count.count = count.matched = 0
        count.samples = None

    def _shed(self, at: float) -> None:
        """Forgets half: the idle, those who did least, and of those that did as little the first."""
        since = at - 2 * self.window_s
        totals = [one.count + one.before if one.last_at >= since else 0 for one in self._counts.values()]
        least = sorted(totals)[-CLIENTS // 2]
        surplus = sum(total >= least for total in totals) - CLIENTS // 2
        kept = {}
        for (name, count), total in zip(self._counts.items(), totals, strict=True):
            if total > least:
                kept[name] = count
            elif total == least:
                if surplus > 0:
                    surplus -= 1
                else:
                    kept[name] = count
        self._counts = kept
