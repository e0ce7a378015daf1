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
* It asks no faster than the server lets it: a few messages may be unanswered, one that was `rate_limited` is said
  again when the server said to, and those behind it wait their turn. Everything that is subscribed to fits one `hello`.

Coming back takes full jitter between the server's `reconnect.min_ms` and a ceiling that doubles up to `max_ms`, and
begins anew only after a connection that was steady. A `reconnect` message is obeyed without growth.

Longer than 500 lines: the connection, what is asked on it and what is buffered of it share one state and one loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from solowire.backoff import Backoff, retry_after
from solowire.catalog import CATALOG
from solowire.client_protocol import (
    MAX_MESSAGE_BYTES,
    REPLAYING,
    SUBPROTOCOLS,
    ClientMessage,
    Codec,
    Error,
    Events,
    Hello,
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
from solowire.codes import CloseCode, is_terminal
from solowire.deflate import SUFFIX
from solowire.errors import ConnectionEnded, InvalidMessage, MessageRefused
from solowire.subscriptions import Filter, Wanted, subscribe, unsubscribe

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""What the server beneath a shard sends at most. Frames are 64 KB unless a single event is larger."""

MISSED_HEARTBEATS = 2.5
"""A server that has said nothing for this many of its heartbeats is dead."""

CLOSE_TIMEOUT_S = 1.0
"""How long a polite close waits for the other side."""

MAX_UNANSWERED = 4
"""Messages on their way at once: well below the ten refusals, for rate too, that a server takes before it closes."""

_SUBSCRIPTIONS_BYTES = MAX_MESSAGE_BYTES - 1024
"""What of a `hello` may be subscriptions and filters, as JSON; the rest is for its cursor."""

ABNORMAL = 1006
"""RFC 6455, section 7.4.1: the connection ended without a close code, or never began."""

Token = str | Callable[[], str | Awaitable[str]]

_A = TypeVar("_A", Subscriptions, Reply)

log = logging.getLogger("solowire.client")


class Grant(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/connect`. url: carries the ticket, so it is not for logs."""

    url: str
    shard: int | None = None


class Client:
    """One user's connection. Both an async context manager and, within it, an async iterator of `ReceivedEvent`.

    url: the gateway's, `http://` or `https://`. token: a token, or a function that gives one (plain or async): it is
    asked for one before every connection, and when the server says that the present one is about to expire.
    subscriptions: None means the defaults of the role. filter: goes with them. compress: asks for compressed frames; a
    server that has none sends plain ones. resume: `(epoch, cursor)` of an earlier client. max_buffered: events.
    connect_timeout: seconds for one attempt, up to the server's `welcome`, or its word that it is still at it.
    reconnect_min, reconnect_max: seconds, until the server has said its own. steady_after: seconds that a connection
    lives before it counts as one that worked. on_gap(reason): events were missed and can't be had any more; called
    between the events before and after. on_notice(notice): at once.

    Entering waits for the first `welcome`, for as long as it takes. Entering and iterating raise ConnectionEnded when
    the server ends the connection for good (a terminal close code, or an HTTP answer that means the same: 401 is 4401,
    403 is 4403, 409 is 4409, any other that can't succeed or is no gateway's 4400), or for whatever reason if
    `reconnect` is False; MessageRefused if it does not take the `hello`; and what the token function raises, unless
    that is an OSError or httpx.TransportError, which is tried again. What had arrived is handed out first.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        subscriptions: Sequence[str] | None = None,
        filter: Mapping[str, Sequence[str]] | None = None,
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
        ssl: SSLContext | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the gateway's URL begins with http:// or https://, not {url!r}")
        if max_buffered < 1:
            raise ValueError("max_buffered is at least 1")
        self._url = url.rstrip("/") + "/v1/connect"
        self._token = token
        plain = Codec[codec].value
        self._offers = [Subprotocol(name) for name in ((plain + SUFFIX, plain) if compress else (plain,))]
        self._filter = _canonical(filter)
        self._wanted: Wanted | None = None
        if subscriptions is not None:
            self._wanted = dict.fromkeys(subscriptions, self._filter)
        self._reconnect = reconnect
        self._connect_timeout = connect_timeout
        self._max_buffered = max_buffered
        self._steady_after = steady_after
        self._on_gap = on_gap
        self._on_notice = on_notice
        self._ssl = ssl

        self.gaps = 0
        self.undecodable = 0
        self.left_out: Counter[str] = Counter()  # by event type: what the server has counted and not sent
        self.connections = 0  # so many welcomes
        self.last_reason: str | None = None  # why the last connection, or attempt at one, ended; None before the first
        self._reconnect_ms = (reconnect_min * 1000, reconnect_max * 1000)
        self._backoff = backoff_of(*self._reconnect_ms)
        self._welcome: Welcome | None = None
        self._granted: list[str] = []
        self._shard: int | None = None
        self._arrived_at = resume  # (epoch, cursor) of what has been received
        self._handed_out = resume  # … of what the iteration has given away
        self._live_since: float | None = None
        self._lost_at: float | None = None

        self._buffer: deque[_Stretch] = deque()
        self._buffered = 0
        self._news = asyncio.Event()  # for the iteration: look at the buffer, or at the end
        self._room = asyncio.Event()  # for the reading: there is room, or someone asks
        self._room.set()
        self._asking = 0
        self._up = asyncio.Event()  # there is a welcomed connection, or there will never be one again
        self._socket: ClientConnection | None = None
        self._ids = count(1)
        self._asked: dict[int, _Asked] = {}
        self._asks = asyncio.Semaphore(MAX_UNANSWERED)
        self._speak_at = 0.0  # not before, on the loop's clock
        self._spacing = 0.0  # seconds between two messages, once the server has found us too fast
        self._http: httpx.AsyncClient | None = None
        self._runner: asyncio.Task[None] | None = None
        self._renewals: set[asyncio.Task[None]] = set()
        self._end: BaseException | None = None
        self._closed = False

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
        return list(self._granted)

    @property
    def epoch(self) -> str | None:
        """Which `cursor` belongs to. None before the first welcome."""
        return None if self._handed_out is None else self._handed_out[0]

    @property
    def cursor(self) -> int | None:
        """Where the iteration stands: all events up to it have been handed out. None before the first welcome."""
        return None if self._handed_out is None else self._handed_out[1]

    # ------------------------------------------------------------------------------------------ what it does

    async def __aenter__(self) -> Client:
        if self._runner is not None or self._closed:
            raise RuntimeError("a client is entered once")
        self._http = httpx.AsyncClient(trust_env=False, timeout=self._connect_timeout, verify=self._ssl or True)
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
        while not self._closed:
            self._settle()
            if self._buffer:
                return self._take()
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration

    async def subscribe(
        self, event_types: Sequence[str], filter: Mapping[str, Sequence[str]] | None = None
    ) -> Subscriptions:
        """Adds event types, each under `filter`. Waits for a connection if there is none; raises MessageRefused.

        All of a connection's types and filters together may take 63 KB: they must fit one message when it comes back.
        """
        raw = None if filter is None else {name: list(values) for name, values in filter.items()}
        conditions = _canonical(filter)

        def change(wanted: Wanted) -> Wanted:
            return subscribe(wanted, event_types, conditions)

        with suppress(InvalidMessage):  # the server has the say in what is wrong with it
            _hello(change(self._kept), self._filter)
        return await self._ask(lambda id: Subscribe(list(event_types), id, raw), Subscriptions, change)

    async def unsubscribe(self, event_types: Sequence[str]) -> Subscriptions:
        """Takes event types away. Waits for a connection if there is none; raises MessageRefused."""
        return await self._ask(
            lambda id: Unsubscribe(list(event_types), id),
            Subscriptions,
            lambda wanted: unsubscribe(wanted, event_types, CATALOG),
        )

    async def refresh(self, token: str) -> dict[str, Any]:
        """Shows a new token of the same user; it is the one to come back with. Raises MessageRefused."""
        reply = await self._ask(lambda id: Refresh(token, id), Reply)
        if isinstance(self._token, str):
            self._token = token
        return reply.data

    async def stats(self) -> dict[str, Any]:
        """What the shard knows of this connection. Raises MessageRefused."""
        return (await self._ask(lambda id: Stats(id), Reply)).data

    async def close(self) -> None:
        """Ends the connection and the iteration. What is buffered is not handed out; `cursor` stands before it."""
        self._closed = True
        tasks = [task for task in (self._runner, *self._renewals) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
        self._finish(ConnectionEnded(1000, "closed here"))

    # ------------------------------------------------------------------------------------------ coming back

    async def _run(self, http: httpx.AsyncClient) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while True:
                self._live_since = None
                try:
                    await self._connection(http)
                except _Left as left:
                    self.last_reason = f"{left.code} {left.reason}".rstrip()
                    now = clock()
                    lived = 0.0 if self._live_since is None else now - self._live_since
                    if lived:
                        self._lost_at = now
                    wait = self._wait_after(left, lived)
                    log.info("connection over: %s %s; coming back in %.2f s", left.code, left.reason, wait)
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            raise
        except ConnectionEnded as end:
            log.info("%s", end)
            self._finish(end)
        except Exception as error:  # the token function's, or a fault of ours: either way it is for the user to see
            self._finish(error)

    def _wait_after(self, left: _Left, lived: float) -> float:
        """Seconds until the next attempt. Raises ConnectionEnded if there shall be none."""
        if not self._reconnect:
            raise ConnectionEnded(left.code, left.reason)
        if left.asked:
            return left.after + random.uniform(0, max(self._reconnect_ms[0] / 1000, left.after / 10))  # noqa: S311
        steady = lived > 0 and lived >= self._steady_after
        if steady:
            self._backoff.reset()
        # Only a new token makes a difference, and only once: not to a server that never likes the new one either.
        renewable = left.code == CloseCode.unauthenticated and callable(self._token) and steady
        if is_terminal(left.code) and not renewable:
            raise ConnectionEnded(left.code, left.reason)
        return self._backoff.next(at_least=left.after)

    async def _connection(self, http: httpx.AsyncClient) -> None:
        """One connection from its ticket to its end. Always raises: _Left, or what can't be helped."""
        socket: ClientConnection | None = None
        try:
            try:
                async with asyncio.timeout(self._connect_timeout) as limit:
                    grant = await self._grant(http)
                    socket = await self._open(grant)
                    welcome = await self._greet(socket, limit)
            except TimeoutError:
                raise _Left(ABNORMAL, f"no connection within {self._connect_timeout} s") from None
            self._begin(socket, welcome)
            await self._receive(socket, welcome.heartbeat_s * MISSED_HEARTBEATS)
        except ConnectionClosed as closed:
            code, reason = (ABNORMAL, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)
            raise _Left(code, reason or "connection lost") from None
        finally:
            self._socket = None
            if self._end is None:
                self._up.clear()
            lost, self._asked = self._asked, {}
            for asked in lost.values():
                asked.settle(None)
            if socket is not None:
                await socket.close()

    async def _grant(self, http: httpx.AsyncClient) -> Grant:
        try:
            token = await self._fresh_token()
            response = await http.post(self._url, headers={"Authorization": f"Bearer {token}"})
        except (OSError, httpx.TransportError) as error:
            raise _Left(ABNORMAL, f"the gateway can't be reached: {str(error) or type(error).__name__}") from error
        if not response.is_success:
            raise self._refused(response.status_code, response.headers.get("retry-after"), response.content)
        try:
            grant = msgspec.json.decode(response.content, type=Grant)
        except (msgspec.DecodeError, UnicodeError) as error:
            # At first it is no gateway, as with a 404; later it would be a proxy whose gateway is being deployed.
            code = ABNORMAL if self.connections else CloseCode.bad_protocol
            raise _Left(code, f"the gateway's answer can't be understood: {error}") from error
        self._shard = grant.shard
        return grant

    async def _fresh_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        token = self._token()
        return token if isinstance(token, str) else await token

    async def _open(self, grant: Grant) -> ClientConnection:
        try:
            return await connect(
                grant.url,
                subprotocols=self._offers,
                proxy=None,
                compression=None,
                open_timeout=None,  # the whole attempt has one
                ping_interval=None,  # heartbeats are messages
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=MAX_FRAME_BYTES,
                ssl=self._ssl if grant.url.startswith("wss://") else None,
            )
        except InvalidStatus as error:
            answer = error.response
            body = bytes(answer.body or b"")
            if answer.status_code == 401 or _problem(body).code == "wrong_shard":
                # It is the ticket that expired, not the token, or the ring has changed since: another one will do.
                raise _Left(ABNORMAL, "the shard did not take the ticket") from None
            raise self._refused(answer.status_code, answer.headers.get("retry-after"), body) from None
        except (OSError, InvalidHandshake, InvalidURI) as error:
            reason = str(error) or type(error).__name__
            raise _Left(ABNORMAL, f"shard {grant.shard} can't be reached: {reason}") from error

    def _refused(self, status: int, header: str | None, body: bytes) -> _Left:
        """What an HTTP answer other than success means."""
        problem = _problem(body)
        reason = f"{status} {problem.detail or problem.title}".rstrip()
        code = _TERMINAL_STATUS.get(status)
        if code is CloseCode.replaced and self._may_be_our_own():
            code = CloseCode.try_later
        elif code is None and 300 <= status < 500 and status not in (408, 425, 429) and not self.connections:
            code = CloseCode.bad_protocol  # such as 404: not a gateway. Later it would be one that is being deployed
        return _Left(code or ABNORMAL, reason, after=retry_after(header, time.time()))

    def _may_be_our_own(self) -> bool:
        """Whether the user's other connection, which is in the way, may be our last one, not yet seen as dead."""
        if self._lost_at is None or self._welcome is None:
            return False
        age = asyncio.get_running_loop().time() - self._lost_at
        return age < 2 * MISSED_HEARTBEATS * self._welcome.heartbeat_s

    # ------------------------------------------------------------------------------------------ one connection

    async def _greet(self, socket: ClientConnection, limit: asyncio.Timeout) -> Welcome:
        resume = None if self._arrived_at is None else Resume(*self._arrived_at)
        id = next(self._ids)
        await _say(socket, msgspec.structs.replace(_hello(self._wanted, self._filter), id=id, resume=resume))
        while True:
            message = await self._next(socket)
            if isinstance(message, Welcome):
                if message.id != id:
                    # The hello came too late, and the server began without it: from here on, and not from our cursor.
                    raise _Left(ABNORMAL, "the server did not wait for the hello")
                return message
            if isinstance(message, Error) and message.id == id:
                if message.retry_after is not msgspec.UNSET:
                    raise _Left(CloseCode.try_later, message.message, after=message.retry_after)
                raise MessageRefused(message.code, message.message, message.hint)
            if isinstance(message, Notice) and message.code == REPLAYING:
                # It gets all that it missed: to leave now would be to ask for it again from the beginning.
                limit.reschedule(asyncio.get_running_loop().time() + self._connect_timeout)
            await self._handle(message, socket)

    def _begin(self, socket: ClientConnection, welcome: Welcome) -> None:
        gap = None
        if self._arrived_at is not None and not welcome.resumed:
            self.gaps += 1
            gap = welcome.reason or "unknown"
        self._welcome = welcome
        self._granted = welcome.subscriptions
        self._arrived_at = (welcome.epoch, welcome.cursor)
        self._put(_Stretch(deque(), self._arrived_at, gap))
        low, high = welcome.reconnect.min_ms, welcome.reconnect.max_ms
        if (low, high) != self._reconnect_ms and 0 < low <= high:
            self._reconnect_ms = (low, high)
            attempts = self._backoff.attempts
            self._backoff = backoff_of(low, high)
            self._backoff.attempts = attempts
        self.connections += 1
        self._spacing = 0.0
        self._live_since = asyncio.get_running_loop().time()
        self._socket = socket
        self._up.set()

    async def _receive(self, socket: ClientConnection, patience: float) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as deadline:
                while True:
                    if not self._room.is_set():
                        deadline.reschedule(None)  # it is we who don't listen
                        await self._room.wait()
                    if patience > 0:
                        deadline.reschedule(clock() + patience)
                    await self._handle(await self._next(socket), socket)
        except TimeoutError:
            socket.transport.abort()
            raise _Left(ABNORMAL, f"no heartbeat within {patience:g} s") from None

    async def _next(self, socket: ClientConnection) -> ServerMessage | None:
        """The next message. None for one of a type that is newer than this client."""
        raw = await socket.recv()
        try:
            return _codec_of(socket).decode_server(raw)
        except InvalidMessage as error:
            unknown = _unknown_type(raw, _codec_of(socket))
            if unknown is not None:
                log.debug("a message of the unknown type %r is ignored", unknown)
                return None
            self.undecodable += 1
            log.warning("a frame can't be decoded, so the connection is made anew: %s", error)
            await socket.close(1007, "it can't be decoded")
            raise _Left(1007, "a frame can't be decoded") from None

    async def _handle(self, message: ServerMessage | None, socket: ClientConnection) -> None:
        match message:
            case Events():
                if self._socket is not socket or self._welcome is None:
                    raise _Left(1002, "the server sent events before its welcome")
                # Not by its events: in a compacted frame they may be older than that, or in another order.
                self._arrived_at = (self._welcome.epoch, message.cursor)
                self.left_out.update(message.compacted)
                self._put(_Stretch(deque(message.events), self._arrived_at))
            case Ping():
                if message.cursor is not None and self._socket is socket and self._welcome is not None:
                    self._arrived_at = (self._welcome.epoch, message.cursor)
                    self._put(_Stretch(deque(), self._arrived_at))
                await _say(socket, Pong(message.id))
            case Subscriptions() | Reply() | Error():
                self._answer(message)
            case Notice():
                self._tell(self._on_notice, message)
                if message.code == "token_expiring" and callable(self._token):
                    task = asyncio.create_task(self._renew(), name="solowire token")
                    self._renewals.add(task)
                    task.add_done_callback(self._renewals.discard)
            case ReconnectNow():
                raise _Left(CloseCode.going_away, message.reason, after=message.after_ms / 1000, asked=True)
            case Welcome() | Pong() | None:
                pass

    async def _renew(self) -> None:
        try:
            await self.refresh(await self._fresh_token())
        except Exception as error:  # the server will close with 4401, and the next connection has a token of its own
            log.warning("the token was not refreshed: %s", error)

    # ------------------------------------------------------------------------------------------ asking

    async def _ask(
        self, message: Callable[[int], ClientMessage], kind: type[_A], change: Callable[[Wanted], Wanted] | None = None
    ) -> _A:
        """Says `message` and returns its answer; says it again if the connection ends first, or it came too fast."""
        if self._runner is None:
            raise RuntimeError("enter the client first: `async with client`")
        self._asking += 1
        self._room.set()
        try:
            async with self._asks:
                while True:
                    await self._up.wait()
                    await self._turn()
                    socket, id = self._socket, next(self._ids)
                    if socket is None:
                        if self._end is None:
                            continue  # it was lost while this waited for its turn
                        raise self._end
                    asked = self._asked[id] = _Asked(asyncio.get_running_loop().create_future(), change)
                    # A fault is not looked at here: whatever it is, the reading sees it too, and settles all answers.
                    with suppress(ConnectionClosed):
                        await _say(socket, message(id))
                    answer = await asked.answer
                    if isinstance(answer, Error):
                        if answer.code != "rate_limited" or answer.retry_after is msgspec.UNSET:
                            raise MessageRefused(answer.code, answer.message, answer.hint)
                        self._slow_down(answer.retry_after)
                    elif isinstance(answer, kind):
                        return answer
                    elif answer is not None:
                        raise MessageRefused("unexpected_answer", f"the server answered with {type(answer).__name__}")
        finally:
            self._asking -= 1
            self._look_for_room()

    async def _turn(self) -> None:
        """Waits until the next message may be said."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._speak_at)
        self._speak_at = at + self._spacing
        if at > now:
            await asyncio.sleep(at - now)

    def _slow_down(self, after: float) -> None:
        """The server wants to hear nothing for `after` seconds. Twice that between messages: pongs count, too."""
        self._spacing = max(self._spacing, 2 * after)
        self._speak_at = max(self._speak_at, asyncio.get_running_loop().time() + after)

    @property
    def _kept(self) -> Wanted:
        """The subscriptions to come back with; before the first change, what the server granted as defaults."""
        return dict.fromkeys(self._granted, self._filter) if self._wanted is None else self._wanted

    def _answer(self, message: Subscriptions | Reply | Error) -> None:
        asked = self._asked.pop(message.id, None) if isinstance(message.id, int) else None
        if isinstance(message, Subscriptions):
            if asked is not None and asked.change is not None:
                # Here and not where the answer is awaited: it is in force even if nobody waits any more.
                try:
                    self._wanted = asked.change(self._kept)
                except InvalidMessage:  # the server's catalogue is another than ours: then as it says
                    self._wanted = dict.fromkeys(message.subscriptions, self._filter)
            self._granted = message.subscriptions
        if asked is not None:
            asked.settle(message)
        elif isinstance(message, Error):
            log.warning("the server refused a message: %s %s %s", message.code, message.message, message.hint)

    # ------------------------------------------------------------------------------------------ the buffer

    def _put(self, stretch: _Stretch) -> None:
        self._buffer.append(stretch)
        self._buffered += len(stretch.events)
        if self._buffered >= self._max_buffered and not self._asking:
            self._room.clear()
        self._settle()
        self._news.set()

    def _take(self) -> ReceivedEvent:
        stretch = self._buffer[0]
        event = stretch.events.popleft()
        self._buffered -= 1
        if not stretch.events:
            self._handed_out = stretch.position
            self._buffer.popleft()
            self._settle(tell=False)  # a gap is told when this event has been dealt with: when the next is asked for
        self._look_for_room()
        return event

    def _settle(self, *, tell: bool = True) -> None:
        """Passes over what holds no events, so that gaps are told in their place and `cursor` is not behind."""
        while self._buffer and not self._buffer[0].events and (tell or self._buffer[0].gap is None):
            stretch = self._buffer.popleft()
            self._handed_out = stretch.position
            if stretch.gap is not None:
                self._tell(self._on_gap, stretch.gap)

    def _look_for_room(self) -> None:
        if self._asking or self._buffered <= self._max_buffered // 2:
            self._room.set()
        elif self._buffered >= self._max_buffered:
            self._room.clear()

    def _tell(self, callback: Callable[[Any], object] | None, what: object) -> None:
        if callback is not None:
            try:
                callback(what)
            except Exception:  # the user's code: its fault must not end the connection
                log.exception("a callback failed")

    def _finish(self, end: BaseException) -> None:
        if self._end is None:
            self._end = end
        self._up.set()
        self._news.set()


# ---------------------------------------------------------------------------------------------------- its parts

_TERMINAL_STATUS = {401: CloseCode.unauthenticated, 403: CloseCode.forbidden, 409: CloseCode.replaced}


class _Left(Exception):
    """A connection, or the attempt at one, is over. after: seconds to stay away. asked: the server asked for it."""

    def __init__(self, code: int, reason: str, *, after: float = 0.0, asked: bool = False) -> None:
        super().__init__(code, reason)
        self.code = int(code)
        self.reason = reason
        self.after = after
        self.asked = asked


class _Asked:
    """A message whose answer is awaited. change: what the answer does to the subscriptions that are kept."""

    def __init__(self, answer: asyncio.Future[ServerMessage | None], change: Callable[[Wanted], Wanted] | None) -> None:
        self.answer = answer
        self.change = change

    def settle(self, message: ServerMessage | None) -> None:
        """None: the connection ended first."""
        if not self.answer.done():
            self.answer.set_result(message)


class _Stretch:
    """What is buffered of one frame, where its end stands, and the reason if events are missing before it."""

    __slots__ = ("events", "gap", "position")

    def __init__(self, events: deque[ReceivedEvent], position: tuple[str, int], gap: str | None = None) -> None:
        self.events = events
        self.position = position
        self.gap = gap


class _Problem(msgspec.Struct):
    """The parts of an answer's problem body (RFC 9457) that go into a reason."""

    title: str = ""
    detail: str = ""
    code: str = ""


class _Typed(msgspec.Struct):
    type: str


_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ServerMessage))


