"""Pages of history for replays of clients that speak a dialect: the same questions as everybody's, in another codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from solowire.errors import RequestError
from solowire.model.catalog import Catalog
from solowire.protocol.dialect_codec import DialectCodec
from solowire.protocol.history_query import parse_history
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.history.dialect_replays import ReplayPage
from solowire.workers.history.history_page import HistoryPage
from solowire.workers.history.history_scheduler import HistoryScheduler

PAGE_EVENTS = 500
PAGE_BYTES = 256 * 1024
"""What a replay holds at most."""


class DialectPages:
    """`solowire.workers.history.dialect_replays.HistoryPages`, by the shard's own questions to the router."""

    def __init__(self, scheduler: HistoryScheduler, catalog: Catalog, clock: Clock) -> None:
        self._scheduler = scheduler
        self._catalog = catalog
        self._clock = clock

    def fetch_page(
        self,
        connection: Connection,
        codec: DialectCodec,
        question: Mapping[str, Any],
        after: str | None,
        done: Callable[[ReplayPage | RequestError, float], None],
        now: float,
    ) -> None:
        """As `HistoryPages` says. Raises RequestError."""
        fields: dict[str, Any] = {
            "since": _format_time(question["since_unix"]),
            "until": _format_time(question["until_unix"]),
            "types": list(question["types"]),
            "filter": dict(question["filter"]) or None,
            "limit": PAGE_EVENTS,
            "after": after,
        }
        query = parse_history(fields, self._catalog, now=self._clock.to_unix(now), max_limit=PAGE_EVENTS)

        def take_page(outcome: HistoryPage | RequestError, then: float) -> None:
            if isinstance(outcome, HistoryPage):
                done(
                    ReplayPage([bytes(raw) for raw in outcome.events], outcome.next if not outcome.complete else None),
                    then,
                )
            else:
                done(outcome, then)

        self._scheduler.start(
            connection.identity, query, codec, take_page, max_bytes=PAGE_BYTES, now=now, key=connection
        )

    def cancel(self, connection: Connection) -> None:
        self._scheduler.cancel_all(connection)


def _format_time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
