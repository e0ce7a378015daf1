"""The Python SDK's writer: events into a bounded buffer, and from there to the gateway in batches.

    async with Publisher("https://gateway.example", token) as publisher:
        await publisher.publish("record_updated", {"zone": "example.com", …})

What it keeps true:

* Every event has an id before it is first sent, and keeps it: a batch whose answer was lost is sent again as it was,
  and what the log has already is answered as a duplicate. So "at least once" on the wire is once in the log.
* Order: one request at a time, and nothing behind a batch is sent before the batch is settled, but for single events
  that somebody on the way cuts off each time: others go on before them (`solowire.sdk.held_events`).
* An event leaves the buffer only when it is accepted, or refused by name (`on_refused`). When the publisher stops
  instead, the events stay in `unsent`, and the next `publish()` or `drain()` raises why.
* The buffer has a bound, `buffer_events`; at that bound `publish()` raises BufferFull at once.

What an answer means stands in `solowire.sdk.retry_policy`: after one success only what the gateway itself calls final
stops the publisher. Where somebody else refuses a request, the gateway is asked by one without events: if it answers,
the events may be what is refused, and they must not stop the others (`solowire.sdk.foreign_refusals`). What goes wrong
is logged as a warning at once, and once a minute while it lasts.

The file is long because what becomes of a batch, whatever is answered, is to be read in one place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from ssl import SSLContext
from types import TracebackType
from typing import Any

import httpx
import msgspec

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import PublishRefused
from solowire.sdk.arguments import (
    Token,
    check_callback,
    check_count,
    check_seconds,
    check_url,
)
from solowire.sdk.bulk_operation import BulkOperation
from solowire.sdk.event_encoding import encode_event, encode_whole_event
from solowire.sdk.event_faults import Problem, find_event_faults, halve
from solowire.sdk.foreign_refusals import ForeignRefusals, describe_refusal
from solowire.sdk.gateway_contact import GatewayContact
from solowire.sdk.held_events import CUT_OFF_TRIES, FIRST_PAUSE_S, KNOWN_TRIES, SURE_TRIES, HeldEvent
from solowire.sdk.network_errors import read_network_error
from solowire.sdk.publish_buffer import PublishBuffer
from solowire.sdk.retry_policy import (
    Fault,
    FaultKind,
    RetryDecision,
    decide_retry,
    may_be_cut_off,
    may_be_of_events,
    read_answer,
    read_undecodable,
    wait_at_least,
)
from solowire.sdk.token_end import TokenEndWatch
from solowire.sdk.token_source import TokenSource, TokenUnavailable
from solowire.sdk.trusted_certificates import make_context

RETRY_MIN_S = 0.1
RETRY_MAX_S = 10.0
"""The first and the last ceiling of the wait between two attempts; full jitter."""

NO_EVENT = "empty_request"
"""The gateway's code for a request without an event, by somebody who may publish some."""

logger = logging.getLogger("solowire.publisher")


class Accepted(msgspec.Struct, frozen=True):
    """Events that are in the log. accepted: without the duplicates, which keep the offset that they had.

    demoted: so many of them were critical and are `high`, as one publisher may send only so many critical ones.
    """

    epoch: str
    first_offset: int
    last_offset: int
    accepted: int
    duplicates: int
    demoted: int = 0


class PublisherStats(msgspec.Struct):
    """Counts since the publisher began; events, but for `retries`, which are requests."""

    accepted: int = 0
    duplicates: int = 0
    demoted: int = 0
    refused: int = 0
    retries: int = 0