async def _say(socket: ClientConnection, message: ClientMessage) -> None:
    if _codec_of(socket).is_json:
        await socket.send(msgspec.json.encode(message).decode())
    else:
        await socket.send(msgspec.msgpack.encode(message))


def _codec_of(socket: ClientConnection) -> Codec:
    """What was agreed on; a server that chose nothing speaks JSON."""
    return Codec(socket.subprotocol) if socket.subprotocol in SUBPROTOCOLS else Codec.json


def _unknown_type(raw: str | bytes, codec: Codec) -> str | None:
    """The type of a well-formed message that this version does not know; None if it isn't one."""
    try:
        raw = codec.opened(raw)
        if codec.is_json:
            name = msgspec.json.decode(raw, type=_Typed).type
        else:
            name = msgspec.msgpack.decode(raw if isinstance(raw, bytes) else raw.encode(), type=_Typed).type
    except (InvalidMessage, msgspec.DecodeError, RecursionError, UnicodeError, ValueError):
        return None
    return None if name in _KNOWN else name


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeError):
        return _Problem()


def backoff_of(low_ms: float, high_ms: float, chance: Callable[[], float] = random.random) -> Backoff:
    """How a client comes back that was told to wait between these two."""
    low, high = low_ms / 1000, high_ms / 1000
    return Backoff(min(2 * low, high), high, floor=low, random=chance)


