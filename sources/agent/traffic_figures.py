"""The traffic of real queries with one forwarder, as the part that hears of it tells the one that probes forwarders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from solowire.sources.agent.server_address import ServerAddress


class TrafficFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Real queries of the last time. Shares in percent, round trips in milliseconds, of those that were answered.

    queries: answered ones and lost ones. None where nothing was answered.
    """

    queries: int
    loss: float
    servfail_ratio: float | None = None
    rtt_ms: float | None = None
    rtt_p50_ms: float | None = None
    rtt_p95_ms: float | None = None

    def describe(self) -> dict[str, Any]:
        """The figures as an event has them."""
        return {name: round(value, 2) for name, value in msgspec.structs.asdict(self).items() if value is not None}


TrafficObserver = Callable[[ServerAddress, TrafficFigures], bool]
"""Takes the figures of one forwarder, and says whether it publishes them itself."""
