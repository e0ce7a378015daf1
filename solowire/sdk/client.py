"""The Python SDK's reader: one connection, kept up, and its events as an async iterator.

    async with Client("https://gateway.example", token, subscriptions=["dns.*"]) as client:
        async for event in client:
            ...

What it keeps true:

* No event is lost between two connections: it comes back with the cursor of what has *arrived*, and where the server
  can't resume from there, `on_gap` says so. A frame that can't be decoded is never skipped, since it may hold events:
  it is counted (`undecodable`) and the connection is made anew, from the cursor before it. A well-formed message of a
  type that this version does not know is no such frame: it holds no events, and is ignored.
* `(epoch, cursor)` is what has been *handed out*: it moves on with the last event of a frame, or with a ping that says
  that there was none, so that who saves it after handling an event and shows it as `resume` to a new client gets some
  events twice, and none never.
* Between the socket and the iteration there are `max_buffered` events and one frame. At that bound the socket is not
  read any more (so TCP holds the server back) until half of them are gone; nothing is dropped. Only while an answer is
  awaited is it read on, as otherwise a `subscribe` within the iteration would wait for itself. A server that gets no
  pong meanwhile closes with 4408, which costs a reconnection and no event.
* Only this: `hello`, what its methods say, a `pong` for each `ping`, and `refresh` if the token is a callback.
* It is not silent: an attempt that fails is logged as a warning and told to `on_state`, at once where it is for a new
  reason, and once a minute while it lasts; so is a subscription that is not granted.

When it comes back says `solowire.sdk.return_schedule`, what a failed attempt means `solowire.sdk.retry_policy`, and how
a token is renewed `solowire.sdk.token_renewal`.

What is beside the state of the connection has modules of its own: `event_buffer`, `request_pacer`,
`kept_subscriptions`, `connection_attempt`, `socket_messages` and those above. The file is long because what is left,
connecting, receiving and asking, shares that one state.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ConnectionEnded, InvalidMessage, MessageRefused
from solowire.model.subscriptions import (
    DeniedPattern,
    Wanted,
    subscribe,
)
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.deflate import SUFFIX
from solowire.protocol.messages import (
    MAX_MESSAGE_BYTES,
    REPLAYING,
    ClientMessage,
    Codec,
    Error,
    Events,
    Notice,
    Ping,
    Pong,
    ReceivedEvent,
    ReconnectNow,
    Refresh,
    Reply,
    Resume,
    ServerMessage,
    Stats,
    Subscribe,
    Subscriptions,
    Unsubscribe,
    Welcome,
)
from solowire.sdk.arguments import (
    Token,
    check_callback,
    check_count,
    check_filter,
    check_flag,
    check_names,
    check_position,
    check_seconds,
    check_token_text,
    check_url,
)
from solowire.sdk.connection_attempt import (
    ABNORMAL,
    ConnectionLost,
    make_failed,
    make_lost,
    open_socket,
    request_ticket,
)
from solowire.sdk.event_buffer import BufferedFrame, EventBuffer
from solowire.sdk.history import History, Moment, make_question
from solowire.sdk.kept_subscriptions import KeptSubscriptions, make_filter
from solowire.sdk.request_pacer import RequestPacer
from solowire.sdk.retry_policy import FaultKind, close_code_of
from solowire.sdk.return_schedule import MISSED_HEARTBEATS, ReturnSchedule
from solowire.sdk.socket_messages import receive_message, send_message
from solowire.sdk.token_renewal import TokenRenewal
from solowire.sdk.token_source import TokenSource, TokenUnavailable
from solowire.sdk.trusted_certificates import make_context

MAX_UNANSWERED = 4
"""Messages on their way at once: well below the ten refusals, for rate too, that a server takes before it closes."""

_A = TypeVar("_A", Subscriptions, Reply)

logger = logging.getLogger("solowire.client")


class ConnectionState(msgspec.Struct, frozen=True):
    """What `on_state` is told: connected; waiting for the next attempt, in `retry_in` seconds; or ended for good.

    reason: why not connected, in words.
    """

    name: Literal["connected", "waiting", "ended"]
    reason: str = ""
    retry_in: float = 0.0


class Client:
    """One user's connection. Both an async context manager and, within it, an async iterator of `ReceivedEvent`.

    url: the gateway's, `http://` or `https://`. token: a token, or a function that gives one (plain or async): it is
    asked for one before every connection, and when the server says that the present one is about to expire.
    subscriptions: a list of event types and patterns; None means the defaults of the role. filter: `{attribute:
    [values]}`, goes with them. strict: raise SubscriptionDenied, on entering and in `subscribe()`, if any of them is
    not granted, such as one that is misspelt; else that is a warning. compress: asks for compressed frames; a server
    that has none sends plain ones. resume: `(epoch, cursor)` of an earlier client. max_buffered: events.
    connect_timeout: seconds for one attempt, up to the server's `welcome`, or its word that it is still at it.
    reconnect_min, reconnect_max: seconds, until the server has said its own. steady_after: seconds that a connection
    lives before it counts as one that worked. on_gap(reason): events were missed and can't be had any more; called
    between the events before and after. on_notice(notice), on_state(state): at once; all three are plain functions.

    Entering waits for the first `welcome`. What can't work at once raises ConnectionEnded, what may pass (nobody
    listens, 503) is tried again for as long as it takes, and said: wrap it in `asyncio.timeout` to give up.
    Entering and iterating raise ConnectionEnded when it is of no use to go on (docs/sdk-retries.md), or for whatever
    reason if `reconnect` is False; MessageRefused if the server does not take the `hello`; and what the token function
    raises before it has ever worked, unless that may pass. Later only a ClientError of it ends the client. What had
    arrived is handed out first. TypeError or ValueError for arguments of another kind.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        subscriptions: Sequence[str] | None = None,
        filter: Mapping[str, Sequence[str]] | None = None,
        strict: bool = False,
        codec: Literal["json", "msgpack"] = "json",
        compress: bool = False,
        resume: tuple[str, int] | None = None,
        reconnect: bool = True,
        connect_timeout: float = 10.0,
        max_buffered: int = 10_000,
        reconnect_min: float = 0.5,
        reconnect_max: float = 20.0,
        steady_after: float = 5.0,
        on_gap: Callable[[str], object] | None = None,
        on_notice: Callable[[Notice], object] | None = None,
        on_state: Callable[[ConnectionState], object] | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        check_count("max_buffered", max_buffered)
        check_seconds("connect_timeout", connect_timeout, above=True)
        check_seconds("reconnect_min", reconnect_min)
        check_seconds("reconnect_max", reconnect_max)
        check_seconds("steady_after", steady_after)
        if reconnect_min > reconnect_max:
            raise ValueError(f"reconnect_min must be no more seconds than reconnect_max, not {reconnect_min}")
        for name, flag in (("strict", strict), ("compress", compress), ("reconnect", reconnect)):
            check_flag(name, flag)
        for name, callback in (("on_gap", on_gap), ("on_notice", on_notice), ("on_state", on_state)):
            check_callback(name, callback)
        if codec not in ("json", "msgpack"):
            raise ValueError(f"codec must be 'json' or 'msgpack', not {codec!r}")
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext, not a {type(ssl).__name__}")
        self._base = check_url(url)
        self._url = self._base + "/v1/connect"
        self._token = TokenSource(token)
        self._renewal = TokenRenewal(self._token, self.refresh)
        plain = Codec[codec].value
        self._offers = [Subprotocol(name) for name in ((plain + SUFFIX, plain) if compress else (plain,))]
        names = None if subscriptions is None else check_names("subscriptions", subscriptions)
        self._kept = KeptSubscriptions(make_filter(check_filter("filter", filter)), names, strict=strict)
        resume = check_position("resume", resume)
        self._connect_timeout = connect_timeout
        self._on_gap = on_gap
        self._on_notice = on_notice
        self._on_state = on_state
        self._ssl = ssl

        self.gaps = 0
        self.undecodable = 0
        self.left_out: Counter[str] = Counter()  # by event type: what the server has counted and not sent
        self.connections = 0  # so many welcomes
        self.last_reason: str | None = None  # why the last connection, or attempt at one, ended; None before the first
        self._schedule = ReturnSchedule(
            reconnect=reconnect,
            steady_after=steady_after,
            is_renewable=self._token.is_renewable,
            reconnect_ms=(reconnect_min * 1000, reconnect_max * 1000),
        )
        self._welcome: Welcome | None = None
        self._shard: int | None = None
        self._arrived_at = resume  # (epoch, cursor) of what has been received
        self._warnings = WarningPace()

        self._buffer = EventBuffer(max_buffered, resume, lambda gap: self._invoke_callback(self._on_gap, gap))
        self._pacer = RequestPacer(self._warnings)
        self._up = asyncio.Event()  # there is a welcomed connection, or there will never be one again
        self._socket: ClientConnection | None = None
        self._ids = count(1)
        self._pending_requests: dict[int, _PendingRequest] = {}
        self._request_slots = asyncio.Semaphore(MAX_UNANSWERED)
        self._http: httpx.AsyncClient | None = None
        self._runner: asyncio.Task[None] | None = None
        self._end: BaseException | None = None
        self._is_closed = False

    # ------------------------------------------------------------------------------------------ what it knows

    @property
    def welcome(self) -> Welcome | None:
        """The last one. None before the first."""
        return self._welcome

    @property
    def session(self) -> str | None:
        """Of the last connection."""
        return None if self._welcome is None else self._welcome.session

    @property
    def shard(self) -> int | None:
        """The number of the shard that the last connection was sent to."""
        return self._shard

    @property
    def subscriptions(self) -> list[str]:
        """The event types in force, as the server last told them."""
        return list(self._kept.granted)

    @property
    def epoch(self) -> str | None:
        """Which `cursor` belongs to. None before the first welcome."""
        return None if self._buffer.handed_out is None else self._buffer.handed_out[0]

    @property
    def cursor(self) -> int | None:
        """Where the iteration stands: all events up to it have been handed out. None before the first welcome."""
        return None if self._buffer.handed_out is None else self._buffer.handed_out[1]

    # ------------------------------------------------------------------------------------------ what it does

    async def __aenter__(self) -> Client:
        if self._runner is not None or self._is_closed:
            raise RuntimeError("a client is entered once")
        self._http = self._open_http()
        self._runner = asyncio.create_task(self._run(self._http), name="solowire client")
        try:
            await self._up.wait()
            if self._end is not None:
                raise self._end
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Client:
        return self

    async def __anext__(self) -> ReceivedEvent:
        if self._runner is None:
            raise RuntimeError("enter the client first: `async with client`")
        while not self._is_closed:
            self._buffer.skip_empty()
            if self._buffer:
                return self._buffer.take_event()
            if self._end is not None:
                raise self._end
            self._buffer.news.clear()
            await self._buffer.news.wait()
        raise StopAsyncIteration

    async def subscribe(
        self, event_types: Sequence[str], filter: Mapping[str, Sequence[str]] | None = None
    ) -> Subscriptions:
        """Adds event types, each under `filter`. Waits for a connection if there is none; raises MessageRefused.

        All of a connection's types and filters together may take 63 KB: they must fit one message when it comes back.
        """
        names = check_names("event_types", event_types)
        raw = check_filter("filter", filter)
        conditions = make_filter(raw)

        def change(wanted: Wanted) -> Wanted:
            return subscribe(wanted, names, conditions)

        with suppress(InvalidMessage):  # the server has the say in what is wrong with it
            self._kept.check_change(change)
        granted = await self._send_request(lambda id: Subscribe(names, id, raw), Subscriptions, change)
        self._kept.report_denied([denied for denied in granted.denied if denied.type in names])
        self._kept.report_idle(conditions, names)
        return granted

    async def unsubscribe(self, event_types: Sequence[str]) -> Subscriptions:
        """Takes event types away. Waits for a connection if there is none; raises MessageRefused.

        One that is misspelt takes nothing away: a warning, or SubscriptionDenied with `strict`.
        """
        names = check_names("event_types", event_types)
        left = await self._send_request(
            lambda id: Unsubscribe(names, id),
            Subscriptions,
            lambda wanted: self._kept.remove(wanted, names),
        )
        self._kept.report_not_removed(names, left.denied)
        return left

    async def refresh(self, token: str) -> dict[str, Any]:
        """Shows a new token of the same user; it is the one to come back with. Raises MessageRefused."""
        token = check_token_text(token, "token")
        reply = await self._send_request(lambda id: Refresh(token, id), Reply)
        self._token.replace(token)
        return reply.data

    async def stats(self) -> dict[str, Any]:
        """What the shard knows of this connection. Raises MessageRefused."""
        return (await self._send_request(lambda id: Stats(id), Reply)).data

    def history(
        self,
        since: Moment | None = None,
        until: Moment | None = None,
        *,
        types: Sequence[str] | None = None,
        filter: Mapping[str, Sequence[str]] | None = None,
        limit: int | None = None,
        after: str | tuple[str, int] | None = None,
        order: Literal["asc", "desc"] = "asc",
        retry_for: float | None = None,
    ) -> History:
        """What was sent before: an async iterator of exactly the events that this user would have been sent live.

        since: from there on; None: from the oldest that is kept. until: before a time, or up to and with an offset.
        types, filter: as `subscriptions` and `filter` of a client. limit: events in all. after: goes on behind that
        event, or with `next_page` of another. order: `desc` begins with the newest. retry_for: seconds to go on trying
        for the first answer, if that can succeed later (docs/sdk-retries.md); None means for ever. It needs no
        connection: the client need not be entered. What is not granted is a warning, once, and with `strict` an error.
        Raises TypeError, ValueError.
        """
        if retry_for is not None:
            check_seconds("retry_for", retry_for)
        question = make_question(since, until, types, filter, limit, after, order)

        def report_page(denied: Sequence[DeniedPattern], is_first: bool) -> None:
            self._kept.report_denied(denied, is_first=is_first)
            self._kept.report_idle(make_filter(filter), set(types or ()) - {one.type for one in denied})

        return History(self._base + "/v1/events", self._token, question, self._open_http, retry_for, report_page)

    def _open_http(self) -> httpx.AsyncClient:
        trust = self._ssl or make_context(self._base)
        if self._base.startswith("https:"):
            self._ssl = trust  # for its WebSockets, too
        return httpx.AsyncClient(trust_env=False, timeout=self._connect_timeout, verify=trust)

    async def close(self) -> None:
        """Ends the connection and the iteration. What is buffered is not handed out; `cursor` stands before it."""
        self._is_closed = True
        await self._renewal.close()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
        self._finish(ConnectionEnded(1000, "closed here"))

    # ------------------------------------------------------------------------------------------ coming back

    async def _run(self, http: httpx.AsyncClient) -> None:
        clock = asyncio.get_running_loop().time
        self._schedule.begin(clock())
        try:
            while True:
                try:
                    await self._run_connection(http)
                except ConnectionLost as left:
                    self.last_reason = left.fault.text
                    now = clock()
                    found = self._schedule.find_wait(left, now)
                    if found is None:
                        raise self._make_error(left) from None
                    wait = found
                    self._report_failure(left, wait, now)
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            if not self._is_closed:  # by whoever cancels all tasks: who waits for us must not wait for ever
                self._finish(ConnectionEnded(ABNORMAL, "the client's task was cancelled", url=self._base))
            raise
        except Exception as end:  # the end, the token function's, or a fault of ours: it is for the user to see
            logger.info("no connection any more: %s", end)
            self._finish(end)
            self._invoke_callback(self._on_state, ConnectionState("ended", str(end)))

    def _make_error(self, left: ConnectionLost) -> Exception:
        """What is to be raised when there is no way on."""
        fault = left.fault
        if left.error is not None:
            return left.error
        if left.code is not None:
            return ConnectionEnded(left.code, fault.reason, hint=fault.hint, url=self._base)
        code = close_code_of(fault) if fault.kind in _HAS_CODE else ABNORMAL
        return ConnectionEnded(code, fault.reason, hint=fault.hint, url=left.url or self._url, connected=False)

    def _report_failure(self, left: ConnectionLost, wait: float, now: float) -> None:
        url, text = left.url or self._url, left.fault.text
        if left.fault.kind is FaultKind.token and self._token.is_renewable:
            text = left.fault.reason  # the way out is what it does
        self._invoke_callback(
            self._on_state, ConnectionState("waiting", f"{url} {text}" if left.has_failed else text, wait)
        )
        if not left.has_failed:
            logger.info("connection over: %s; coming back in %.2f s", text, wait)
        elif self._warnings.is_due(text, now):
            logger.warning("no connection: %s %s; trying again, next in %.2f s", url, text, wait)
        else:
            logger.info("no connection: %s %s; trying again in %.2f s", url, text, wait)

    async def _run_connection(self, http: httpx.AsyncClient) -> None:
        """One connection from its ticket to its end. Always raises: _Left, or what can't be helped."""
        socket: ClientConnection | None = None
        try:
            try:
                token = await self._token.get(self._connect_timeout)
                async with asyncio.timeout(self._connect_timeout) as limit:
                    grant = await request_ticket(http, self._url, token)
                    self._shard = grant.shard
                    socket = await open_socket(grant.url, self._offers, self._ssl)
                    welcome = await self._send_hello(socket, limit)
            except TokenUnavailable as unavailable:
                fault = unavailable.fault
                raise ConnectionLost(
                    fault, error=unavailable.error if fault.kind is FaultKind.token_fault else None
                ) from None
            except TimeoutError:
                raise make_failed(f"gave no connection within {self._connect_timeout:g} s") from None
            self._renewal.start(token)
            self._start_connection(socket, welcome)
            await self._receive(socket, welcome.heartbeat_s * MISSED_HEARTBEATS)
        except ConnectionClosed as gone:
            if gone.rcvd is not None and gone.rcvd_then_sent and gone.rcvd.code == CloseCode.too_big:
                self._refuse_largest(is_welcomed=self._socket is not None)
            code, reason = (ABNORMAL, "") if gone.rcvd is None else (gone.rcvd.code, gone.rcvd.reason)
            raise make_lost(code, reason or "connection lost") from None
        finally:
            self._socket = None
            self._renewal.stop()
            if self._end is None:
                self._up.clear()
            lost, self._pending_requests = self._pending_requests, {}
            for asked in lost.values():
                asked.resolve(None)
            if socket is not None:
                await socket.close()

    def _refuse_largest(self, *, is_welcomed: bool) -> None:
        """The server, or a proxy, has closed the connection since a message was too big: it is not said again.

        Raises MessageRefused if that is the `hello`, without which there is no connection.
        """
        refusal = Error(CloseCode.too_big.name, _TOO_BIG, "use fewer or shorter filters, or a shorter token")
        if not is_welcomed:
            raise MessageRefused(refusal.code, refusal.message, refusal.hint)
        asked = max(self._pending_requests.values(), key=lambda asked: asked.size, default=None)
        if asked is not None:
            asked.resolve(refusal)

    # ------------------------------------------------------------------------------------------ one connection

    async def _send_hello(self, socket: ClientConnection, limit: asyncio.Timeout) -> Welcome:
        resume = None if self._arrived_at is None else Resume(*self._arrived_at)
        id = next(self._ids)
        await send_message(socket, msgspec.structs.replace(self._kept.make_hello(), id=id, resume=resume))
        while True:
            message = await self._receive_message(socket)
            if isinstance(message, Welcome):
                if message.id != id:
                    # The hello came too late, and the server began without it: from here on, and not from our cursor.
                    raise make_failed("did not wait for the hello")
                return message
            if isinstance(message, Error) and message.id == id:
                if message.retry_after is not msgspec.UNSET:
                    raise make_failed(f"refused the hello: {message.message}", after=message.retry_after)
                raise MessageRefused(message.code, message.message, message.hint)
            if isinstance(message, Notice) and message.code == REPLAYING:
                # It gets all that it missed: to leave now would be to ask for it again from the beginning.
                limit.reschedule(asyncio.get_running_loop().time() + self._connect_timeout)
            await self._handle(message, socket)

    def _start_connection(self, socket: ClientConnection, welcome: Welcome) -> None:
        self._kept.report_denied(welcome.denied, is_first=not self.connections)
        gap = None
        if self._arrived_at is not None and not welcome.resumed:
            self.gaps += 1
            gap = welcome.reason or "unknown"
        self._welcome = welcome
        self._kept.granted = welcome.subscriptions
        self._kept.report_idle(self._kept.filter, welcome.subscriptions)
        self._arrived_at = (welcome.epoch, welcome.cursor)
        self._buffer.append(BufferedFrame(deque(), self._arrived_at, gap))
        self.connections += 1
        self._pacer.reset()
        self._schedule.note_connected(welcome, asyncio.get_running_loop().time())
        self._warnings.reset()
        self._socket = socket
        self._up.set()
        logger.info("connected to %s as %s", self._base, welcome.user)
        self._invoke_callback(self._on_state, ConnectionState("connected"))

    async def _receive(self, socket: ClientConnection, patience: float) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as deadline:
                while True:
                    if not self._buffer.room.is_set():
                        deadline.reschedule(None)  # it is we who don't listen
                        await self._buffer.room.wait()
                    if patience > 0:
                        deadline.reschedule(clock() + patience)
                    await self._handle(await self._receive_message(socket), socket)
        except TimeoutError:
            socket.transport.abort()
            raise make_lost(ABNORMAL, f"no heartbeat within {patience:g} s") from None

    async def _receive_message(self, socket: ClientConnection) -> ServerMessage | None:
        """The next message. None for one of a type that is newer than this client."""
        try:
            return await receive_message(socket)
        except InvalidMessage as error:
            self.undecodable += 1
            logger.warning("a frame can't be decoded, so the connection is made anew: %s", error)
            await socket.close(1007, "it can't be decoded")
            raise make_lost(1007, "a frame can't be decoded") from None

    async def _handle(self, message: ServerMessage | None, socket: ClientConnection) -> None:
        match message:
            case Events():
                if self._socket is not socket or self._welcome is None:
                    raise make_lost(1002, "the server sent events before its welcome")
                # Not by its events: in a compacted frame they may be older than that, or in another order.
                self._arrived_at = (self._welcome.epoch, message.cursor)
                self.left_out.update(message.compacted)
                self._buffer.append(BufferedFrame(deque(message.events), self._arrived_at))
            case Ping():
                if message.cursor is not None and self._socket is socket and self._welcome is not None:
                    self._arrived_at = (self._welcome.epoch, message.cursor)
                    self._buffer.append(BufferedFrame(deque(), self._arrived_at))
                await send_message(socket, Pong(message.id))
            case Subscriptions() | Reply() | Error():
                self._handle_reply(message)
            case Notice():
                self._invoke_callback(self._on_notice, message)
                if message.code == "token_expiring":
                    if self._token.is_renewable:
                        self._renewal.on_notice(None if message.after_ms is None else message.after_ms / 1000)
                    elif self._on_notice is None:
                        logger.warning("the token is about to expire: show a new one by refresh(), or pass a function")
            case ReconnectNow():
                raise make_lost(CloseCode.going_away, message.reason, after=message.after_ms / 1000, asked=True)
            case Welcome() | Pong() | None:
                pass

    # ------------------------------------------------------------------------------------------ asking

    async def _send_request(
        self, message: Callable[[int], ClientMessage], kind: type[_A], change: Callable[[Wanted], Wanted] | None = None
    ) -> _A:
        """Says `message` and returns its answer; says it again if the connection ends first, or it came too fast."""
        if self._runner is None:
            raise RuntimeError("enter the client first: `async with client`")
        size = len(msgspec.json.encode(message(next(self._ids))))
        if size > MAX_MESSAGE_BYTES:
            fault = f"the message has {size} bytes; {MAX_MESSAGE_BYTES} bytes are the most"
            raise MessageRefused(CloseCode.too_big.name, fault)
        self._buffer.begin_asking()
        slower = self._pacer.make_backoff()
        try:
            async with self._request_slots:
                while True:
                    await self._up.wait()
                    await self._pacer.wait_for_turn()
                    socket, id = self._socket, next(self._ids)
                    if socket is None:
                        if self._end is None:
                            continue  # it was lost while this waited for its turn
                        raise self._end
                    asked = self._pending_requests[id] = _PendingRequest(
                        asyncio.get_running_loop().create_future(), change, size
                    )
                    # A fault is not looked at here: whatever it is, the reading sees it too, and settles all answers.
                    with suppress(ConnectionClosed):
                        await send_message(socket, message(id))
                    answer = await asked.answer
                    if isinstance(answer, Error):
                        self._pacer.note_refusal()
                        if answer.code != "rate_limited" or answer.retry_after is msgspec.UNSET:
                            raise MessageRefused(answer.code, answer.message, answer.hint)
                        self._pacer.slow_down(answer.retry_after, slower)
                    elif isinstance(answer, kind):
                        return answer
                    elif answer is not None:
                        raise MessageRefused("unexpected_answer", f"the server answered with {type(answer).__name__}")
        finally:
            self._buffer.end_asking()

    def _handle_reply(self, message: Subscriptions | Reply | Error) -> None:
        asked = self._pending_requests.pop(message.id, None) if isinstance(message.id, int) else None
        if isinstance(message, Subscriptions):
            if asked is not None and asked.change is not None:
                # Here and not where the answer is awaited: it is in force even if nobody waits any more.
                self._kept.apply_change(asked.change, message.subscriptions)
            self._kept.granted = message.subscriptions
            if asked is None:  # after a refresh: the new token may grant less
                self._kept.report_denied(message.denied, is_first=False)
        if asked is not None:
            asked.resolve(message)
        elif isinstance(message, Error):
            logger.warning("the server refused a message: %s %s %s", message.code, message.message, message.hint)

    def _invoke_callback(self, callback: Callable[[Any], object] | None, what: object) -> None:
        if callback is not None:
            try:
                callback(what)
            except Exception:  # the user's code: its fault must not end the connection
                logger.exception("a callback failed")

    def _finish(self, end: BaseException) -> None:
        if self._end is None:
            self._end = end
        self._up.set()
        self._buffer.news.set()


# ---------------------------------------------------------------------------------------------------- its parts

_TOO_BIG = "the connection was closed with 1009, message too big, upon this one"

_HAS_CODE = frozenset(
    {
        FaultKind.no_gateway,
        FaultKind.foreign,
        FaultKind.unknown,
        FaultKind.token,
        FaultKind.final,
        FaultKind.taken,
        FaultKind.foreign_too_large,
    }
) | {FaultKind.too_large, FaultKind.bad_events}


class _PendingRequest:
    """A message whose answer is awaited. change: what that does to the subscriptions that are kept. size: in bytes."""

    def __init__(
        self, answer: asyncio.Future[ServerMessage | None], change: Callable[[Wanted], Wanted] | None, size: int
    ) -> None:
        self.answer = answer
        self.change = change
        self.size = size

    def resolve(self, message: ServerMessage | None) -> None:
        """None: the connection ended first."""
        if not self.answer.done():
            self.answer.set_result(message)