def _canonical(filter: Mapping[str, Sequence[str]] | None) -> Filter:
    return tuple(sorted((name, frozenset(values)) for name, values in (filter or {}).items()))


def _plain(filter: Filter) -> dict[str, list[str]] | None:
    return {name: sorted(values) for name, values in filter} or None


def _hello(wanted: Wanted | None, default: Filter) -> Hello:
    """A `hello` that asks for exactly `wanted`. Raises MessageRefused if that is more than one message holds.

    The filter that would take most room, were it repeated for each of its patterns, is the one for all of them.
    """
    if wanted is None:
        hello = Hello(filter=_plain(default))
    else:
        uses = Counter(wanted.values())
        common = max(uses, key=lambda filter: uses[filter] * len(repr(filter)), default=())
        own = {pattern: _plain(filter) or {} for pattern, filter in wanted.items() if filter != common}
        hello = Hello(subscriptions=list(wanted), filter=_plain(common), filters=own or None)
    if len(msgspec.json.encode(hello)) > _SUBSCRIPTIONS_BYTES:
        raise MessageRefused(
            "too_big",
            f"subscriptions and filters take more than the {_SUBSCRIPTIONS_BYTES} bytes that one message may hold",
            "use fewer or shorter filters, or one for many types",
        )
    return hello
