"""The traffic between `named` and its forwarders: round trips and losses of real queries.

Pure: messages in, figures and the data of `forwarder_health` out; time is an argument. What it keeps true:

* A query whose answer is not told within LOST_S is lost; an answer counts by its own times, whether its query was seen.
* Bounds: MAX_FORWARDERS, and MAX_WAITING queries at a time: what is beyond them is not counted.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Any

from solowire.algorithms.histogram import Histogram, quantile
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.agent.traffic_figures import TrafficFigures
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage

EVENT_TYPE = "forwarder_health"

LOST_S = 10.0
"""`named` waits for a forwarder less than that."""
MAX_FORWARDERS = 100
MAX_WAITING = 20_000
DEGRADED_LOSS = 20.0
"""Percent of the queries, from which on a forwarder is degraded, if there were LEAST_QUERIES."""
LEAST_QUERIES = 10
_SERVFAIL = 2

_Forwarder = tuple[bytes, int]


class _ForwarderWindow:
    """What was sent to one forwarder since the last figures."""

    def __init__(self) -> None:
        self.answered_count = 0
        self.lost_count = 0
        self.servfail_count = 0
        self.round_trips = Histogram()


class ForwarderTraffic:
    """Sums up the traffic with each forwarder, from one `take_figures` to the next."""

    def __init__(self) -> None:
        self._windows: dict[_Forwarder, _ForwarderWindow] = {}
        self._waiting: OrderedDict[tuple[_Forwarder, bytes, int, bytes], float] = OrderedDict()

    def observe_message(self, message: TappedMessage, now: float) -> None:
        """Takes in a message; `now`: seconds by a clock that is not set."""
        if not message.is_forwarded:
            return
        forwarder = (message.asked, message.asked_port)
        key = (forwarder, message.asker, message.asker_port, message.wire[:2])
        if not message.is_response:
            if len(self._waiting) < MAX_WAITING:
                self._waiting[key] = now
            return
        self._waiting.pop(key, None)
        window = self._find_window(forwarder)
        if window is None:
            return
        window.answered_count += 1
        window.servfail_count += message.wire[3] & 0x0F == _SERVFAIL
        if message.asked_at and message.answered_at >= message.asked_at:
            window.round_trips.add(message.answered_at - message.asked_at)

    def take_figures(self, now: float) -> list[tuple[ServerAddress, TrafficFigures]]:
        """Each forwarder with its figures, of the time since the last call."""
        while self._waiting and next(iter(self._waiting.values())) + LOST_S <= now:
            (forwarder, *_), _ = self._waiting.popitem(last=False)
            if (window := self._find_window(forwarder)) is not None:
                window.lost_count += 1
        windows, self._windows = self._windows, {}
        return [
            (ServerAddress(str(ipaddress.ip_address(address)), port), _sum_up(window))
            for (address, port), window in windows.items()
        ]

    def _find_window(self, forwarder: _Forwarder) -> _ForwarderWindow | None:
        window = self._windows.get(forwarder)
        if window is None and len(forwarder[0]) in (4, 16) and len(self._windows) < MAX_FORWARDERS:
            window = self._windows[forwarder] = _ForwarderWindow()
        return window


def _sum_up(window: _ForwarderWindow) -> TrafficFigures:
    total = window.answered_count + window.lost_count
    counts = window.round_trips.counts
    measured = sum(counts)
    return TrafficFigures(
        queries=total,
        loss=100 * window.lost_count / total,
        servfail_ratio=100 * window.servfail_count / window.answered_count if window.answered_count else None,
        rtt_ms=1e3 * window.round_trips.sum / measured if measured else None,
        rtt_p50_ms=1e3 * (quantile(counts, 0.5) or 0.0) if measured else None,
        rtt_p95_ms=1e3 * (quantile(counts, 0.95) or 0.0) if measured else None,
    )


def make_traffic_payload(address: ServerAddress, figures: TrafficFigures) -> dict[str, Any]:
    """The data of a `forwarder_health` of one that is not probed."""
    if figures.servfail_ratio is None:  # nothing was answered
        status = "unhealthy"
    else:
        status = "degraded" if figures.queries >= LEAST_QUERIES and figures.loss >= DEGRADED_LOSS else "healthy"
    return {
        "forwarder_id": str(address),
        "forwarder_name": str(address),
        "type": "passive",
        "status": status,
        "server_ip": address.address,
        "port": address.port & 0xFFFF,
        **figures.describe(),
    }
