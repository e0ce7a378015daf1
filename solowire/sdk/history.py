"""History of events, read page by page: `Client.history()`.

What it keeps true: each event comes once, in the order that was asked for, however many pages that takes and whatever
is written meanwhile; where the server can't go on without leaving something out, HistoryRefused is raised and nothing
is left out. `position` moves on with the events that are handed out, so that a client that shows it as `resume` goes on
live without a gap and without one twice. What was asked for and is not granted is told once, as it is to a live client.
A page that is refused for now, or that the network loses, is asked for again,
by the policy of `solowire.sdk.retry_policy`; what is waited for is a warning in the log, and `last_reason`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import httpx
import msgspec

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ConnectionEnded, HistoryRefused
from solowire.model.subscriptions import DeniedPattern
from solowire.protocol.messages import ReceivedEvent
from solowire.sdk.arguments import check_count, check_filter, check_names, check_optional_text, check_position
from solowire.sdk.network_errors import read_network_error
from solowire.sdk.retry_policy import (
    Fault,
    FaultKind,
    RetryDecision,
    close_code_of,
    decide_retry,
    read_answer,
    read_undecodable,
    wait_at_least,
)
from solowire.sdk.token_source import TokenSource, TokenUnavailable

logger = logging.getLogger("solowire.client")

PAGE_EVENTS = 1_000
RETRY_MIN_S, RETRY_MAX_S = 0.25, 5.0

Moment = str | datetime | timedelta | tuple[str, int]
"""A time with its zone, how long ago, or `(epoch, offset)`; or a str as the server takes it, such as `1h`."""


class _FetchedPage(msgspec.Struct):
    events: list[ReceivedEvent]
    next: str | None
    complete: bool
    denied: list[DeniedPattern] = []


class HistoryQuestion(msgspec.Struct, frozen=True):
    """The arguments of `Client.history`, as the query of a URL has them. limit: events in all, None for no limit."""

    fields: dict[str, str]
    limit: int | None
    is_descending: bool


def make_question(
    since: Moment | None,
    until: Moment | None,
    types: Sequence[str] | None,
    filter: Mapping[str, Sequence[str]] | None,
    limit: int | None,
    after: str | tuple[str, int] | None,
    order: str,
) -> HistoryQuestion:
    """Makes the query of a history request. Raises TypeError, ValueError."""
    if order not in ("asc", "desc"):
        raise ValueError(f"order must be 'asc' or 'desc', not {order!r}")
    if limit is not None:
        check_count("limit", limit)
    fields = {"order": order}
    for name, moment in (("since", since), ("until", until), ("after", after)):
        if moment is not None:
            fields[name] = _write_moment(name, moment)
    if types is not None:
        fields["types"] = ",".join(check_names("types", types))
    checked = check_filter("filter", filter)
    if checked:
        fields["filter"] = msgspec.json.encode(checked).decode()
    return HistoryQuestion(fields, limit, order == "desc")


def _write_moment(name: str, moment: object) -> str:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{name} must have a time zone, such as datetime.now(UTC)")
        return moment.isoformat()
    if isinstance(moment, timedelta):
        if moment < timedelta(0):
            raise ValueError(f"{name} is how long ago: it must not be negative")
        return f"{moment.total_seconds():.3f}s"
    if isinstance(moment, tuple):
        checked = check_position(name, moment)
        return "" if checked is None else f"{checked[0]}:{checked[1]}"
    if not isinstance(moment, str):
        kinds = "a str, a datetime, a timedelta or (epoch, offset)"
        raise TypeError(f"{name} must be {kinds}, not a {type(moment).__name__}")
    check_optional_text(name, moment)
    return moment


class History:
    """An async iterator of `ReceivedEvent`. Iterating raises HistoryRefused, and ConnectionEnded without an answer.

    Of a client that is strict, SubscriptionDenied if the first answer does not grant all that was asked for.

    next_page: what `after` goes on with, behind the last page that was read to its end; None if there is no more.
    last_reason: why there is no answer yet, while it is waited for. pages_count: answers so far. denied: of the types
    that were asked for, those that the newest answer does not grant.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        question: HistoryQuestion,
        open_http: Callable[[], httpx.AsyncClient],
        retry_for: float | None = None,
        report_page: Callable[[Sequence[DeniedPattern], bool], None] = lambda denied, is_first: None,
    ) -> None:
        """Asks nothing yet.

        report_page: called with what each answer does not grant, and whether it is the first; it may raise.
        """
        self._url = url
        self._token = token
        self._question = question
        self._fields = dict(question.fields)
        self._left = question.limit
        self._open_http = open_http
        self._retry_for = retry_for
        self._warnings = WarningPace()
        self._report_page = report_page
        self.last_reason: str | None = None
        self.pages_count = 0
        self.denied: list[DeniedPattern] = []
        self._http: httpx.AsyncClient | None = None
        self._events: deque[ReceivedEvent] = deque()
        self._page: _FetchedPage | None = None
        self._is_over = False
        self._position: tuple[str, int] | None = None
        self._epoch: str | None = None
        self.next_page: str | None = question.fields.get("after")

    @property
    def position(self) -> tuple[str, int] | None:
        """`(epoch, cursor)` up to where everything has been handed out: `resume` of a client that goes on from there.

        None before the first page, and newest first, where it would mean nothing.
        """
        return None if self._question.is_descending else self._position

    def __aiter__(self) -> History:
        return self

    async def __anext__(self) -> ReceivedEvent:
        try:
            while not self._events:
                self._end_page()
                if self._is_over:
                    await self.close()
                    raise StopAsyncIteration
                await self._read_page()
        except BaseException:
            await self.close()
            raise
        event = self._events.popleft()
        if self._epoch is not None:
            self._position = (self._epoch, event.offset)
        return event

    async def close(self) -> None:
        """Ends it before its end. Whoever iterates to the end need not call it."""
        http, self._http = self._http, None
        self._is_over = True
        if http is not None:
            await http.aclose()

    def _end_page(self) -> None:
        """All events of the page have been handed out."""
        page, self._page = self._page, None
        if page is None:
            return
        self.next_page = page.next
        if page.next is not None:
            self._fields["after"] = page.next
            epoch, offset = page.next.split(":")[:2]
            self._position = (epoch, int(offset))
        self._is_over = page.complete or page.next is None or self._left == 0

    async def _read_page(self) -> None:
        if self._http is None:
            self._http = self._open_http()
        limit = PAGE_EVENTS if self._left is None else min(PAGE_EVENTS, self._left)
        page = await self._ask_until_answered({**self._fields, "limit": str(limit)})
        self.denied = page.denied
        self._report_page(page.denied, self.pages_count == 1)
        if self._left is not None:
            self._left -= len(page.events)
        self._page = page
        self._epoch = page.next.partition(":")[0] if page.next is not None else self._epoch
        self._events.extend(page.events)

    async def _ask_until_answered(self, fields: Mapping[str, str]) -> _FetchedPage:
        """A page, however often it has to be asked for. Raises HistoryRefused, ConnectionEnded."""
        assert self._http is not None  # noqa: S101 - opened by `_read_page`
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            try:
                page = await _ask_once(self._http, self._url, self._token, fields)
            except _NoPage as failed:
                wait = self._decide_wait(failed, backoff, clock(), began)
            else:
                self.pages_count += 1
                self.last_reason = None
                self._warnings.reset()
                return page
            await asyncio.sleep(wait)

    def _decide_wait(self, failed: _NoPage, backoff: Backoff, now: float, began: float) -> float:
        """Seconds until a page that could not be had is asked for again. Raises its error if it isn't."""
        fault = failed.fault
        has_succeeded = self.pages_count > 0
        action = decide_retry(
            fault,
            # The gateway's own word on this question stays what it is: a deployment doesn't say that.
            succeeded=has_succeeded and fault.kind is not FaultKind.unknown,
            renewable=self._token.is_renewable,
            trying_s=now - began,
        )
        if action not in (RetryDecision.retry, RetryDecision.renew):
            raise failed.error from None
        wait = backoff.next_delay(at_least=wait_at_least(fault))
        if self._retry_for is not None and not has_succeeded and now - began + wait > self._retry_for:
            raise failed.error from None
        self.last_reason = fault.reason
        level = logging.WARNING if self._warnings.is_due(fault.text, now) else logging.INFO
        logger.log(level, "no history yet: %s %s; again in %.2f s", self._url, fault.text, wait)
        return wait


