"""The endpoint `GET /v1/events`: past events, a page as JSON or a stream of lines (NDJSON).

The gateway judges nothing: it passes the question on to the shard that owns the user, with the user's own token, and
the shard answers with a page. A stream is one page after the other.

What it keeps true: the next page of a stream is asked for when the client has taken the last one, so that a stream
holds one page, and a client that has gone costs one at the most; and each page is judged by the rights that the token
has then. A stream that can't be ended in order says so in its last line.

An answer counts until its client has read it: a user has `max_per_user` of them at a time, and all users together
MAX_ANSWERS, each with one page in memory. A client that has not read a page within READ_SECONDS is cut.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from solowire.auth.tokens import parse_bearer
from solowire.errors import InvalidHistoryQuery, RequestError, RequestRejected
from solowire.gateway.asker import ASKER
from solowire.gateway.http.responses import JSON_HEADERS, NO_SNIFFING, NO_STORE, Headers, exception_to_response
from solowire.gateway.http.shard_client import ShardClient
from solowire.gateway.router_client import RouterClient
from solowire.protocol.history_query import DEFAULT_LIMIT, read_query_string
from solowire.protocol.problem_details import PROBLEM_TYPE
from solowire.runtime.http_server import wait_for_disconnect
from solowire.runtime.settings.history_settings import HistorySettings

NDJSON = "application/x-ndjson"
SPARE_SECONDS = 3.0
"""A shard has its own time for a page to wait and to be made, and so much more to answer."""
MAX_RETRIES = 5
"""So often in a row a stream waits for a page that is refused for now."""

MAX_ANSWERS = 256
"""Of one gateway: at a quarter of a megabyte for each page, 64 MB."""
READ_SECONDS = 30.0
"""Whoever reads a page more slowly than that keeps others from asking."""

PART_BYTES = 64 * 1024

T = TypeVar("T")


class _ShardPage(msgspec.Struct):
    """As a shard writes it."""

    events: list[msgspec.Raw]
    next: str | None
    complete: bool
    denied: list[Any] = []


class _NotNow(Exception):
    """The shard refuses: its answer, to be passed on."""

    def __init__(self, status: int, body: bytes, retry_after: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.retry_after = retry_after

    @property
    def headers(self) -> Headers:
        retry_after = ((b"retry-after", self.retry_after.encode()),) if self.retry_after else ()
        return ((b"content-type", PROBLEM_TYPE.encode()), *retry_after)

    @property
    def is_temporary(self) -> bool:
        return self.status in (429, 503) and self.retry_after.isdecimal()


class HistoryEndpoint:
    """Serves `GET /v1/events`.

    request_count: questions, be they answered with a page or a stream. answer_count: those under way or unread now.
    """

    def __init__(self, gateway: RouterClient, shards: ShardClient, settings: HistorySettings) -> None:
        self._gateway = gateway
        self._shards = shards
        self._per_user = settings.max_per_user
        self._timeout = settings.max_wait_s + settings.timeout_s + SPARE_SECONDS
        self._page_events = min(DEFAULT_LIMIT, settings.page_events)
        self._answers: Counter[str] = Counter()  # by user
        self.request_count = 0

    @property
    def answer_count(self) -> int:
        return self._answers.total()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request, as an ASGI application."""
        self.request_count += 1
        shown = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            token = parse_bearer(shown.get(b"authorization", ""))
            user = (await self._gateway.identify(token, self._gateway.addresses.resolve_scope(scope))).user
            self._take_place(user)
        except Exception as error:
            await _send(send, *exception_to_response(error, scope["path"]))
            return
        try:
            await self._answer(scope, receive, send, user, token, is_stream=_wants_lines(shown.get(b"accept", "")))
        except _ClientGone:
            pass
        except _NotNow as refused:
            await _send(send, refused.status, refused.headers, refused.body)
        except TimeoutError:
            if (asker := ASKER.get()) is not None:
                asker.abort()
        except Exception as error:
            await _send(send, *exception_to_response(error, scope["path"]))
        finally:
            self._answers[user] -= 1
            if not self._answers[user]:
                del self._answers[user]

    def _take_place(self, user: str) -> None:
        """Raises RequestRejected if the user, or all together, have too many answers under way."""
        if self._answers[user] >= self._per_user:
            fault = f"one user may have {self._per_user} answers about history under way, or not read to their end"
            hint = "read them, or ask again later; an operator raises SOLOWIRE_HISTORY__MAX_PER_USER"
            raise RequestRejected(429, "history_rate_limited", fault, hint, retry_after=1.0)
        if self.answer_count >= MAX_ANSWERS:
            fault = "too many answers about history are under way"
            raise RequestRejected(503, "history_busy", fault, "ask again in a moment", retry_after=2.0)
        self._answers[user] += 1

    async def _answer(self, scope: Any, receive: Any, send: Any, user: str, token: str, *, is_stream: bool) -> None:
        """Sends a page, or all of a stream, and returns when the client has read it.

        Raises InvalidHistoryQuery, RequestRejected, or _NotNow with what a shard says, before anything is sent;
        _ClientGone, and TimeoutError if the client doesn't read.
        """
        query = scope["query_string"].decode("latin-1")
        if is_stream:
            stream = _PageStream(self, user, token, *_read_stream_query(query), self._page_events)
            await _while_there(receive, stream.begin())
            await _while_there(receive, stream.send_lines(send))
        else:
            body = await _while_there(receive, self._fetch(user, query, token))
            await _send(send, 200, JSON_HEADERS, body)
        if (asker := ASKER.get()) is not None:
            async with asyncio.timeout(READ_SECONDS):
                await asker.wait_until_taken()

    async def _fetch(self, user: str, query: str, token: str) -> bytes:
        """One page. Raises _NotNow with what the shard says instead; RequestRejected if it can't be asked."""
        shard = self._gateway.find_shard(user)
        status, body, retry_after = await self._shards.fetch_history(shard, query, token, self._timeout)
        if status != 200:
            raise _NotNow(status, body, retry_after)
        return body

    async def fetch_page(self, user: str, fields: dict[str, Any], token: str) -> _ShardPage:
        """One page of a stream; as `_fetch`."""
        written = {
            **fields,
            **({"types": ",".join(fields["types"])} if "types" in fields else {}),
            **({"filter": msgspec.json.encode(fields["filter"]).decode()} if "filter" in fields else {}),
        }
        return msgspec.json.decode(await self._fetch(user, urlencode(written), token), type=_ShardPage)


