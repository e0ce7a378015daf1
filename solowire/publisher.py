"""The Python SDK's writer: events into a bounded buffer, and from there to the gateway in batches.

    async with Publisher("https://gateway.example", token) as publisher:
        await publisher.publish("record_updated", {"zone": "example.com", …})

What it keeps true:

* Every event has an id before it is first sent, and keeps it: a batch whose answer was lost is sent again as it was,
  and what the log has already is answered as a duplicate. So "at least once" on the wire is once in the log.
* Order: one request at a time, and nothing behind a batch is sent before the batch is settled.
* An event leaves the buffer only when it is accepted, or refused by name (`on_refused`). When the publisher stops
  instead, the events stay in `unsent`, and the next `publish()` or `drain()` raises why.
* The buffer has a bound, `buffer_events`; at that bound `publish()` raises BufferFull at once.

What an answer means stands in one table, `_MEANING`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from ssl import SSLContext
from types import TracebackType
from typing import Any

import httpx
import msgspec

from solowire.backoff import Backoff, retry_after
from solowire.errors import BufferFull, PublishRefused

RETRY_MIN_S = 0.1
RETRY_MAX_S = 10.0
"""The first and the last ceiling of the wait between two attempts; full jitter."""

Token = str | Callable[[], str | Awaitable[str]]
Problem = dict[str, object]

log = logging.getLogger("solowire.publisher")


class Accepted(msgspec.Struct, frozen=True):
    """Events that are in the log. accepted: without the duplicates, which keep the offset that they had."""

    epoch: str
    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int


class PublisherStats(msgspec.Struct):
    """Counts since the publisher began; events, but for `retries`, which are requests."""

    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    retries: int = 0


class Publisher:
    """Publishes events, as an async context manager; leaving it waits `timeout` seconds at most for what is buffered.

    url: the gateway's, `http://` or `https://`. token: a token, or a function (plain or async) that gives one; it is
    asked again when the gateway answers 401. batch: events in one request. linger: seconds that an event waits for
    company. buffer_events: that are not accepted yet. retry_for: seconds to go on trying what can succeed later (no
    network, 408, 425, 429, 5xx), then the publisher stops; None means for ever. timeout: seconds for one request.
    on_refused(event, problem): the gateway named this event as one that it doesn't take. event: as it was sent.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        batch: int = 100,
        linger: float = 0.005,
        buffer_events: int = 10_000,
        retry_for: float | None = None,
        timeout: float = 10.0,
        on_refused: Callable[[dict[str, Any], Problem], object] | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the gateway's URL begins with http:// or https://, not {url!r}")
        if batch < 1 or buffer_events < 1:
            raise ValueError("batch and buffer_events are at least 1")
        self._url = url.rstrip("/") + "/v1/events"
        self._token = token
        self._bearer = ""
        self._batch = batch
        self._linger = linger
        self._limit = buffer_events
        self._retry_for = retry_for
        self._timeout = timeout
        self._on_refused = on_refused
        self._ssl = ssl
        self.stats = PublisherStats()
        self._queue: deque[bytes] = deque()
        self._sending: list[bytes] = []  # the batch that was taken out of the queue, as far as it is not settled
        self._arrived = asyncio.Event()  # there is something in the queue
        self._enough = asyncio.Event()  # there is a batch in it, or someone waits in drain()
        self._settled = asyncio.Event()  # nothing is waiting any more, or it never will be sent
        self._settled.set()
        self._stopped: PublishRefused | None = None
        self._http: httpx.AsyncClient | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------ for its users

    async def __aenter__(self) -> Publisher:
        if self._worker is not None or self._closed:
            raise RuntimeError("a publisher is entered once")
        self._http = httpx.AsyncClient(trust_env=False, timeout=self._timeout, verify=self._ssl or True)
        self._worker = asyncio.create_task(self._work(), name="solowire publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises PublishRefused if events are left over, unless something else is being raised: then it is logged.

        One that was closed before does neither: what is left over was left on purpose.
        """
        if self._closed:
            return
        fault: PublishRefused | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await self.drain()
        except TimeoutError:
            detail = f"{self._waiting} events were not accepted within {self._timeout:g} s"
            fault = PublishRefused(0, {"title": "Not sent", "detail": detail})
        except PublishRefused as refused:
            fault = refused
        finally:
            await self.close()
        if fault is not None:
            if error is None:
                raise fault
            log.error("%d events are left over: %s", self._waiting, fault)

    async def publish(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        id: str | None = None,
        priority: str | None = None,
        key: str | None = None,
        user: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Puts one event in the buffer and returns its id, made here if there is none. It does not wait.

        timestamp: RFC 3339; now, if there is none, as the event may have to wait. Raises BufferFull; PublishRefused
        if the publisher has stopped; TypeError or ValueError if `data` holds what JSON can't.
        """
        self._check()
        if self._waiting >= self._limit:
            raise BufferFull(self._limit)
        given = {
            "priority": priority,
            "key": key,
            "user": user,
            "timestamp": timestamp or _now(),
            "source": source,
            "correlation_id": correlation_id,
        }
        id = id or str(uuid.uuid4())
        event = {"type": type, "id": id, "data": dict(data)} | {name: v for name, v in given.items() if v is not None}
        self._queue.append(msgspec.json.encode(event))  # at once: what happens to `data` later is no concern of it
        self._settled.clear()
        self._arrived.set()
        if len(self._queue) >= self._batch:
            self._enough.set()
        return id

    async def drain(self) -> None:
        """Waits until everything that was published is accepted (or refused by name). Raises PublishRefused."""
        self._check()
        if self._queue:
            self._enough.set()
        await self._settled.wait()
        self._check()

    async def publish_now(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Accepted:
        """Posts one event or several, as the gateway takes them, past the buffer; ids are added where there are none.

        Raises PublishRefused, with nothing accepted, for whatever is not success; what can succeed later is tried
        again only if `retry_for` is set, and so long.
        """
        if self._http is None or self._closed:
            raise RuntimeError("enter the publisher first: `async with publisher`")
        several = [events] if isinstance(events, Mapping) else events
        items = [msgspec.json.encode({"id": str(uuid.uuid4())} | dict(event)) for event in several]
        answer = await self._settle(items, self._retry_for or 0.0)
        if isinstance(answer, Accepted):
            self._count(answer)
            return answer
        raise PublishRefused(answer.status, answer.problem)

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """The events that are neither accepted nor refused, in order: to be kept, if the publisher has stopped."""
        return [msgspec.json.decode(item) for item in (*self._sending, *self._queue)]

    async def close(self) -> None:
        """Stops without waiting for what is buffered, which stays in `unsent`."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        if self._http is not None:
            await self._http.aclose()
        self._settled.set()

    # ------------------------------------------------------------------------------------------ the task

    @property
    def _waiting(self) -> int:
        return len(self._queue) + len(self._sending)

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._worker is None or self._closed:
            raise RuntimeError("a publisher is used within `async with publisher`")

    async def _work(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                if len(self._queue) < self._batch:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._linger):
                            await self._enough.wait()
                self._sending = list(islice(self._queue, self._batch))
                for _ in self._sending:
                    self._queue.popleft()
                await self._deliver()
                if not self._queue:
                    self._arrived.clear()
                    self._enough.clear()
                    self._settled.set()
        except PublishRefused as refused:
            self._stop(refused)
        except Exception as error:  # the token function's, or a fault of ours: not to be met with silence
            log.exception("the publisher stopped")
            self._stop(PublishRefused(0, {"title": "The publisher failed", "detail": repr(error)}))

    def _stop(self, refused: PublishRefused) -> None:
        log.error("the publisher stopped with %d events unsent: %s", self._waiting, refused)
        self._stopped = refused
        self._settled.set()

    async def _deliver(self) -> None:
        """Settles the batch in `_sending`, in as many requests as it takes. Raises PublishRefused to stop."""
        runs = [self._sending]  # the first one last
        while runs:
            self._sending = [item for run in reversed(runs) for item in run]
            run = runs.pop()
            answer = await self._settle(run, self._retry_for)
            if isinstance(answer, Accepted):
                self._count(answer)
                continue
            match answer.means:
                case _Means.bad_items if bad := _named(answer.problem, len(run)):
                    for index, problem in bad.items():
                        self._refuse(run[index], problem)
                    rest = [item for index, item in enumerate(run) if index not in bad]
                    if rest:
                        runs.append(rest)
                case _Means.bad_items | _Means.too_large if len(run) == 1:
                    self._refuse(run[0], answer.problem)
                case _Means.bad_items | _Means.too_large:
                    half = len(run) // 2
                    runs += [run[half:], run[:half]]
                case _:
                    raise PublishRefused(answer.status, answer.problem)
        self._sending = []

    def _count(self, answer: Accepted) -> None:
        self.stats.accepted += answer.accepted
        self.stats.duplicates += answer.duplicates

    def _refuse(self, item: bytes, problem: Problem) -> None:
        self.stats.refused += 1
        event: dict[str, Any] = msgspec.json.decode(item)
        if self._on_refused is None:
            log.warning("event %s (%s) was refused: %s", event["id"], event["type"], problem)
            return
        try:
            self._on_refused(event, problem)
        except Exception:  # the user's code: its fault must not stop the others' events
            log.exception("on_refused failed")

    # ------------------------------------------------------------------------------------------ requests

    async def _settle(self, items: list[bytes], retry_for: float | None) -> Accepted | _Answer:
        """Posts `items` until there is an answer that is not "later", or for `retry_for` seconds."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        began = clock()
        renewed = False
        while True:
            answer = await self._post(items)
            if isinstance(answer, Accepted):
                return answer
            if answer.means is _Means.wrong_token and callable(self._token) and not renewed:
                self._bearer, renewed = "", True
                continue
            if answer.means is not _Means.later:
                return answer
            wait = backoff.next(at_least=answer.after)
            if retry_for is not None and clock() - began + wait > retry_for:
                return answer
            log.info("%d events not accepted yet (%s); again in %.2f s", len(items), answer, wait)
            await asyncio.sleep(wait)
            self.stats.retries += 1

    async def _post(self, items: list[bytes]) -> Accepted | _Answer:
        assert self._http is not None  # noqa: S101 - entered
        try:
            async with asyncio.timeout(self._timeout):
                if not self._bearer:
                    self._bearer = await self._fresh_token()
                response = await self._http.post(
                    self._url,
                    content=b"[" + b",".join(items) + b"]",
                    headers={"Authorization": f"Bearer {self._bearer}", "Content-Type": "application/json"},
                )
        except (OSError, httpx.TransportError) as error:  # TimeoutError is an OSError
            reason = str(error) or type(error).__name__
            return _Answer(0, {"title": "The gateway can't be reached", "detail": reason})
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=Accepted)
            except (msgspec.DecodeError, UnicodeError) as error:  # not the gateway's own; the ids make it safe to ask
                return _Answer(0, {"title": "The answer can't be understood", "detail": str(error)})
        after = retry_after(response.headers.get("retry-after"), time.time())
        return _Answer(response.status_code, _problem(response), after)

    async def _fresh_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        token = self._token()
        return token if isinstance(token, str) else await token


# ---------------------------------------------------------------------------------------------------- answers


class _Means(Enum):
    later = "the same may succeed later"
    bad_items = "some of the events can't be accepted"
    too_large = "fewer at once may succeed"
    wrong_token = "another token may succeed"  # noqa: S105 - a sentence
    never = "nothing sent this way will succeed"


_MEANING = {
    0: _Means.later,
    400: _Means.bad_items,
    401: _Means.wrong_token,
    408: _Means.later,
    413: _Means.too_large,
    425: _Means.later,
    429: _Means.later,
}


class _Answer:
    """An answer other than success. status: 0 if there was none. after: seconds to stay away."""

    def __init__(self, status: int, problem: Problem, after: float = 0.0) -> None:
        self.status = status
        self.problem = problem
        self.after = after
        self.means = _MEANING.get(status, _Means.later if status >= 500 else _Means.never)

    def __str__(self) -> str:
        return str(PublishRefused(self.status, self.problem))


class _ItemFault(msgspec.Struct):
    """One entry of `errors` in the problem body of a 400."""

    index: int
    path: str = "$"
    message: str = ""
    code: str = "invalid_event"
    hint: str = ""


def _named(problem: Problem, length: int) -> dict[int, Problem]:
    """The faults that a 400 names, by the place of their events in the request; empty if it names none of them."""
    try:
        faults = msgspec.convert(problem.get("errors"), list[_ItemFault])
    except msgspec.ValidationError:
        return {}
    return {fault.index: msgspec.structs.asdict(fault) for fault in faults if 0 <= fault.index < length}


def _problem(response: httpx.Response) -> Problem:
    try:
        problem: Problem = msgspec.json.decode(response.content, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError):
        return {"title": response.reason_phrase, "status": response.status_code}
    return problem


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
