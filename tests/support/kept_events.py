"""A publisher that keeps events, in place of one that sends them."""

from __future__ import annotations

from typing import Any

from solowire.sdk.publisher import PublisherStats


class KeptEvents:
    """Each event is settled at once."""

    def __init__(self) -> None:
        self.stats = PublisherStats()
        self.events: list[dict[str, Any]] = []

    async def publish(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
    ) -> None:
        self.events.append({"type": type, "data": data, "id": id, "timestamp": timestamp, "source": source})
        self.stats.accepted += 1

    async def drain(self) -> None:
        return

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """The data of all events of one type, in order."""
        return [event["data"] for event in self.events if event["type"] == type]