class Publisher:
    """Publishes events, as an async context manager; leaving it waits `timeout` seconds at most for what is buffered.

    url: the gateway's, `http://` or `https://`. token: a token, or a function (plain or async) that gives one; it is
    asked again, paced, while the gateway answers 401; that a fixed one will end is a warning in the log, in time.
    batch: events in one request. linger: seconds that an event waits for company. buffer_events: that are not accepted
    yet. retry_for: seconds to go on trying what can succeed later (docs/sdk-retries.md), then the publisher stops;
    None means for ever. timeout: seconds for one request.
    on_refused(event, problem): the gateway named this event as one that it doesn't take, or
    somebody before it goes on refusing it (code `refused_elsewhere`). event: as it was sent. contact: shared with other
    publishers of the same gateway; its own if there is none.

    Raises TypeError or ValueError for arguments of another kind.
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
        contact: GatewayContact | None = None,
    ) -> None:
        check_count("batch", batch)
        check_count("buffer_events", buffer_events)
        check_seconds("linger", linger)
        check_seconds("timeout", timeout, above=True)
        if retry_for is not None:
            check_seconds("retry_for", retry_for)
        check_callback("on_refused", on_refused)
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext, not a {type(ssl).__name__}")
        self._url = check_url(url) + "/v1/events"
        self._token = TokenSource(token)
        self._bearer = ""
        self._linger = linger
        self._retry_for = retry_for
        self._timeout = timeout
        self._on_refused = on_refused
        self._ssl = ssl
        self.stats = PublisherStats()
        self._buffer = PublishBuffer(buffer_events, batch)
        self._stopped: PublishRefused | None = None
        self._contact = contact or GatewayContact()
        self._last_fault: Fault | None = None  # since the last success
        self._warnings = WarningPace()  # of what goes wrong, since the last success
        self._demoted_pace = WarningPace()
        self._refusals = ForeignRefusals()
        self._refused_events: Fault | None = None  # the newest answer that is held to be about the events
        self._cut_off: Fault | None = None  # the newest fault of requests whose events are held to be in the way
        self._cut_off_tries = CUT_OFF_TRIES
        self._http: httpx.AsyncClient | None = None
        self._worker: asyncio.Task[None] | None = None
        self._end_watch = TokenEndWatch(self._token.fixed or "", self._report_token_end)
        self._is_closed = False

    # ------------------------------------------------------------------------------------------ for its users

    async def __aenter__(self) -> Publisher:
        if self._worker is not None or self._is_closed:
            raise RuntimeError("a publisher is entered once")
        trust = self._ssl or make_context(self._url)
        self._buffer.begin()
        self._http = httpx.AsyncClient(trust_env=False, timeout=self._timeout, verify=trust)
        self._worker = asyncio.create_task(self._work(), name="solowire publisher")
        self._end_watch.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises PublishRefused if events are left over, unless something else is being raised: then it is logged.

        One that was closed before does neither: what is left over was left on purpose.
        """
        if self._is_closed:
            return
        fault: PublishRefused | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await self.drain()
                await self._try_all_held()
        except TimeoutError:
            detail = f"{self._buffer.waiting_count} events were not accepted within {self._timeout:g} s"
            why = f"; it {self._last_fault.text}" if self._last_fault is not None else ""
            fault = PublishRefused(0, {"detail": f"did not take everything: {detail}{why}"}, url=self._url)
        except PublishRefused as refused:
            fault = refused
        finally:
            await self.close()
        if fault is not None:
            if error is None:
                raise fault
            if fault is not self._stopped:  # which was told when it stopped
                logger.error("%d events are left over: %s", self._buffer.waiting_count, fault)

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
        traceparent: str | None = None,
    ) -> str:
        """Puts one event in the buffer and returns its id, made here if there is none. It does not wait.

        timestamp: RFC 3339; now, if there is none, as the event may have to wait. traceparent: the trace that it is
        part of (W3C Trace Context); by default that of OpenTelemetry's current span. Raises BufferFull; PublishRefused
        if the publisher has stopped; TypeError or ValueError, with its path, for what JSON can't say in `data` (NaN,
        bytes, sets, Decimal, keys that are no text), and for what is no text and should be.
        """
        id, item = encode_event(
            type,
            data,
            id=id,
            priority=priority,
            key=key,
            user=user,
            timestamp=timestamp,
            source=source,
            correlation_id=correlation_id,
            traceparent=traceparent,
        )
        self.enqueue(item)
        return id

    def enqueue(self, item: bytes) -> int:
        """Puts an encoded event in the buffer, from whatever thread, and returns its number there; raises as above."""
        self._require_running()
        return self._buffer.append(item)

    def enqueue_many(self, items: Sequence[bytes]) -> int:
        """Puts encoded events in the buffer, as far as there is room, and returns how many of them that were.

        Each item is the JSON of one event, with an `id` that no other has and all else that `publish` sees to; it is
        not looked at. Raises PublishRefused if the publisher has stopped.
        """
        self._require_running()
        return self._buffer.append_many(items)

    def is_settled(self, number: int) -> bool:
        """Whether the event of that number in the buffer is accepted, or refused by name."""
        return self._buffer.is_settled(number)

    async def wait_for_room(self) -> None:
        """Waits until the buffer has room for one event more. Raises PublishRefused if the publisher has stopped."""
        self._require_running()
        await self._buffer.wait_for_room()
        self._require_running()

    def bulk(
        self,
        operation: str,
        *,
        total: int | None = None,
        operation_id: str | None = None,
        zone: str | None = None,
        actor: str | None = None,
    ) -> BulkOperation:
        """A bulk operation, such as an import, as an async context manager that publishes how far it is.

        total: items to do, if that is known. operation_id: made here, if there is none. zone: that it is about.
        actor: who caused it. Raises TypeError or ValueError for arguments of another kind.
        """
        return BulkOperation(
            self,
            operation,
            total=total,
            operation_id=operation_id,
            zone=zone,
            actor=actor,
            timeout=self._timeout,
        )

    async def drain(self) -> None:
        """Waits until everything that was published is accepted, refused by name, or kept for later by itself.

        What is kept, and why, is in the log, and in `unsent` (docs/sdk-retries.md). Raises PublishRefused.
        """
        self._require_running()
        await self._buffer.wait_until_settled()
        self._require_running()

    async def publish_and_wait(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Accepted:
        """Posts one event or several, as the gateway takes them, past the buffer; ids are added where there are none.

        Raises PublishRefused, with nothing accepted, for whatever is not success; what can succeed later is tried
        again only if `retry_for` is set, and so long.
        """
        if self._http is None or self._is_closed:
            raise RuntimeError("enter the publisher first: `async with publisher`")
        if isinstance(events, (str, bytes)) or not isinstance(events, (Mapping, Iterable)):
            raise TypeError(f"events must be a dict or several of them, not a {type(events).__name__}")
        if isinstance(events, Mapping):
            items = [encode_whole_event(events, "$")]
        else:
            items = [encode_whole_event(event, f"$[{index}]") for index, event in enumerate(events)]
        answer = await self._post_until_settled(items, self._retry_for or 0.0, is_whole=True)
        if isinstance(answer, Accepted):
            self._count_accepted(answer)
            return answer
        raise self._make_error(answer)

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """The events that are neither accepted nor refused, in order: to be kept, if the publisher has stopped."""
        return [msgspec.json.decode(item) for item in self._buffer.unsent]

    async def close(self) -> None:
        """Stops without waiting for what is buffered, which stays in `unsent`."""
        self._is_closed = True
        self._end_watch.stop()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        if self._http is not None:
            await self._http.aclose()
        self._buffer.end()

    def _report_token_end(self, text: str) -> None:
        logger.warning("%s", text)

    # ------------------------------------------------------------------------------------------ the task

    def _require_running(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._worker is None or self._is_closed:
            raise RuntimeError("a publisher is used within `async with publisher`")

    async def _work(self) -> None:
        try:
            while True:
                held = self._buffer.held.find_due(asyncio.get_running_loop().time())
                if held is not None:
                    await self._try_held(held)
                try:
                    async with asyncio.timeout_at(self._buffer.held.due_at):
                        batch = await self._buffer.take_batch(self._linger)
                except TimeoutError:
                    continue  # one that was kept is due
                await self._deliver(batch)
        except PublishRefused as refused:
            self._stop(refused)
        except asyncio.CancelledError:
            if not self._is_closed:  # by whoever cancels all tasks: who waits in drain() must not wait for ever
                self._stop(PublishRefused(0, {"detail": "gets nothing more: the task was cancelled"}, url=self._url))
            raise
        except Exception as error:  # a fault of ours: not to be met with silence
            logger.exception("the publisher stopped")
            self._stop(
                PublishRefused(0, {"detail": f"gets nothing more, as the publisher failed: {error!r}"}, url=self._url)
            )

    def _stop(self, refused: PublishRefused) -> None:
        logger.error("the publisher stopped with %d events unsent: %s", self._buffer.waiting_count, refused)
        self._stopped = refused
        self._buffer.end()

    async def _deliver(self, batch: list[bytes]) -> None:
        """Settles a batch, in as many requests as it takes. Raises PublishRefused to stop."""
        runs = [batch]  # the first one last
        self._cut_off_tries = CUT_OFF_TRIES
        while runs:
            self._buffer.keep_sending([item for run in reversed(runs) for item in run])
            run = runs.pop()
            answer = await self._post_until_settled(run, self._retry_for)
            if isinstance(answer, Accepted):
                self._count_accepted(answer)
                continue
            match answer.kind:
                case _ if answer is self._cut_off and len(run) > 1:
                    runs += halve(run)
                    self._cut_off_tries = KNOWN_TRIES
                case _ if answer is self._cut_off:
                    self._hold(run[0], answer)
                case FaultKind.bad_events if bad := find_event_faults(answer.problem, len(run)):
                    for index, problem in bad.items():
                        self._refuse(run[index], problem)
                    rest = [item for index, item in enumerate(run) if index not in bad]
                    if rest:
                        runs.append(rest)
                case FaultKind.bad_events | FaultKind.too_large if len(run) == 1:
                    self._refuse(run[0], answer.problem)
                case FaultKind.bad_events | FaultKind.too_large:
                    runs += halve(run)
                case _ if answer is not self._refused_events:
                    raise self._make_error(answer)
                case _ if len(run) > 1:
                    runs += halve(run)
                case _:
                    self._refusals.give_up(answer.status)
                    self._refuse(run[0], describe_refusal(answer.status, answer.reason))
        self._buffer.keep_sending([])

    def _hold(self, item: bytes, answer: Fault) -> None:
        """Keeps an event for later, with which requests don't get through."""
        self._buffer.hold_first(asyncio.get_running_loop().time())
        event: dict[str, Any] = msgspec.json.decode(item)
        logger.warning(
            "event %s (%s) is kept, and others go on before it: %s %s, again and again, while the gateway answers "
            "other requests; it is tried again in %.0f s, and later and later",
            event["id"],
            event["type"],
            self._url,
            answer.text,
            FIRST_PAUSE_S,
        )

    async def _try_held(self, held: HeldEvent) -> None:
        """Tries an event once that was kept for later. Raises PublishRefused to stop."""
        now = asyncio.get_running_loop().time
        answer, action = await self._post_held(held)
        if action is RetryDecision.renew:  # it has most likely just expired
            answer, action = await self._post_held(held)
        if isinstance(answer, Accepted):
            self._contact.has_succeeded, self._last_fault = True, None
            self._count_accepted(answer)
            self._buffer.settle_held(held)
            return
        if action is RetryDecision.split:
            faults = find_event_faults(answer.problem, 1)
            self._refuse(held.item, faults.get(0, answer.problem))
            self._buffer.settle_held(held)
            return
        if action is RetryDecision.stop or (self._retry_for is not None and now() - held.held_at > self._retry_for):
            raise self._make_error(answer)
        held.put_off(now(), at_least=wait_at_least(answer))

    async def _post_held(self, held: HeldEvent) -> tuple[Accepted | Fault, RetryDecision | None]:
        """The answer, and what is to be done about it. A token that is to be renewed is, before the next request."""
        answer = await self._post([held.item])
        if isinstance(answer, Accepted):
            return answer, None
        action = decide_retry(answer, succeeded=True, renewable=self._token.is_renewable)
        if action is RetryDecision.renew:
            self._bearer = ""
        return answer, action

    async def _try_all_held(self) -> None:
        """Tries once more what was kept for later. Raises PublishRefused if some is left."""
        for held in self._buffer.held.events:
            await self._try_held(held)
        if left := len(self._buffer.held):
            detail = f"did not take everything: requests with {left} of the events don't get through"
            raise PublishRefused(0, {"detail": detail}, url=self._url)

    def _count_accepted(self, answer: Accepted) -> None:
        self._refusals.accept()
        self.stats.accepted += answer.accepted
        self.stats.duplicates += answer.duplicates
        self.stats.demoted += answer.demoted
        if answer.demoted and self._demoted_pace.is_due("demoted", asyncio.get_running_loop().time()):
            logger.warning(
                "critical events are taken as high, %d so far: %s takes only so many of one publisher "
                "(SOLOWIRE_PUBLISH__CRITICAL_RATE)",
                self.stats.demoted,
                self._url,
            )

    def _refuse(self, item: bytes, problem: Problem) -> None:
        self.stats.refused += 1
        event: dict[str, Any] = msgspec.json.decode(item)
        if self._on_refused is None:
            logger.warning("event %s (%s) was refused: %s", event["id"], event["type"], problem)
            return
        try:
            self._on_refused(event, problem)
        except Exception:  # the user's code: its fault must not stop the others' events
            logger.exception("on_refused failed")

    # ------------------------------------------------------------------------------------------ requests

    async def _post_until_settled(
        self, items: list[bytes], retry_for: float | None, *, is_whole: bool = False
    ) -> Accepted | Fault:
        """Posts `items` until the answer is not to be waited out, or for `retry_for` seconds.

        is_whole: they are not sent in parts. If somebody else than the gateway goes on refusing them, the answer is
        `_refused_events` too; several that may be sent in parts have it at once. If requests with them don't get
        through `_cut_off_tries` times while others do, it is `_cut_off` too.
        """
        clock = asyncio.get_running_loop().time
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        began = clock()
        is_renewed = False
        refused_count = 0  # in a row, while the gateway answered other requests
        cut_off_count = sure_count = 0  # in a row; and so often the gateway answered another one then
        while True:
            answer = await self._post(items)
            if isinstance(answer, Accepted):
                self._contact.has_succeeded, self._last_fault = True, None
                self._warnings.reset()
                return answer
            self._last_fault = answer
            others_pass = may_be_of_events(answer) and await self._is_answering()
            refused_count = refused_count + 1 if others_pass else 0
            action = decide_retry(
                answer,
                succeeded=self._contact.has_succeeded,
                renewable=self._token.is_renewable,
                trying_s=clock() - began,
                others_pass=others_pass,
            )
            if action is RetryDecision.renew:
                self._bearer = ""
                if not is_renewed:  # it has most likely just expired
                    is_renewed = True
                    continue
            elif action is RetryDecision.retry_apart:
                is_divisible = len(items) > 1 and not is_whole
                if is_divisible or self._refusals.is_enough(refused_count, answer.status):
                    self._refused_events = answer
                    return answer
            elif action is not RetryDecision.retry:
                return answer
            cut_off_count = cut_off_count + 1 if may_be_cut_off(answer) and not is_whole else 0
            if cut_off_count >= self._cut_off_tries:
                sure_count = sure_count + 1 if await self._is_answering() else 0
                if sure_count and (len(items) > 1 or (sure_count >= SURE_TRIES and self._buffer.held.has_room)):
                    self._cut_off = answer
                    return answer
            wait = backoff.next_delay(at_least=wait_at_least(answer))
            if retry_for is not None and clock() - began + wait > retry_for:
                return answer
            level = logging.WARNING if self._warnings.is_due(answer.text, clock()) else logging.INFO
            logger.log(
                level, "%d events not accepted yet: %s %s; again in %.2f s", len(items), self._url, answer.text, wait
            )
            await asyncio.sleep(wait)
            self.stats.retries += 1

    async def _is_answering(self) -> bool:
        """Whether the gateway answers a request of ours that has no events; a first success, if it does."""
        answer = await self._post([])
        if isinstance(answer, Accepted) or answer.problem.get("code") != NO_EVENT:
            return False
        self._contact.has_succeeded = True
        return True

    async def _post(self, items: list[bytes]) -> Accepted | Fault:
        assert self._http is not None  # noqa: S101 - entered
        try:
            if not self._bearer:
                self._bearer = await self._token.get(self._timeout)
            async with asyncio.timeout(self._timeout):
                response = await self._http.post(
                    self._url,
                    content=b"[" + b",".join(items) + b"]",
                    headers={"Authorization": f"Bearer {self._bearer}", "Content-Type": "application/json"},
                )
        except TokenUnavailable as unavailable:
            return unavailable.fault
        except (OSError, httpx.RequestError) as error:  # TimeoutError is an OSError
            return read_network_error(error)
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=Accepted)
            except (msgspec.DecodeError, UnicodeError) as error:  # not the gateway's own; the ids make it safe to ask
                return read_undecodable(error)
        return read_answer(response.status_code, response.headers, response.content, time.time())

    def _make_error(self, fault: Fault) -> PublishRefused:
        has_words = fault.problem.get("detail") or fault.problem.get("title")
        problem = fault.problem if has_words else fault.problem | {"detail": fault.words}
        return PublishRefused(fault.status, problem, url=self._url, hint=fault.hint)
