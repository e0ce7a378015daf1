"""`GET /history` of a shard's HTTP API: one page, for the gateway, with the asker's own token.

What it keeps true: what is asked for by somebody who has gone is not looked for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from solowire.errors import InvalidHistoryQuery, RequestError
from solowire.model.access import Identity
from solowire.model.catalog import Catalog
from solowire.protocol.history_query import parse_history, read_query_string
from solowire.protocol.messages import Codec
from solowire.runtime.http_server import wait_for_disconnect
from solowire.workers.clock import Clock
from solowire.workers.history.history_page import HistoryPage
from solowire.workers.history.history_scheduler import HistoryScheduler

PAGE_BYTES = 256 * 1024
"""A gateway holds a page until its client has read it, and clients are many."""

_encode = msgspec.json.Encoder().encode


class HistoryApi:
    """Answers history requests on the shard's HTTP API.

    schedule: called when the shard has something to do. max_limit: events of one page.
    """

    def __init__(
        self,
        history: HistoryScheduler,
        catalog: Catalog,
        clock: Clock,
        schedule: Callable[[], None],
        max_limit: int,
    ) -> None:
        self._history = history
        self._catalog = catalog
        self._clock = clock
        self._schedule = schedule
        self._max_limit = max_limit
        self._loop = asyncio.get_running_loop()

    async def fetch_page(
        self, identity: Identity, query_string: str, receive: Callable[[], Awaitable[dict[str, Any]]]
    ) -> bytes | None:
        """The page as JSON; None if whoever asked has gone. Raises InvalidHistoryQuery, RequestRejected."""
        now = self._loop.time()
        unix_now = self._clock.to_unix(now)
        answer: asyncio.Future[HistoryPage | RequestError] = self._loop.create_future()

        def done(outcome: HistoryPage | RequestError, then: float) -> None:
            if not answer.done():
                answer.set_result(outcome)

        self._history.check_rate(identity.user, now)  # before it is read, which takes a while
        try:
            fields = read_query_string(query_string)
            query = parse_history(fields, self._catalog, now=unix_now, max_limit=self._max_limit)
        except InvalidHistoryQuery:
            self._history.charge_rejected(identity.user, now)
            raise
        task = self._history.start_task(identity, query, Codec.json, done, max_bytes=PAGE_BYTES, now=now)
        self._schedule()
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answer.done():
                self._history.cancel_task(task)
                self._schedule()  # who waits has its place
        if not answer.done():
            return None
        outcome = answer.result()
        if isinstance(outcome, RequestError):
            raise outcome
        return _encode(outcome)