class _NoPage(Exception):
    """A page of history that could not be had. error: what to raise if it isn't tried again."""

    def __init__(self, fault: Fault, error: Exception) -> None:
        super().__init__(fault.reason)
        self.fault = fault
        self.error = error


async def _ask_once(http: httpx.AsyncClient, url: str, token: TokenSource, fields: Mapping[str, str]) -> _FetchedPage:
    try:
        shown = await token.get(http.timeout.connect or 10.0)
    except TokenUnavailable as error:
        raise _NoPage(error.fault, error.error) from error
    try:
        response = await http.get(url, params=dict(fields), headers={"Authorization": f"Bearer {shown}"})
    except (OSError, httpx.RequestError) as error:
        raise _no_page(read_network_error(error), url) from error
    if not response.is_success:
        raise _no_page(read_answer(response.status_code, response.headers, response.content, time.time()), url)
    try:
        return msgspec.json.decode(response.content, type=_FetchedPage)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _no_page(read_undecodable(error), url) from error


def _no_page(fault: Fault, url: str) -> _NoPage:
    if fault.problem.get("code") and fault.kind is not FaultKind.foreign:
        return _NoPage(fault, HistoryRefused(fault.status, fault.problem, url=url))
    code = close_code_of(fault)
    return _NoPage(fault, ConnectionEnded(code, fault.reason, hint=fault.hint, url=url, connected=False))
