"""Pages of history for clients that speak a dialect: the same questions as everybody's, in another codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import parse_wanted
from solowire.protocol.dialect_codec import DialectCodec
from solowire.protocol.history_query import HistoryQuery, parse_history
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.history.history_page import HistoryTask
from solowire.workers.history.history_scheduler import Done, HistoryScheduler

PAGE_EVENTS = 500
PAGE_BYTES = 256 * 1024
"""What a client is answered, or a replay holds, at most; and one event more."""


class DialectPages:
    """Asks for a connection's pages. Each is a question of its user about history, and ends with its connection."""

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
        done: Done,
        now: float,
    ) -> HistoryTask:
        """Begins a page of a replay; `done` is called with it. Raises RequestError, and `done` is not called.

        question: `since_unix`, `until_unix`, `types`, `filter`. after: the `next` of the page before.
        """
        fields: dict[str, Any] = {
            "since": format_unix_time(question["since_unix"]),
            "until": format_unix_time(question["until_unix"]),
            "types": list(question["types"]),
            "filter": dict(question["filter"]) or None,
            "limit": PAGE_EVENTS,
            "after": after,
        }
        query = parse_history(fields, self._catalog, now=self._clock.to_unix(now), max_limit=PAGE_EVENTS)
        return self._start_task(connection, codec, query, done, now)

    def fetch_newest(
        self, connection: Connection, codec: DialectCodec, question: Mapping[str, Any], done: Done, now: float
    ) -> HistoryTask:
        """Begins a page of the newest events, newest first; as `fetch_page`. question: `types` and `limit`."""
        wanted = parse_wanted(question["types"], None, None, self._catalog)
        query = HistoryQuery(wanted=wanted, limit=min(int(question["limit"]), PAGE_EVENTS), is_descending=True)
        return self._start_task(connection, codec, query, done, now)

    def _start_task(
        self, connection: Connection, codec: DialectCodec, query: HistoryQuery, done: Done, now: float
    ) -> HistoryTask:
        return self._scheduler.start_task(
            connection.identity, query, codec, done, max_bytes=PAGE_BYTES, now=now, key=connection
        )

    def cancel_page(self, task: HistoryTask) -> None:
        """Nobody waits for the page any more."""
        self._scheduler.cancel_task(task)
