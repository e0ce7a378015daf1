"""Requests of `solowire`'s commands to a gateway: an answer, or one line that says why there is none.

What it keeps true: a first question that isn't answered is told at once. Whoever watches something (`watch`) has had an
answer already, and then a gateway that restarts, or whatever stands in its place meanwhile, is waited for, as
`solowire.sdk.retry_policy` has it, and said: after PATIENCE_S, for each new reason, and once a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
import msgspec

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import NAME_IT, START, ClientError, PublishRefused
from solowire.sdk.network_errors import read_network_error, read_token_error
from solowire.sdk.retry_policy import (
    Fault,
    RetryDecision,
    decide_retry,
    read_answer,
    read_undecodable,
    wait_at_least,
)
from solowire.sdk.trusted_certificates import make_context

PATIENCE_S = 2.0
TIMEOUT_S = 10.0
RETRY_MIN_S, RETRY_MAX_S = 0.25, 5.0

Token = str | Callable[[], str]


class Unanswered(Exception):
    """A request to the gateway that got no answer.

    fault: what came instead of the answer. error: what to raise if nobody waits for another.
    """

    def __init__(self, fault: Fault, error: ClientError) -> None:
        super().__init__(fault.reason)
        self.fault = fault
        self.error = error


class GatewayRequests:
    """Asks a gateway's API, and waits while the gateway is away.

    say(text): told to the user while an answer is waited for. Used as an async context manager.
    """

    def __init__(self, url: str, token: Token, report: Callable[[str], object]) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self.report = report
        self._warnings = WarningPace()
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=make_context(self._url))

    async def __aenter__(self) -> GatewayRequests:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, status: int, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON, None for 204. Raises ClientError for every other status than `status`."""
        try:
            return await self._ask(method, path, status, body)
        except Unanswered as unanswered:
            raise unanswered.error from None

    async def watch(self, path: str) -> Any:
        """What GET answers, however long that takes; asked after a first answer. Raises ClientError."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        began, was_said = clock(), False
        while True:
            try:
                answer = await self._ask("GET", path, 200, None)
            except Unanswered as unanswered:
                fault = unanswered.fault
                action = decide_retry(fault, succeeded=True, renewable=callable(self._token))
                if action not in (RetryDecision.retry, RetryDecision.renew):
                    raise unanswered.error from None
                if clock() - began >= PATIENCE_S and self._warnings.is_due(fault.reason, clock()):
                    self.report(f"{self._url} {fault.reason}; trying on, Ctrl-C ends")
                    was_said = True
                await asyncio.sleep(backoff.next_delay(at_least=wait_at_least(fault)))
            else:
                if was_said:
                    self.report(f"{self._url} answers again")
                self._warnings.reset()
                return answer

    async def _ask(self, method: str, path: str, status: int, body: dict[str, Any] | None) -> Any:
        """Sends one request. Raises Unanswered."""
        try:
            bearer = self._token() if callable(self._token) else self._token
        except (OSError, ValueError) as error:  # of a file, which somebody may be about to replace
            fault = read_token_error(error)
            raise Unanswered(fault, ClientError(f"{self._url} {fault.text}")) from None
        try:
            answer = await self._http.request(
                method, f"{self._url}{path}", headers={"authorization": f"Bearer {bearer}"}, json=body
            )
        except (httpx.HTTPError, OSError) as error:
            fault = read_network_error(error)
            raise Unanswered(fault, ClientError(f"{self._url} {fault.reason} ({fault.hint or START})")) from None
        if answer.status_code == status == 204:
            return None
        try:
            body = msgspec.json.decode(answer.content)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            fault = read_undecodable(error) if answer.status_code == status else self._read(answer)
            what = f"is no gateway: it answers {answer.status_code} without JSON"
            raise Unanswered(fault, ClientError(f"{self._url} {what} ({NAME_IT})")) from None
        if answer.status_code != status:
            problem = body if isinstance(body, dict) else {}
            refused = PublishRefused(answer.status_code, problem, url=f"{self._url}{path}")
            raise Unanswered(self._read(answer), refused)
        return body

    def _read(self, answer: httpx.Response) -> Fault:
        return read_answer(answer.status_code, answer.headers, answer.content, time.time())
