"""The retry policy of Client, Publisher and sources for everything that is not success.

Whatever comes instead of success is a `Fault` of one `FaultKind`, and `POLICY` says what follows from it: before the
first success, when it tells that something is set up wrongly, and after it, when it tells of a deployment, a proxy
without its server, or a laptop that has just woken. docs/sdk-retries.md shows the same table, and a test that they
agree.

What it keeps true: after one success nothing is final but what the gateway itself says is. The gateway's own answers
are `application/problem+json` with a `code` (RFC 9457); anybody may answer 404 in its place.

Pure: the time, unix seconds, is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus

import msgspec

from solowire.algorithms.backoff import MAX_RETRY_AFTER_S, parse_retry_after
from solowire.protocol.close_codes import CloseCode, is_terminal
from solowire.protocol.problem_details import PROBLEM_TYPE

FOREIGN_RETRY_AFTER_S = 60.0
"""What is not the gateway's may ask to be left alone for no longer: a page about maintenance says hours."""

TOKEN_PACE_S = 1.0
"""A token function is asked no sooner than this after it failed or its token was refused; waits grow from there."""

FIRST_TOKEN_S = 30.0
"""How long a token function that has never given a good token is asked on."""

_CODE = re.compile(r"[a-z0-9_]{1,64}")
_SHOWN = 300  # characters of somebody's words that go into an error


class RetryDecision(Enum):
    """What to do about a fault."""

    retry = "try again, with backoff"
    renew = "ask the token function for another token and try again, with backoff; without a function: raise"
    renew_at_first = "the same, for 30 s at most"
    split = "send fewer at once; a single event is handed back (`on_refused`)"
    retry_apart = (
        "try again, with backoff; of events: fewer at once, and a single one is handed back in the end (see below)"
    )
    stop = "raise"


class FaultKind(Enum):
    """What came instead of success. Its value says it in words."""

    unreachable = "no answer: refused, reset, timed out, no network, the resolver is away"
    no_host = "no such host"
    no_tls = "TLS fails: certificate, name, protocol"
    passing = "408, 421, 425, 429 or 5xx, whoever says it"
    no_gateway = "success that is no answer of the gateway's (HTML, another server's JSON)"
    foreign = "any other status without the gateway's own problem body: 301, 401, 403, 404, 405 …"
    unknown = "the gateway's own problem body with any other code"
    token = "the gateway's own 401, or a close with 4401"  # noqa: S105 - a sentence
    final = "the gateway's own `forbidden`, `unsupported_subprotocol`, `unsupported_media_type`"
    taken = "the gateway's own `duplicate_connection`"
    ticket = "the shard's own refusal of a ticket"
    bad_events = "the gateway's own 400 to events"
    too_large = "the gateway's own 413"
    foreign_too_large = "413 without the gateway's own problem body"
    no_token = "the token function raises OSError, TimeoutError, or an HTTP error that passes (408, 429, 5xx)"  # noqa: S105
    token_fault = "the token function raises something else, or gives no token"  # noqa: S105
    closed = "a close code that is not final, or a connection that breaks"
    closed_for_good = "a close with 4400, 4403, 4409 or 4410"


_RETRY, _STOP = RetryDecision.retry, RetryDecision.stop

POLICY: Mapping[FaultKind, tuple[RetryDecision, RetryDecision]] = {
    FaultKind.unreachable: (_RETRY, _RETRY),
    FaultKind.no_host: (_STOP, _RETRY),
    FaultKind.no_tls: (_STOP, _RETRY),
    FaultKind.passing: (_RETRY, _RETRY),
    FaultKind.no_gateway: (_STOP, RetryDecision.retry_apart),
    FaultKind.foreign: (_STOP, RetryDecision.retry_apart),
    FaultKind.unknown: (_STOP, RetryDecision.retry_apart),
    FaultKind.token: (RetryDecision.renew_at_first, RetryDecision.renew),
    FaultKind.final: (_STOP, _STOP),
    FaultKind.taken: (_STOP, _STOP),
    FaultKind.ticket: (_RETRY, _RETRY),
    FaultKind.bad_events: (RetryDecision.split, RetryDecision.split),
    FaultKind.too_large: (RetryDecision.split, RetryDecision.split),
    FaultKind.foreign_too_large: (RetryDecision.retry_apart, RetryDecision.retry_apart),
    FaultKind.no_token: (_RETRY, _RETRY),
    FaultKind.token_fault: (_STOP, _RETRY),
    FaultKind.closed: (_RETRY, _RETRY),
    FaultKind.closed_for_good: (_STOP, _STOP),
}
"""What to do: before the first success, and after it."""

