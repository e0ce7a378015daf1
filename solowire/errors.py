"""Every error that Solowire raises, and whose fault it is.

    SolowireError
     ├── ConfigError         the operator's: a setting, a port, a data directory. One line, exit status 2
     ├── RequestError        the peer's: answered to it with a stable `code`, never a traceback
     │    ├── InvalidEvents    a publish request of which nothing was accepted: all its faults, each an
     │    │    InvalidEvent     item with its index and the path of the fault
     │    ├── InvalidHistoryQuery  a question about history with wrong parameters, each named
     │    ├── InvalidMessage   a message on a connection that can't be understood or obeyed
     │    ├── InvalidToken     a token or ticket that proves nothing
     │    │    └── UnknownKey    … because its key is not known here: not yet, or not any more
     │    └── RequestRejected  HTTP: the request is understood and not granted (limits, no shard, no right)
     ├── ClientError         raised to users of the Python SDK
     │    ├── ConnectionEnded  there is no connection, and trying again is of no use
     │    ├── MessageRefused   the server answered a message on the connection with an error
     │    │    SubscriptionDenied   with `strict`: what was subscribed to is not granted, or is no event type
     │    ├── HistoryRefused   the gateway doesn't answer a question about history, or can't go on with it
     │    ├── PublishRefused   the gateway refused events that were published, or can't be reached
     │    └── BufferFull       the publisher holds as many unsent events as it may
     ├── DnstapError         what a name server sent by dnstap and can't be understood: counted and left out
     ├── TransferError       a name server's answer that can't be used: said with the way out, and asked for again
     ├── StatisticsError     a name server's statistics channel that gives no figures: said, and asked again
     └── BackplaneError      a message between our own processes that can't be decoded: counted and dropped

Exceptions carry data and build their own text, so that whoever catches one decides on the data. Foreign exceptions
(zmq, jwt, pydantic, httpx) become one of these where they arise and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping


class SolowireError(Exception):
    """The root of all errors raised by Solowire."""


class ConfigError(SolowireError):
    """The system can't start as it is configured. `str()` is one line that names the fault and the way out."""


class RequestError(SolowireError):
    """A peer's request that is not granted.

    code: stable, snake_case, part of the outside contract. message: what is wrong. hint: the way out, or "".
    who: it was, for the audit log alone, where whoever catches it can't know: None, or `user`, `role` and `address`.
    is_unread: it is answered before all of the HTTP request was read, so that nothing can follow on its connection.
    """

    who: Mapping[str, str] | None = None
    is_unread: bool = False

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidEvent(RequestError):
    """One published event that can't be accepted. index: its place in the request. path: such as `$.data.zone`."""

    def __init__(self, index: int, path: str, message: str, code: str = "invalid_event", hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.index = index
        self.path = path


class InvalidEvents(RequestError):
    """A publish request with faults, of which nothing was accepted."""

    def __init__(self, faults: list[InvalidEvent]) -> None:
        first = faults[0]
        many = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        super().__init__("invalid_events", f"event {first.index}: {first.path}: {first.message}{many}", first.hint)
        self.faults = faults


class InvalidHistoryQuery(RequestError):
    """A question about history with wrong parameters. faults: parameter → what is wrong with it, in words."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        text = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        super().__init__("invalid_query", text, "docs/protocol.md says what a question about history may have")
        self.faults = dict(faults)


class InvalidMessage(RequestError):
    """A client's message that can't be understood or obeyed. id: the message's own, to be repeated in the answer.

    retry_after: seconds, None if waiting is of no use.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        id: str | int | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, hint)
        self.id = id
        self.retry_after = retry_after


class InvalidToken(RequestError):
    """A token or ticket that proves nothing: unsigned, wrongly signed, expired, used, or made for something else."""

    def __init__(self, message: str, code: str = "invalid_token", hint: str = "") -> None:
        super().__init__(code, message, hint)


class UnknownKey(InvalidToken):
    """A token signed with a public key that is not known here; it may be new, so whoever can reads the keys again."""


class TokenRevoked(InvalidToken):
    """A token that was good, and has been revoked."""

    def __init__(self) -> None:
        super().__init__("the token has been revoked", "token_revoked", "sign in again for another one")


class RequestRejected(RequestError):
    """A request that is understood and not granted. status: HTTP. retry_after: seconds, None if it is of no use.

    scope: whose limit was reached, where one code is used for several: `system`, `address` or `user`. headers: more of
    them for the answer, in lower case. members: more of them for its problem body.
    """

    headers: tuple[tuple[str, str], ...] = ()
    members: Mapping[str, object] = {}

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        hint: str = "",
        retry_after: float | None = None,
        *,
        scope: str = "",
    ) -> None:
        super().__init__(code, message, hint)
        self.scope = scope
        self.status = status
        self.retry_after = retry_after