class _PageStream:
    """All pages of a question, one after the other. limit: of events in all, None for no limit."""

    def __init__(
        self,
        endpoint: HistoryEndpoint,
        user: str,
        token: str,
        fields: dict[str, Any],
        limit: int | None,
        page_events: int,
    ) -> None:
        self.user = user
        self._endpoint = endpoint
        self._token = token
        self._fields = fields
        self._left = limit
        self._page_events = page_events
        self._page: _ShardPage | None = None

    async def begin(self) -> None:
        """Fetches the first page: what is wrong is an answer's status then."""
        self._page = await self._fetch()

    async def _fetch(self) -> _ShardPage:
        limit = self._page_events if self._left is None else min(self._page_events, self._left)
        return await self._endpoint.fetch_page(self.user, {**self._fields, "limit": limit}, self._token)

    async def send_lines(self, send: Any) -> None:
        """All of it. Each part is taken before the next page is asked for. Raises TimeoutError if none is taken."""
        headers = [(b"content-type", NDJSON.encode()), NO_STORE, NO_SNIFFING]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for lines in self._write_lines():
            async with asyncio.timeout(READ_SECONDS):
                for first in range(0, len(lines), PART_BYTES):
                    part = lines[first : first + PART_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_lines(self) -> AsyncIterator[bytes]:
        page = self._page
        self._page = None
        while page is not None:
            if page.events:
                yield b"".join(_line(event) for event in page.events)
            if self._left is not None:
                self._left -= len(page.events)
            if page.complete or page.next is None or self._left == 0:
                end: dict[str, Any] = {"next": page.next, "complete": page.complete}
                if page.denied:
                    end["denied"] = page.denied
                yield msgspec.json.encode(end) + b"\n"
                return
            self._fields["after"] = page.next
            try:
                page = await self._fetch_again()
            except (_NotNow, RequestError) as error:
                body = error.body if isinstance(error, _NotNow) else exception_to_response(error, "/v1/events")[2]
                end = {"next": page.next, "complete": False, "error": msgspec.Raw(body or b"null")}
                yield msgspec.json.encode(end) + b"\n"
                return

    async def _fetch_again(self) -> _ShardPage:
        for _ in range(MAX_RETRIES):
            try:
                return await self._fetch()
            except _NotNow as refused:
                if not refused.is_temporary:
                    raise
                await asyncio.sleep(int(refused.retry_after))
            except RequestRejected as refused:
                if refused.retry_after is None:
                    raise
                await asyncio.sleep(refused.retry_after)
        return await self._fetch()


def _read_stream_query(query: str) -> tuple[dict[str, Any], int | None]:
    """The fields of a stream's question, and how many events it is to have in all. Raises InvalidHistoryQuery."""
    fields = read_query_string(query)
    limit = fields.pop("limit", None)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InvalidHistoryQuery({"limit": "write a whole number, 1 at least"})
    return fields, limit


def _line(event: msgspec.Raw) -> bytes:
    text = bytes(event)
    if b"\n" in text or b"\r" in text:  # between values, as its publisher wrote it: in a text they are escaped
        text = msgspec.json.format(text, indent=-1)
    return text + b"\n"


def _wants_lines(accept: str) -> bool:
    return any(part.partition(";")[0].strip().lower() == NDJSON for part in accept.split(","))


async def _send(send: Any, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, NO_STORE, NO_SNIFFING]})
    await send({"type": "http.response.body", "body": body})


class _ClientGone(RequestRejected):
    """Nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__(503, "client_disconnected", "the client has gone", "ask again", retry_after=1.0)


async def _while_there(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled when the client goes. Raises _ClientGone then."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _ClientGone
        return doing.result()
    finally:
        leaving.cancel()
        doing.cancel()