_OF_TOKENS = frozenset({FaultKind.token, FaultKind.no_token, FaultKind.token_fault})
_FINAL_CODES = frozenset({"forbidden", "unsupported_subprotocol", "unsupported_media_type"})
_TICKET_CODES = frozenset({"missing_ticket", "ticket_expired", "ticket_used", "invalid_token", "wrong_shard"})
_PASSING = frozenset({408, 421, 425, 429})

_CLOSE_HINTS: Mapping[int, str] = {
    CloseCode.unauthenticated: "a client that is given a function for its token goes on with a new one",
    CloseCode.forbidden: "the token's role may not do this",
    CloseCode.replaced: "another connection of the same user took its place: use one client for each user",
}


class _ProblemWords(msgspec.Struct, frozen=True):
    """The parts of a problem body (RFC 9457) that are looked at. code: "" if it is none of the gateway's."""

    title: str = ""
    detail: str = ""
    code: str = ""
    hint: str = ""


class Fault(msgspec.Struct, frozen=True):
    """What came instead of success. status: HTTP; 0: no answer. reason: in words, behind the URL as their subject.

    after: seconds that it asks to be left alone. problem: the answer's body, if it is an object in JSON. is_own: it is
    an answer of the gateway itself.
    """

    kind: FaultKind
    reason: str
    hint: str = ""
    status: int = 0
    after: float = 0.0
    problem: dict[str, object] = {}
    is_own: bool = False

    @property
    def text(self) -> str:
        """The reason, and the way out."""
        return f"{self.reason} ({self.hint})" if self.hint else self.reason

    @property
    def words(self) -> str:
        """The reason without the status, where there is one."""
        return self.reason.removeprefix(f"answered {self.status} ")


def may_be_of_events(fault: Fault) -> bool:
    """Whether it may be about the events that were sent, which somebody else than the gateway refuses."""
    return POLICY[fault.kind][True] is RetryDecision.retry_apart


def may_be_cut_off(fault: Fault) -> bool:
    """Whether somebody else than the gateway may end requests with these events so: a reset, silence, or a 5xx."""
    return fault.kind is FaultKind.unreachable or (fault.kind is FaultKind.passing and not fault.is_own)


def decide_retry(
    fault: Fault, *, succeeded: bool, renewable: bool, trying_s: float = 0.0, others_pass: bool = False
) -> RetryDecision:
    """What to do: `retry`, `split` or `stop`, or `renew` with a token function, or `retry_apart` if others pass.

    succeeded: once at least. renewable: there is a token function. trying_s: for how long there was no success.
    others_pass: the gateway answers other requests meanwhile, if that is known.
    """
    action = POLICY[fault.kind][succeeded]
    if action is RetryDecision.retry_apart and not others_pass:
        return RetryDecision.retry
    if action in (RetryDecision.renew, RetryDecision.renew_at_first) and not renewable:
        return RetryDecision.stop
    if action is RetryDecision.renew_at_first:
        return RetryDecision.renew if trying_s < FIRST_TOKEN_S else RetryDecision.stop
    return action


def wait_at_least(fault: Fault) -> float:
    """Seconds that must pass before the next attempt, whatever the backoff says."""
    return max(fault.after, TOKEN_PACE_S) if fault.kind in _OF_TOKENS else fault.after


# ---------------------------------------------------------------------------------------------------- reading faults