NAME_IT = "name the gateway by --url, or SOLOWIRE_URL"
START = "start a system with `solowire up`, or name the gateway by --url"
"""Hints for those who ask a gateway on the command line, and where there is none."""


class ClientError(SolowireError):
    """What users of the Python SDK catch."""


class ConnectionEnded(ClientError):
    """There is no connection, and coming back is of no use.

    close_code: WebSocket; of an attempt that failed: the one that means the same. reason: in words; hint: the way out,
    or "". url: of the gateway. connected: there was a connection, which the server ended.
    """

    def __init__(self, close_code: int, reason: str, *, hint: str = "", url: str = "", connected: bool = True) -> None:
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason
        self.hint = hint
        self.url = url
        self.connected = connected

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        if not self.connected:
            return f"no connection: {self.url} {self.reason}{hint}"
        at = f" to {self.url}" if self.url else ""
        return f"the server ended the connection{at}: {self.close_code} {self.reason}".rstrip() + hint


class MessageRefused(ClientError):
    """The server answered `hello`, `subscribe` or the like with an error. code, message, hint: its own words."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SubscriptionDenied(MessageRefused):
    """With `strict`: some of what was asked for is not granted. denied: type or pattern → the server's reason."""

    def __init__(self, message: str, hint: str, denied: Mapping[str, str]) -> None:
        super().__init__("subscription_denied", message, hint)
        self.denied = dict(denied)


class PublishRefused(ClientError):
    """Events were not accepted. status: HTTP (0: no answer). problem: the answer's problem body. url: what was asked.

    hint: the way out, where the answer has none of its own.
    """

    def __init__(self, status: int, problem: dict[str, object], *, url: str = "", hint: str = "") -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.url = url
        self.hint = hint

    def __str__(self) -> str:
        words = self.problem.get("detail") or self.problem.get("title") or "no reason given"
        hint = self.problem.get("hint") or self.hint
        who = self.url or "the gateway"
        text = f"{who} answered {self.status}: {words}" if self.status else f"{who} {words}"
        return f"{text} ({hint})" if hint else text


class HistoryRefused(ClientError):
    """A question about history is not answered. status: HTTP. problem: the answer's problem body. url: what was asked.

    code: 410 has `history_gone`, and `oldest` says from where on there is something.
    """

    def __init__(self, status: int, problem: dict[str, object], *, url: str = "") -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.url = url

    @property
    def code(self) -> str:
        return str(self.problem.get("code", ""))

    @property
    def oldest(self) -> str | None:
        """`since` of a question from the oldest event on that is kept; None where nothing is too old."""
        oldest = self.problem.get("oldest")
        position = oldest.get("position") if isinstance(oldest, dict) else None
        return position if isinstance(position, str) else None

    def __str__(self) -> str:
        words = self.problem.get("detail") or self.problem.get("title") or "no reason given"
        hint = self.problem.get("hint")
        text = f"{self.url or 'the gateway'} answered {self.status}: {words}"
        return f"{text} ({hint})" if hint else text


class BufferFull(ClientError):
    """The publisher holds `limit` events that the gateway has not taken yet: slow down, or wait with `drain()`."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} events are waiting for the gateway already; wait for drain() or raise buffer_events"


class DnstapError(SolowireError):
    """A message or a connection of dnstap that can't be understood. `str()` says what it is, after "it sent"."""


class TransferError(SolowireError):
    """A zone could not be had from its name server.

    kind: `away` (nobody answers), `refused`, `failed` (the server can't or won't answer), `malformed` (what came is no
    zone transfer), `too_large`, `not_incremental` (changes can't be had one by one, but the whole zone may be).
    hint: the way out.
    """

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(kind, message, hint)
        self.kind = kind
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class StatisticsError(SolowireError):
    """The statistics channel of a name server gives no figures. is_refused: nobody listens there."""

    def __init__(self, message: str, *, is_refused: bool = False) -> None:
        super().__init__(message)
        self.is_refused = is_refused


class TlsError(SolowireError):
    """A peer's TLS that fails. `str()` is one word in snake_case that says how, as OpenSSL has it."""


class BackplaneError(SolowireError):
    """A message between processes that can't be decoded. Counted, logged with its sender, dropped."""
