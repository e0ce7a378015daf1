"""The use of dialects, counted: by path, type of message and user agent, and by whom.

What it keeps true: what is counted by has bounds (the dialect's own patterns and types, families of user agents), so
clients can't make it grow. A user is named in the log once an hour; of REMEMBERED users it is known when that was.
"""

from __future__ import annotations

from collections import Counter

from solowire.algorithms.warning_pace import WarningPace

AGAIN_SECONDS = 3600.0
REMEMBERED = 10_000


class DialectUsage:
    """Counts it. paths, messages, agents: totals. naming: of which users the log says that they use one."""

    def __init__(self) -> None:
        self.paths: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.agents: Counter[str] = Counter()
        self.naming = WarningPace(AGAIN_SECONDS, REMEMBERED, parts_numbers=True)

    def count_connection(self, pattern: str, agent: str) -> None:
        self.paths[pattern] += 1
        self.agents[agent] += 1

    def count_message(self, label: str) -> None:
        self.messages[label] += 1

    def as_totals(self) -> dict[str, int]:
        """All of it in one table: `path …`, `message …`, `agent …`."""
        kinds = (("path", self.paths), ("message", self.messages), ("agent", self.agents))
        return {f"{kind} {name}": count for kind, counts in kinds for name, count in counts.items()}
