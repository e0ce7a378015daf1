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
  again when the server said to, and those behind it wait their turn. After MAX_REFUSALS in a minute, whatever for, all
  wait, as a server ends a connection at ten: what the SDK says never ends it. Everything that is subscribed to fits one
  `hello`.
* It is not silent: an attempt that fails is logged as a warning and told to `on_state`, at once where it is for a new
  reason, and once a minute while it lasts; so is a subscription that is not granted.

Coming back takes full jitter between the server's `reconnect.min_ms` and a ceiling that doubles up to `max_ms`, and
begins anew only after a connection that was steady. A `reconnect` message is obeyed without growth, but for one that
follows on another before there was a steady connection. What a failed attempt means stands in
`solowire.sdk.retry_policy`, and how a token is renewed in `solowire.sdk.token_renewal`.

Longer than 500 lines: the connection, what is asked on it and what is buffered of it share one state and one loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import count
from math import isfinite
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S, Backoff
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConnectionEnded, InvalidMessage, MessageRefused, SubscriptionDenied
from solowire.model.subscriptions import (
    DeniedPattern,
    Filter,
    Wanted,
    expand_pattern,
    find_idle,
    subscribe,
    unsubscribe,
)
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.deflate import SUFFIX
from solowire.protocol.messages import (
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
from solowire.sdk.network_errors import read_network_error
from solowire.sdk.retry_policy import (
    Fault,
    FaultKind,
    RetryDecision,
    WarningPace,
    close_code_of,
    decide_retry,
    read_answer,
    read_close,
    read_undecodable,
    wait_at_least,
)
from solowire.sdk.token_renewal import TokenRenewal
from solowire.sdk.token_source import TokenSource, TokenUnavailable

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

MAX_REFUSALS = 8
"""So many refused within REFUSALS_S, and what is said next waits: at ten a server ends the connection."""

REFUSALS_S = 60.0

_A = TypeVar("_A", Subscriptions, Reply)

logger = logging.getLogger("solowire.client")


class ConnectResponse(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/connect`. url: carries the ticket, so it is not for logs."""

    url: str
    shard: int | None = None


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
        self._filter = _canonical(check_filter("filter", filter))
        self._strict = strict
        self._wanted: Wanted | None = None
        if subscriptions is not None:
            self._wanted = dict.fromkeys(check_names("subscriptions", subscriptions), self._filter)
        resume = check_position("resume", resume)
        self._reconnect = reconnect
        self._connect_timeout = connect_timeout
        self._max_buffered = max_buffered
        self._steady_after = steady_after
        self._on_gap = on_gap
        self._on_notice = on_notice
        self._on_state = on_state
        self._ssl = ssl

        self.gaps = 0
        self.undecodable = 0
        self.left_out: Counter[str] = Counter()  # by event type: what the server has counted and not sent
        self.connections = 0  # so many welcomes
        self.last_reason: str | None = None  # why the last connection, or attempt at one, ended; None before the first
        self._reconnect_ms = (reconnect_min * 1000, reconnect_max * 1000)
        self._backoff = make_backoff(*self._reconnect_ms)
        self._welcome: Welcome | None = None
        self._granted_types: list[str] = []
        self._shard: int | None = None
        self._arrived_at = resume  # (epoch, cursor) of what has been received
        self._handed_out = resume  # … of what the iteration has given away
        self._live_since: float | None = None
        self._lost_at: float | None = None
        self._failing_since: float | None = None  # the last success; None: nothing has failed since
        self._asked_away = 0  # `reconnect` messages in a row, without a steady connection between them
        self._warnings = WarningPace()
        self._warned_denied: set[tuple[str, str]] = set()
        self._warned_idle: set[str] = set()  # attributes, of which there are few

        self._buffer: deque[_BufferedFrame] = deque()
        self._buffered = 0
        self._news = asyncio.Event()  # for the iteration: look at the buffer, or at the end
        self._room = asyncio.Event()  # for the reading: there is room, or someone asks
        self._room.set()
        self._asking_count = 0
        self._up = asyncio.Event()  # there is a welcomed connection, or there will never be one again
        self._socket: ClientConnection | None = None
        self._ids = count(1)
        self._pending_requests: dict[int, _PendingRequest] = {}
        self._request_slots = asyncio.Semaphore(MAX_UNANSWERED)
        self._speak_at = 0.0  # not before, on the loop's clock
        self._spacing = 0.0  # seconds between two messages, once the server has found us too fast
        self._refused_at: deque[float] = deque(maxlen=MAX_REFUSALS)  # on the loop's clock, of this connection
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
        return list(self._granted_types)

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
        if self._runner is not None or self._is_closed:
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
        while not self._is_closed:
            self._advance()
            if self._buffer:
                return self._dequeue()
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
        names = check_names("event_types", event_types)
        raw = check_filter("filter", filter)
        conditions = _canonical(raw)

        def change(wanted: Wanted) -> Wanted:
            return subscribe(wanted, names, conditions)

        with suppress(InvalidMessage):  # the server has the say in what is wrong with it
            _build_hello(change(self._kept_subscriptions), self._filter)
        granted = await self._send_request(lambda id: Subscribe(names, id, raw), Subscriptions, change)
        self._report_denied([denied for denied in granted.denied if denied.type in names], raises=self._strict)
        self._look_at_idle(conditions, names)
        return granted

    async def unsubscribe(self, event_types: Sequence[str]) -> Subscriptions:
        """Takes event types away. Waits for a connection if there is none; raises MessageRefused.

        One that is misspelt takes nothing away: a warning, or SubscriptionDenied with `strict`.
        """
        names = check_names("event_types", event_types)
        left = await self._send_request(
            lambda id: Unsubscribe(names, id),
            Subscriptions,
            lambda wanted: unsubscribe(self._spell_out_categories(wanted, names), names, CATALOG),
        )
        if unknown := [one for one in left.denied if one.type in names and one.reason == "unknown_type"]:
            texts = "not unsubscribed: " + "; ".join(map(describe_denial, unknown))
            if self._strict:
                raise SubscriptionDenied(texts, "", {one.type: one.reason for one in unknown})
            logger.warning("%s; what was meant goes on", texts)
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
        self._failing_since = clock()
        try:
            while True:
                self._live_since = None
                try:
                    await self._run_connection(http)
                except _ConnectionLost as left:
                    self.last_reason = left.fault.text
                    now = clock()
                    lived = 0.0 if self._live_since is None else now - self._live_since
                    if self._live_since is not None:
                        self._lost_at = self._failing_since = now
                    wait = self._delay_after(left, lived)
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

    def _delay_after(self, left: _ConnectionLost, lived: float) -> float:
        """Seconds until the next attempt. Raises what is to be raised if there is none."""
        fault = left.fault
        if not self._reconnect:
            raise self._make_error(left)
        steady = lived > 0 and lived >= self._steady_after
        if steady:
            self._backoff.reset()
            self._asked_away = 0
        if left.is_requested:
            self._asked_away += 1
            spread = random.uniform(0, max(self._reconnect_ms[0] / 1000, fault.after / 10))  # noqa: S311
            if self._asked_away == 1:
                return fault.after + spread
            return max(fault.after + spread, self._backoff.next_delay(at_least=fault.after))
        trying = 0.0 if self._failing_since is None else asyncio.get_running_loop().time() - self._failing_since
        action = decide_retry(
            fault, succeeded=self.connections > 0, renewable=self._token.is_renewable, trying_s=trying
        )
        if action is RetryDecision.stop and not (fault.kind is FaultKind.taken and self._may_be_our_own()):
            raise self._make_error(left)
        at_least = fault.after if steady else wait_at_least(fault)  # a token that lived is followed by a good one
        return self._backoff.next_delay(at_least=at_least)

    def _make_error(self, left: _ConnectionLost) -> Exception:
        """What is to be raised when there is no way on."""
        fault = left.fault
        if left.error is not None:
            return left.error
        if left.code is not None:
            return ConnectionEnded(left.code, fault.reason, hint=fault.hint, url=self._base)
        code = close_code_of(fault) if fault.kind in _HAS_CODE else ABNORMAL
        return ConnectionEnded(code, fault.reason, hint=fault.hint, url=left.url or self._url, connected=False)

    def _report_failure(self, left: _ConnectionLost, wait: float, now: float) -> None:
        url, text = left.url or self._url, left.fault.text
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
                    grant = await self._request_ticket(http, token)
                    socket = await self._open_socket(grant)
                    welcome = await self._send_hello(socket, limit)
            except TokenUnavailable as unavailable:
                fault = unavailable.fault
                raise _ConnectionLost(
                    fault, error=unavailable.error if fault.kind is FaultKind.token_fault else None
                ) from None
            except TimeoutError:
                raise _make_failed(f"gave no connection within {self._connect_timeout:g} s") from None
            self._renewal.start(token)
            self._start_connection(socket, welcome)
            await self._receive(socket, welcome.heartbeat_s * MISSED_HEARTBEATS)
        except ConnectionClosed as gone:
            code, reason = (ABNORMAL, "") if gone.rcvd is None else (gone.rcvd.code, gone.rcvd.reason)
            raise _make_lost(code, reason or "connection lost") from None
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

    async def _request_ticket(self, http: httpx.AsyncClient, token: str) -> ConnectResponse:
        try:
            response = await http.post(self._url, headers={"Authorization": f"Bearer {token}"})
        except (OSError, httpx.RequestError) as error:
            raise _ConnectionLost(read_network_error(error)) from error
        if not response.is_success:
            raise _ConnectionLost(read_answer(response.status_code, response.headers, response.content, time.time()))
        try:
            grant = msgspec.json.decode(response.content, type=ConnectResponse)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise _ConnectionLost(read_undecodable(error)) from error
        self._shard = grant.shard
        return grant

    async def _open_socket(self, grant: ConnectResponse) -> ClientConnection:
        url = grant.url.partition("?")[0]  # without the ticket
        try:
            return await _Connect(
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
            headers = {name.lower(): value for name, value in answer.headers.raw_items()}
            fault = read_answer(answer.status_code, headers, bytes(answer.body or b""), time.time(), of_shard=True)
            raise _ConnectionLost(fault, url=url) from None
        except (InvalidURI, ValueError) as error:  # ValueError: what `urllib` or IDNA make of a host
            raise _ConnectionLost(read_undecodable(error)) from error
        except (OSError, InvalidHandshake) as error:
            raise _ConnectionLost(read_network_error(error), url=url) from error

    def _may_be_our_own(self) -> bool:
        """Whether the user's other connection, which is in the way, may be our last one, not yet seen as dead."""
        if self._lost_at is None or self._welcome is None:
            return False
        age = asyncio.get_running_loop().time() - self._lost_at
        return age < 2 * MISSED_HEARTBEATS * self._welcome.heartbeat_s

    # ------------------------------------------------------------------------------------------ one connection

    async def _send_hello(self, socket: ClientConnection, limit: asyncio.Timeout) -> Welcome:
        resume = None if self._arrived_at is None else Resume(*self._arrived_at)
        id = next(self._ids)
        await _send_message(
            socket, msgspec.structs.replace(_build_hello(self._wanted, self._filter), id=id, resume=resume)
        )
        while True:
            message = await self._receive_message(socket)
            if isinstance(message, Welcome):
                if message.id != id:
                    # The hello came too late, and the server began without it: from here on, and not from our cursor.
                    raise _make_failed("did not wait for the hello")
                return message
            if isinstance(message, Error) and message.id == id:
                if message.retry_after is not msgspec.UNSET:
                    raise _make_failed(f"refused the hello: {message.message}", after=message.retry_after)
                raise MessageRefused(message.code, message.message, message.hint)
            if isinstance(message, Notice) and message.code == REPLAYING:
                # It gets all that it missed: to leave now would be to ask for it again from the beginning.
                limit.reschedule(asyncio.get_running_loop().time() + self._connect_timeout)
            await self._handle(message, socket)

    def _start_connection(self, socket: ClientConnection, welcome: Welcome) -> None:
        self._report_denied(welcome.denied, raises=self._strict and not self.connections)
        gap = None
        if self._arrived_at is not None and not welcome.resumed:
            self.gaps += 1
            gap = welcome.reason or "unknown"
        self._welcome = welcome
        self._granted_types = welcome.subscriptions
        self._look_at_idle(self._filter, self._granted_types)
        self._arrived_at = (welcome.epoch, welcome.cursor)
        self._enqueue(_BufferedFrame(deque(), self._arrived_at, gap))
        low, high = welcome.reconnect.min_ms, welcome.reconnect.max_ms
        if (low, high) != self._reconnect_ms and 0 < low <= high <= MAX_RETRY_AFTER_S * 1000:
            self._reconnect_ms = (low, high)
            attempts = self._backoff.attempts
            self._backoff = make_backoff(low, high)
            self._backoff.attempts = attempts
        self.connections += 1
        self._spacing = 0.0
        self._refused_at.clear()
        self._live_since = asyncio.get_running_loop().time()
        self._failing_since = None
        self._warnings.reset()
        self._socket = socket
        self._up.set()
        logger.info("connected to %s as %s", self._base, welcome.user)
        self._invoke_callback(self._on_state, ConnectionState("connected"))

    def _report_denied(self, denied: Sequence[DeniedPattern], *, raises: bool) -> None:
        """Warns of each once. Raises SubscriptionDenied instead, if it is to."""
        texts = {one.type: describe_denial(one) for one in denied}
        if texts and raises:
            reasons = {one.type: one.reason for one in denied}
            raise SubscriptionDenied("not granted: " + "; ".join(texts.values()), "", reasons)
        for one in denied:
            if (one.type, one.reason) not in self._warned_denied and len(self._warned_denied) < MAX_WARNED:
                self._warned_denied.add((one.type, one.reason))
                logger.warning("not granted: %s; nothing of it will come", texts[one.type])

    def _look_at_idle(self, filter: Filter, names: Iterable[str]) -> None:
        """Warns once of what is filtered by and no type has: all events of these types come."""
        for name in find_idle(filter, names, CATALOG):
            if name not in self._warned_idle:
                self._warned_idle.add(name)
                logger.warning("the filter by %r narrows nothing: no event type that it goes with has that", name)

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
                    await self._handle(await self._receive_message(socket), socket)
        except TimeoutError:
            socket.transport.abort()
            raise _make_lost(ABNORMAL, f"no heartbeat within {patience:g} s") from None

    async def _receive_message(self, socket: ClientConnection) -> ServerMessage | None:
        """The next message. None for one of a type that is newer than this client."""
        raw = await socket.recv()
        try:
            return _codec_of(socket).decode_server(raw)
        except InvalidMessage as error:
            unknown = _unknown_type(raw, _codec_of(socket))
            if unknown is not None:
                logger.debug("a message of the unknown type %r is ignored", unknown)
                return None
            self.undecodable += 1
            logger.warning("a frame can't be decoded, so the connection is made anew: %s", error)
            await socket.close(1007, "it can't be decoded")
            raise _make_lost(1007, "a frame can't be decoded") from None

    async def _handle(self, message: ServerMessage | None, socket: ClientConnection) -> None:
        match message:
            case Events():
                if self._socket is not socket or self._welcome is None:
                    raise _make_lost(1002, "the server sent events before its welcome")
                # Not by its events: in a compacted frame they may be older than that, or in another order.
                self._arrived_at = (self._welcome.epoch, message.cursor)
                self.left_out.update(message.compacted)
                self._enqueue(_BufferedFrame(deque(message.events), self._arrived_at))
            case Ping():
                if message.cursor is not None and self._socket is socket and self._welcome is not None:
                    self._arrived_at = (self._welcome.epoch, message.cursor)
                    self._enqueue(_BufferedFrame(deque(), self._arrived_at))
                await _send_message(socket, Pong(message.id))
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
                raise _make_lost(CloseCode.going_away, message.reason, after=message.after_ms / 1000, asked=True)
            case Welcome() | Pong() | None:
                pass

    # ------------------------------------------------------------------------------------------ asking

    async def _send_request(
        self, message: Callable[[int], ClientMessage], kind: type[_A], change: Callable[[Wanted], Wanted] | None = None
    ) -> _A:
        """Says `message` and returns its answer; says it again if the connection ends first, or it came too fast."""
        if self._runner is None:
            raise RuntimeError("enter the client first: `async with client`")
        self._asking_count += 1
        self._room.set()
        slower = Backoff(2 * MIN_PAUSE_S, MAX_PAUSE_S, floor=MIN_PAUSE_S)
        try:
            async with self._request_slots:
                while True:
                    await self._up.wait()
                    await self._await_turn()
                    socket, id = self._socket, next(self._ids)
                    if socket is None:
                        if self._end is None:
                            continue  # it was lost while this waited for its turn
                        raise self._end
                    asked = self._pending_requests[id] = _PendingRequest(
                        asyncio.get_running_loop().create_future(), change
                    )
                    # A fault is not looked at here: whatever it is, the reading sees it too, and settles all answers.
                    with suppress(ConnectionClosed):
                        await _send_message(socket, message(id))
                    answer = await asked.answer
                    if isinstance(answer, Error):
                        self._refused_at.append(asyncio.get_running_loop().time())
                        if answer.code != "rate_limited" or answer.retry_after is msgspec.UNSET:
                            raise MessageRefused(answer.code, answer.message, answer.hint)
                        self._slow_down(_bounded(answer.retry_after), slower)
                    elif isinstance(answer, kind):
                        return answer
                    elif answer is not None:
                        raise MessageRefused("unexpected_answer", f"the server answered with {type(answer).__name__}")
        finally:
            self._asking_count -= 1
            self._update_room()

    async def _await_turn(self) -> None:
        """Waits until the next message may be said."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._speak_at)
        if len(self._refused_at) == MAX_REFUSALS:
            at = max(at, self._refused_at[0] + REFUSALS_S)
            if at - now > 1 and self._warnings.is_due("refusals", now):
                logger.warning(
                    "%d messages were refused within a minute: what is asked waits %.0f s", MAX_REFUSALS, at - now
                )
        self._speak_at = at + self._spacing
        if at > now:
            await asyncio.sleep(at - now)

    def _slow_down(self, after: float, slower: Backoff) -> None:
        """The server wants to hear nothing for `after` seconds. Twice that between messages: pongs count, too.

        slower: the waits of the message that it refused, which grow even if `after` does not.
        """
        self._spacing = max(self._spacing, min(2 * after, MAX_PAUSE_S))
        wait = slower.next_delay(at_least=after)
        self._speak_at = max(self._speak_at, asyncio.get_running_loop().time() + wait)

    @property
    def _kept_subscriptions(self) -> Wanted:
        """The subscriptions to come back with; before the first change, what the server granted as defaults."""
        return dict.fromkeys(self._granted_types, self._filter) if self._wanted is None else self._wanted

    def _spell_out_categories(self, wanted: Wanted, leaving: Sequence[str]) -> Wanted:
        """`wanted` with the types of categories that only the server knows in place of `category.*`.

        Raises InvalidMessage if there are several: which type is of which is not known here.
        """
        unknown = [p for p in wanted if p.endswith(".*") and p not in leaving and not expand_pattern(p, CATALOG)]
        if not unknown:
            return wanted
        if len(unknown) > 1:
            raise InvalidMessage("invalid_message", f"{' and '.join(unknown)} can't be told apart here")
        spelt: Wanted = {}
        for pattern, filter in wanted.items():
            names = [n for n in self._granted_types if CATALOG.get(n) is None] if pattern in unknown else [pattern]
            for name in names:
                spelt.setdefault(name, filter)
        return spelt

    def _handle_reply(self, message: Subscriptions | Reply | Error) -> None:
        asked = self._pending_requests.pop(message.id, None) if isinstance(message.id, int) else None
        if isinstance(message, Subscriptions):
            if asked is not None and asked.change is not None:
                # Here and not where the answer is awaited: it is in force even if nobody waits any more.
                try:
                    self._wanted = asked.change(self._kept_subscriptions)
                except InvalidMessage:  # the server's catalogue is another than ours: then as it says
                    self._wanted = dict.fromkeys(message.subscriptions, self._filter)
            self._granted_types = message.subscriptions
        if asked is not None:
            asked.resolve(message)
        elif isinstance(message, Error):
            logger.warning("the server refused a message: %s %s %s", message.code, message.message, message.hint)

    # ------------------------------------------------------------------------------------------ the buffer

    def _enqueue(self, stretch: _BufferedFrame) -> None:
        self._buffer.append(stretch)
        self._buffered += len(stretch.events)
        if self._buffered >= self._max_buffered and not self._asking_count:
            self._room.clear()
        self._advance()
        self._news.set()

    def _dequeue(self) -> ReceivedEvent:
        stretch = self._buffer[0]
        event = stretch.events.popleft()
        self._buffered -= 1
        if not stretch.events:
            self._handed_out = stretch.position
            self._buffer.popleft()
            self._advance(tell=False)  # a gap is told when this event has been dealt with: when the next is asked for
        self._update_room()
        return event

    def _advance(self, *, tell: bool = True) -> None:
        """Passes over what holds no events, so that gaps are told in their place and `cursor` is not behind."""
        while self._buffer and not self._buffer[0].events and (tell or self._buffer[0].gap is None):
            stretch = self._buffer.popleft()
            self._handed_out = stretch.position
            if stretch.gap is not None:
                self._invoke_callback(self._on_gap, stretch.gap)

    def _update_room(self) -> None:
        if self._asking_count or self._buffered <= self._max_buffered // 2:
            self._room.set()
        elif self._buffered >= self._max_buffered:
            self._room.clear()

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
        self._news.set()


# ---------------------------------------------------------------------------------------------------- its parts

MAX_WARNED = 1000
"""Subscriptions that are not granted and were warned of: whoever asks for ever new ones is not."""

MIN_PAUSE_S, MAX_PAUSE_S = 0.01, 10.0
"""How long what was `rate_limited` waits at least, growing; and what that grows to."""

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


class _Connect(connect):
    """Follows no redirects, as `/v1/connect` follows none: ten requests for each attempt, to wherever it is told."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _ConnectionLost(Exception):
    """A connection, or the attempt at one, is over.

    code: with which the server closed, None for an attempt that failed. url: what failed, "" for the gateway. asked:
    the server asked for it. error: what to raise if there is no way on.
    """

    def __init__(
        self,
        fault: Fault,
        *,
        code: int | None = None,
        url: str = "",
        asked: bool = False,
        error: Exception | None = None,
    ) -> None:
        super().__init__(fault)
        self.fault = fault
        self.code = code
        self.url = url
        self.is_requested = asked
        self.error = error

    @property
    def has_failed(self) -> bool:
        return self.code is None


def _make_lost(code: int, reason: str, *, after: float = 0.0, asked: bool = False) -> _ConnectionLost:
    """A connection has ended. after: seconds to stay away."""
    fault = msgspec.structs.replace(read_close(code, reason), after=_bounded(after))
    return _ConnectionLost(fault, code=int(code), asked=asked)


def _make_failed(reason: str, *, after: float = 0.0) -> _ConnectionLost:
    """An attempt has failed on the way, in a way that may pass."""
    return _ConnectionLost(Fault(FaultKind.unreachable, reason, after=_bounded(after)))


def _bounded(seconds: float) -> float:
    """What a server asks for, within reason."""
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if isfinite(seconds) else 0.0


def describe_denial(denied: DeniedPattern) -> str:
    """Why a subscription is not granted, and what was meant, in words."""
    if denied.reason != "unknown_type":
        return f"{denied.type} ({denied.reason}" + (f": {denied.hint})" if denied.hint else ")")
    known = [*CATALOG.names, *(f"{category}.*" for category in CATALOG.categories), "custom.*", "*"]
    close = get_close_matches(denied.type, known, 1)
    hint = f"did you mean {close[0]}?" if close else denied.hint
    return f"{denied.type!r} is no event type" + (f" ({hint})" if hint else "")


class _PendingRequest:
    """A message whose answer is awaited. change: what the answer does to the subscriptions that are kept."""

    def __init__(self, answer: asyncio.Future[ServerMessage | None], change: Callable[[Wanted], Wanted] | None) -> None:
        self.answer = answer
        self.change = change

    def resolve(self, message: ServerMessage | None) -> None:
        """None: the connection ended first."""
        if not self.answer.done():
            self.answer.set_result(message)


class _BufferedFrame:
    """What is buffered of one frame, where its end stands, and the reason if events are missing before it."""

    __slots__ = ("events", "gap", "position")

    def __init__(self, events: deque[ReceivedEvent], position: tuple[str, int], gap: str | None = None) -> None:
        self.events = events
        self.position = position
        self.gap = gap


class _TypedMessage(msgspec.Struct):
    type: str


_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ServerMessage))


async def _send_message(socket: ClientConnection, message: ClientMessage) -> None:
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
        raw = codec.inflate(raw)
        if codec.is_json:
            name = msgspec.json.decode(raw, type=_TypedMessage).type
        else:
            name = msgspec.msgpack.decode(raw if isinstance(raw, bytes) else raw.encode(), type=_TypedMessage).type
    except (InvalidMessage, msgspec.DecodeError, RecursionError, UnicodeError, ValueError):
        return None
    return None if name in _KNOWN else name


def make_backoff(low_ms: float, high_ms: float, chance: Callable[[], float] = random.random) -> Backoff:
    """How a client comes back that was told to wait between these two."""
    low, high = low_ms / 1000, high_ms / 1000
    return Backoff(min(2 * low, high), high, floor=low, random=chance)


def _canonical(filter: Mapping[str, Sequence[str]] | None) -> Filter:
    return tuple(sorted((name, frozenset(values)) for name, values in (filter or {}).items()))


def _plain(filter: Filter) -> dict[str, list[str]] | None:
    return {name: sorted(values) for name, values in filter} or None


def _build_hello(wanted: Wanted | None, default: Filter) -> Hello:
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
