"""The way of a source's events to the gateway: two lanes, so that a flood of telemetry delays and displaces no change.

A log has a lane of its own beside them, as its place follows from what that lane has had acknowledged.

What it keeps true:

* What must not be lost (`publish`) waits for room and is never dropped: while the gateway is away its part waits,
  and reads on later where it stopped. Its memory is bounded by BUFFER_EVENTS.
* Telemetry (`offer`) never waits: without room it is dropped and counted, and `source_status` says so.
* Each lane has the order in which it was given events. Between lanes there is none.
* Each event says its server, as `source` and in `data`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import structlog

from solowire.errors import BufferFull
from solowire.sdk.arguments import Token
from solowire.sdk.client import Client
from solowire.sdk.event_faults import Problem
from solowire.sdk.foreign_refusals import REFUSED_ELSEWHERE
from solowire.sdk.gateway_contact import GatewayContact
from solowire.sdk.publisher import Publisher

BUFFER_EVENTS = 10_000
"""Of the lane of changes, in events that the gateway has not acknowledged."""
TELEMETRY_BUFFER_EVENTS = 50_000
"""Of the lane of telemetry: what a busy server is asked in some seconds, some 20 MB."""
TELEMETRY_BATCH = 2_000
TELEMETRY_LINGER_S = 0.05  # half of what a query may wait in all
LOG_BATCH = 1_000
"""Events of a log in one request. One waits for the last's answer, so that a small one would hold a busy log back."""
ASK_S = 60.0
"""For which a question to the log is asked again, if it is not answered."""

logger = structlog.get_logger()


def log_rejected(event: dict[str, Any], problem: Problem) -> None:
    """Says that an event was refused: by name, a fault of ours or another version's catalogue, or by somebody else."""
    way_out = "run the same version of the source and of the gateway"
    if problem.get("code") == REFUSED_ELSEWHERE:
        way_out = str(problem["hint"])
    logger.warning(
        "event_rejected",
        id=event["id"],
        type=event["type"],
        problem=problem,
        hint=f"the event is left out; {way_out}",
    )


class EventOutlet:
    """Publishes a source's events, as an async context manager.

    url, token: as for `Publisher`. server: the name of the server that the source watches.
    """

    def __init__(self, url: str, token: Token, *, server: str) -> None:
        self.server = server
        self.dropped_count = 0
        self._url = url
        self._token = token
        self.contact = GatewayContact()  # of all lanes of the source, those of its logs too
        self._changes = Publisher(
            url,
            token,
            buffer_events=BUFFER_EVENTS,
            on_refused=log_rejected,
            contact=self.contact,
        )
        self._telemetry = Publisher(
            url,
            token,
            buffer_events=TELEMETRY_BUFFER_EVENTS,
            batch=TELEMETRY_BATCH,
            linger=TELEMETRY_LINGER_S,
            on_refused=log_rejected,
            contact=self.contact,
        )

    async def __aenter__(self) -> EventOutlet:
        await self._changes.__aenter__()
        await self._telemetry.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._telemetry.close()
        await self._changes.close()

    async def publish(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        id: str | None = None,
        key: str | None = None,
        priority: str | None = None,
        timestamp: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Publishes one event that must not be lost; waits for room. Raises PublishRefused if the lane has stopped."""
        while True:
            try:
                await self._changes.publish(
                    type,
                    self._name_server(data),
                    id=id,
                    key=key,
                    priority=priority,
                    timestamp=timestamp,
                    source=self.server,
                    correlation_id=correlation_id,
                )
            except BufferFull:
                await self._changes.drain()
            else:
                return

    async def offer(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        id: str | None = None,
        key: str | None = None,
        priority: str | None = None,
        timestamp: str | None = None,
    ) -> bool:
        """Publishes one event of telemetry, or drops it if there is no room. It does not wait.

        Raises PublishRefused if the lane has stopped. Returns whether there was room.
        """
        try:
            await self._telemetry.publish(
                type,
                self._name_server(data),
                id=id,
                key=key,
                priority=priority,
                timestamp=timestamp,
                source=self.server,
            )
        except BufferFull:
            self.dropped_count += 1
            return False
        return True

    def offer_many(self, events: Sequence[bytes]) -> int:
        """Publishes telemetry that is JSON already, as far as there is room, and drops the rest. It does not wait.

        events: each with `id`, `source`, `timestamp` and the server in its data, as `offer` would make it; they are not
        looked at. Returns for how many there was room. Raises PublishRefused if the lane has stopped.
        """
        accepted = self._telemetry.enqueue_many(events)
        self.dropped_count += len(events) - accepted
        return accepted

    def make_log_lane(self, on_refused: Callable[[dict[str, Any], Problem], None] = log_rejected) -> Publisher:
        """A lane for one log, to be entered and drained by its part. on_refused: as for `Publisher`."""
        return Publisher(self._url, self._token, batch=LOG_BATCH, on_refused=on_refused, contact=self.contact)

    async def drain(self) -> None:
        """Waits until everything is acknowledged that was published. Raises PublishRefused."""
        await self._changes.drain()
        await self._telemetry.drain()

    async def drain_changes(self) -> None:
        """The same, of what must not be lost: what was published is in the gateway's log then."""
        await self._changes.drain()

    async def read_newest(
        self, types: Sequence[str], filter: Mapping[str, Sequence[str]], limit: int
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Types and data of events in the gateway's log, of all publishers, newest first.

        Raises ClientError: SubscriptionDenied if the token may not read them.
        """
        client = Client(self._url, self._token, strict=True)
        history = client.history(types=types, filter=filter, limit=limit, order="desc", retry_for=ASK_S)
        try:
            async for event in history:
                yield event.type, event.data
        finally:
            await history.close()

    def _name_server(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        return data if "server" in data else {"server": self.server, **data}