def read_answer(status: int, headers: Mapping[str, str], body: bytes, now: float, *, of_shard: bool = False) -> Fault:
    """The fault that an HTTP answer other than success is. headers: by lower-case names, or case-insensitive.

    of_shard: it answers the handshake of a WebSocket, for which there was a ticket.
    """
    problem = _decode_object(body)
    own = _read_own(status, headers.get("content-type") or "", problem)
    kind = _kind_of(status, own.code, of_shard)
    asked = parse_retry_after(headers.get("retry-after"), now, date=headers.get("date"))
    after = min(asked, MAX_RETRY_AFTER_S if own.code else FOREIGN_RETRY_AFTER_S)
    explanation = own if own.code else _read_problem(problem)
    reason = f"answered {status} {(explanation.detail or explanation.title or _phrase(status))[:_SHOWN]}".rstrip()
    hint = own.hint[:_SHOWN] or _hint_of(status, kind, headers)
    return Fault(kind, reason, hint, status, after, problem, bool(own.code))


def read_undecodable(error: Exception) -> Fault:
    """The fault that a body is which comes with success, and is not the gateway's."""
    return Fault(
        FaultKind.no_gateway,
        f"answered what can't be understood: {error}",
        "there is something else than a Solowire gateway; is the URL right?",
    )


def read_close(code: int, reason: str) -> Fault:
    """The fault that the end of a WebSocket is."""
    if code == CloseCode.unauthenticated:
        kind = FaultKind.token
    else:
        kind = FaultKind.closed_for_good if is_terminal(code) else FaultKind.closed
    return Fault(kind, reason, _CLOSE_HINTS.get(code, ""))


def close_code_of(fault: Fault) -> CloseCode:
    """The close code that means the same as an answer after which it is of no use to come back."""
    match fault.status:
        case 401:
            return CloseCode.unauthenticated
        case 403:
            return CloseCode.forbidden
        case 409:
            return CloseCode.replaced
        case _:
            return CloseCode.bad_protocol


def _kind_of(status: int, code: str, of_shard: bool) -> FaultKind:
    """The kind of fault that an answer is. code: the gateway's own, "" if it did not answer."""
    if of_shard and (code in _TICKET_CODES or status == 401):
        return FaultKind.ticket
    if status >= 500 or status in _PASSING:
        return FaultKind.passing
    if not code:
        return FaultKind.foreign_too_large if status == 413 else FaultKind.foreign
    if code in _FINAL_CODES:
        return FaultKind.final
    if code == "duplicate_connection":
        return FaultKind.taken
    match status:
        case 401:
            return FaultKind.token
        case 413:
            return FaultKind.too_large
        case 400 if code in ("invalid_events", "invalid_body", "empty_request"):
            return FaultKind.bad_events
        case _:
            return FaultKind.unknown


def _hint_of(status: int, kind: FaultKind, headers: Mapping[str, str]) -> str:
    if kind is not FaultKind.foreign:
        return ""
    place = headers.get("location")
    if 300 <= status < 400 and place:
        return f"it leads to {place[:_SHOWN]}: redirects are not followed, use the URL that it ends at"
    return "that is no answer of a Solowire gateway; is the URL right, and does the proxy pass /v1/ and /ws on?"


def _read_own(status: int, content_type: str, problem: dict[str, object]) -> _ProblemWords:
    """The gateway's own problem body; an empty one if it is anybody else's."""
    if content_type.partition(";")[0].strip().lower() != PROBLEM_TYPE or problem.get("status") != status:
        return _ProblemWords()
    own = _read_problem(problem)
    return own if _CODE.fullmatch(own.code) else _ProblemWords()


def _read_problem(problem: dict[str, object]) -> _ProblemWords:
    try:
        return msgspec.convert({k: problem[k] for k in _ProblemWords.__struct_fields__ if k in problem}, _ProblemWords)
    except msgspec.ValidationError:
        return _ProblemWords()


def _decode_object(body: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        return {}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
