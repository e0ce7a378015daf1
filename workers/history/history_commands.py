"""Questions about history through the socket: a `history` message is answered with a page, in a `reply`.

What it keeps true: a page is no larger than a frame, unless a single event is; one whose asker's rights have changed
while it was made is never sent.
"""

from __future__ import annotations

from typing import Any

from solowire.errors import InvalidHistoryQuery, InvalidMessage, RequestError, RequestRejected
from solowire.model.catalog import Catalog
from solowire.protocol.history_query import PARAMETERS, parse_history
from solowire.protocol.messages import MAX_FRAME_BYTES, Error, FetchHistory, Reply
from solowire.runtime.settings.history_settings import HistorySettings
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection, State
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.history_page import HistoryPage
from solowire.workers.history.history_scheduler import HistoryScheduler

PAGE_BYTES = MAX_FRAME_BYTES - 1024


class HistoryCommands:
    """Answers `history` messages by `dispatcher`."""

    def __init__(
        self,
        scheduler: HistoryScheduler,
        dispatcher: Dispatcher,
        catalog: Catalog,
        settings: HistorySettings,
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._settings = settings
        self._clock = clock

    def start_page(self, connection: Connection, message: FetchHistory, now: float) -> None:
        """Begins a page, which is sent when it is made. now: seconds, monotonic. Raises InvalidMessage."""
        if connection.state is not State.live:
            raise InvalidMessage(
                "hello_required", "the first message must be hello", "send it, and this one after that"
            )
        fields = {name: getattr(message, name) for name in PARAMETERS}
        view = connection.view

        def send(outcome: HistoryPage | RequestError, then: float) -> None:
            if connection.state is not State.live:
                return
            answer: Reply | Error
            if isinstance(outcome, RequestError):
                answer = _to_error(outcome, message)
            elif connection.view != view:
                answer = Error("rights_changed", "your rights have changed meanwhile", "ask again", message.id)
            else:
                page: dict[str, Any] = {"events": outcome.events, "next": outcome.next, "complete": outcome.complete}
                if outcome.denied:
                    page["denied"] = outcome.denied
                answer = Reply(page, message.id)
            self._dispatcher.send_reply(connection, answer, then)

        try:
            query = parse_history(
                fields, self._catalog, now=self._clock.to_unix(now), max_limit=self._settings.page_events
            )
            self._scheduler.start_task(
                connection.identity,
                query,
                connection.codec,
                send,
                max_bytes=PAGE_BYTES,
                now=now,
                key=connection,
            )
        except (InvalidHistoryQuery, RequestRejected) as error:
            retry_after = getattr(error, "retry_after", None)
            raise InvalidMessage(error.code, error.message, error.hint, retry_after=retry_after) from None


def _to_error(refusal: RequestError, message: FetchHistory) -> Error:
    retry_after = getattr(refusal, "retry_after", None)
    error = Error(refusal.code, refusal.message, refusal.hint, message.id)
    if retry_after is not None:
        error.retry_after = retry_after
    if oldest := getattr(refusal, "members", {}).get("oldest"):
        error.hint = f"{error.hint}: {oldest['position']}"
    return error
