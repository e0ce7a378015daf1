"""A bulk operation of an application, told as events: begun, how far it is, and how it ended.

    async with publisher.bulk("import", total=len(records), zone="example.com") as operation:
        for record in records:
            …
            operation.add_succeeded()

What it keeps true:

* `bulk_started` comes first, and exactly one of `bulk_completed` and `bulk_failed` last. They wait for room in the
  publisher's buffer; one that can't be published is logged as an error, and raised where the job itself has not failed.
* Between them `bulk_progress` comes at most every PROGRESS_S seconds, and only the newest waits for the gateway: while
  one is in the buffer, no other is put there. Once more it comes right before the end, if it came at all, since the
  newest state is what those see who come later. It never raises.
* Any thread may count, in the process that began the operation; a forked one is told that it is in the wrong place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from solowire.errors import BufferFull, PublishRefused
from solowire.sdk.arguments import check_count, check_optional_text
from solowire.sdk.bulk_tally import BulkTally, describe_error
from solowire.sdk.event_encoding import encode_event

PROGRESS_S = 0.5
"""Seconds between two `bulk_progress` of one operation, and before the first."""

logger = logging.getLogger("solowire.publisher")


class BulkPublisher(Protocol):
    """The part of a Publisher that an operation uses."""

    def enqueue(self, item: bytes) -> int: ...

    def is_settled(self, number: int) -> bool: ...

    async def wait_for_room(self) -> None: ...


class BulkOperation:
    """One operation, as an async context manager; its methods count items, from any thread.

    An exception that leaves it makes it `bulk_failed`, with the exception's text, and is raised on. One that ends the
    task (cancelled, interrupted) waits `timeout` seconds at most for room.
    """

    def __init__(
        self,
        publisher: BulkPublisher,
        operation: str,
        *,
        total: int | None = None,
        operation_id: str | None = None,
        zone: str | None = None,
        actor: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        if operation is None:
            raise TypeError("operation must be a str, such as 'import', not None")
        named = {"operation": operation, "operation_id": operation_id, "zone": zone, "actor": actor}
        for name, value in named.items():
            check_optional_text(name, value)
        if total is not None:
            check_count("total", total, least=0)
        self.operation_id = operation_id if operation_id is not None else str(uuid.uuid4())
        named["operation_id"] = self.operation_id
        self._fields: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        self._publisher = publisher
        self._timeout = timeout
        self._tally = BulkTally(total)
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began_at = 0.0
        self._has_ended = False
        self._is_due = False  # the newest counts will be told
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._last_number: int | None = None  # of the newest bulk_progress, in the publisher's buffer

    # ------------------------------------------------------------------------------------------ for its users

    def add_succeeded(self, count: int = 1) -> None:
        """Counts items that are done. Raises TypeError, ValueError; RuntimeError outside of the operation."""
        self._require_open()
        self._tally.add_succeeded(count)
        self._wake()

    def add_failed(self, error: str | BaseException | None = None, count: int = 1) -> None:
        """Counts items that failed, which does not end the operation. error: why; a bounded number of them is told.

        Raises TypeError, ValueError; RuntimeError outside of the operation.
        """
        self._require_open()
        self._tally.add_failed(error, count)
        self._wake()

    async def __aenter__(self) -> BulkOperation:
        """Raises PublishRefused if the publisher has stopped."""
        if self._loop is not None:
            raise RuntimeError("a bulk operation is entered once")
        loop = self._loop = asyncio.get_running_loop()
        total = self._tally.describe_counts().get("total")
        await self._publish("bulk_started", {} if total is None else {"total": total})
        self._began_at = loop.time()
        self._next_at = self._began_at + PROGRESS_S
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises PublishRefused if the end can't be published, unless something else is being raised."""
        if self._pid != os.getpid():
            return  # a fork that left the block as well: the operation goes on where it began
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        is_hurried = error is not None and not isinstance(error, Exception)
        try:
            async with asyncio.timeout(self._timeout if is_hurried else None):
                await self._publish_end(error)
        except BaseException as fault:
            if not isinstance(fault, Exception) or error is None:
                logger.error(
                    "the end of the operation %s was not published: %s", self.operation_id, describe_error(fault)
                )
                raise
            logger.error(
                "bulk_failed of the operation %s was not published: %s", self.operation_id, describe_error(fault)
            )

    # ------------------------------------------------------------------------------------------ inside

    def _require_open(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"a bulk operation is counted in the process that began it ({self._pid}): return the counts to it"
            )
        if self._loop is None or self._has_ended:
            raise RuntimeError("a bulk operation is counted within `with publisher.bulk(…)`")

    def _wake(self) -> None:
        if self._is_due or self._loop is None:  # counted before it was looked at, so it will be told
            return
        self._is_due = True
        with suppress(RuntimeError):  # the loop has ended: progress does not stop the job
            self._loop.call_soon_threadsafe(self._plan_progress)

    def _plan_progress(self) -> None:
        assert self._loop is not None  # noqa: S101 - entered
        if self._timer is not None:
            self._timer.cancel()
        if not self._has_ended:
            self._timer = self._loop.call_at(max(self._loop.time(), self._next_at), self._publish_progress)

    def _publish_progress(self) -> None:
        assert self._loop is not None  # noqa: S101 - entered
        self._next_at = self._loop.time() + PROGRESS_S
        if self._last_number is not None and not self._publisher.is_settled(self._last_number):
            self._plan_progress()
            return
        self._is_due = False
        try:
            self._last_number = self._publisher.enqueue(self._encode_progress("running"))
        except BufferFull:
            self._is_due = True
            self._plan_progress()
        except (PublishRefused, RuntimeError) as fault:  # it has stopped: the operation's end says so
            logger.debug("no progress of the operation %s: %s", self.operation_id, fault)

    def _encode_progress(self, status: str) -> bytes:
        assert self._loop is not None  # noqa: S101 - entered
        progress = self._tally.describe_progress(self._loop.time() - self._began_at)
        return encode_event("bulk_progress", {**self._fields, **progress, "status": status})[1]

    async def _publish_end(self, error: BaseException | None) -> None:
        assert self._loop is not None  # noqa: S101 - entered
        outcome = self._tally.describe_counts() | self._tally.describe_errors()
        outcome["duration_ms"] = round((self._loop.time() - self._began_at) * 1000, 1)
        if self._last_number is not None:
            await self._put(self._encode_progress("completed" if error is None else "failed"))
        if error is None:
            await self._publish("bulk_completed", outcome)
        else:
            await self._publish("bulk_failed", {**outcome, "error": describe_error(error)})

    async def _publish(self, type: str, fields: dict[str, Any]) -> None:
        await self._put(encode_event(type, {**self._fields, **fields})[1])

    async def _put(self, item: bytes) -> None:
        while True:
            try:
                self._publisher.enqueue(item)
                return
            except BufferFull:
                await self._publisher.wait_for_room()
