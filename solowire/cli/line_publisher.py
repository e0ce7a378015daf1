"""`solowire publish -`: events from lines of JSON, published as they come, with the line of each that is refused.

What it keeps true: an event that is refused, here or by the gateway, is named by its line and keeps no other from being
published; of those that are under way, MOST_WAITING at most are held, and so of their lines. A line longer than
MAX_LINE_BYTES is refused without being held. A signal to end loses nothing in silence: no more is read, what is under
way has STOP_SECONDS, and what was not sent is counted, with the line behind which somebody may go on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import click
import msgspec

from solowire.algorithms.json_faults import describe_json_fault
from solowire.algorithms.name_suggestion import suggest_name
from solowire.algorithms.warning_pace import WarningPace
from solowire.cli.gateway_requests import PATIENCE_S
from solowire.errors import ConfigError, PublishRefused
from solowire.runtime.standard_input import read_pieces
from solowire.sdk.arguments import Token
from solowire.sdk.publisher import NO_EVENT, Accepted, Publisher
from solowire.sdk.retry_policy import Fault, RetryDecision, decide_retry, wait_at_least
from solowire.sdk.token_end import read_token_end

MAX_LINE_BYTES = 2**20
MOST_WAITING = 10_000
BATCH = 500
MAX_INPUT_BYTES = 2**20
"""Of one event's data on standard input."""
MOST_COMPLAINTS = 100
"""Of refused lines that are named; the others are counted."""
STOP_SECONDS = 5.0
"""For which what is under way is waited for when a signal ends the command."""
CHECK_SECONDS = 1.0
QUIET_SECONDS = 30.0
"""After which a gateway that nothing was sent to is asked again whether it would take events."""
FIELDS = ("type", "data", "id", "priority", "key", "user", "timestamp", "source", "correlation_id", "traceparent")


def publish_input(url: str, token: Token, defaults: Mapping[str, str], *, retry_for: float) -> int:
    """Publishes the lines of standard input and prints what became of them; the exit status. Raises ClientError."""
    check_input()
    complaints = 0

    def complain(line: int, text: str) -> None:
        nonlocal complaints
        complaints += 1
        if complaints <= MOST_COMPLAINTS:
            click.echo(f"solowire: line {line}: {text}", err=True)
        elif complaints == MOST_COMPLAINTS + 1:
            click.echo("solowire: more lines are refused; they are counted below", err=True)

    logging.getLogger("solowire.publisher").setLevel(logging.CRITICAL)  # what it would say is said here
    if sys.stdin.isatty():
        click.echo("Reading events, one a line; Ctrl-D ends.", err=True)

    stopped_by = 0

    async def run() -> PublishSummary:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def end(number: int) -> None:
            nonlocal stopped_by
            stopped_by = number
            for handled in ENDING_SIGNALS:
                loop.remove_signal_handler(handled)  # a second one ends it at once
            stop.set()

        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, end, number)
        publisher = LinePublisher(url, token, defaults=defaults, complain=complain, retry_for=retry_for)
        return await publisher.publish(read_pieces(sys.stdin.fileno()), stop)

    summary = asyncio.run(run())
    if stopped_by:
        click.echo(summary.describe_end())
        return 128 + stopped_by
    click.echo(str(summary))
    if summary.stopped is not None:
        raise summary.stopped
    return 1 if summary.refused else 0


def check_input() -> None:
    """Raises ConfigError where there is no standard input, as after `<&-`."""
    if sys.stdin is None:
        raise ConfigError("standard input is closed; write events into it, or name them on the command line")


def read_input() -> str:
    """The data of an event, from standard input. Raises ConfigError for what is no text, or far too long."""
    check_input()
    raw = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(raw) > MAX_INPUT_BYTES:
        raise ConfigError(f"standard input: more than {MAX_INPUT_BYTES} bytes are no event's data")
    try:
        return raw.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: not valid UTF-8: {error.reason} at byte {error.start}") from None


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PublishSummary(msgspec.Struct):
    """What became of the lines.

    stopped: why the rest was not sent, None if all was. settled_line: up to it all lines are published or refused.
    """

    accepted: int = 0
    duplicates: int = 0
    demoted: int = 0
    refused: int = 0
    unsent: int = 0
    stopped: PublishRefused | None = None
    settled_line: int = 0

    def describe_end(self) -> str:
        """The same where it was ended early: also from where somebody may go on."""
        counts = str(self) if self.unsent else f"{self}, 0 not sent"
        return f"{counts}; settled up to line {self.settled_line:,}, go on behind it"

    def __str__(self) -> str:
        parts = [f"{self.accepted:,} published", f"{self.duplicates:,} duplicates", f"{self.refused:,} refused"]
        if self.demoted:
            parts.append(f"{self.demoted:,} critical ones taken as high (SOLOWIRE_PUBLISH__CRITICAL_RATE)")
        return ", ".join([*parts, *([f"{self.unsent:,} not sent"] if self.unsent else [])])


class LinePublisher:
    """Publishes the events of a stream of JSON lines.

    defaults: fields of an event that a line doesn't give. complain(line, text): of each that is refused.

    retry_for: seconds that a gateway may be away before it has taken anything.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        defaults: Mapping[str, str],
        complain: Callable[[int, str], None],
        retry_for: float,
    ) -> None:
        self._url = url
        self._defaults = defaults
        self._complain = complain
        self._lines: dict[str, int] = {}  # event id → its line, of those that are not settled
        self._publisher = _PatientPublisher(
            url,
            token,
            batch=BATCH,
            buffer_events=2 * MOST_WAITING,
            retry_for=retry_for,
            on_refused=lambda event, problem: self._reject_line(
                self._lines.get(event["id"], 0), describe_fault(problem)
            ),
        )
        self._summary = PublishSummary()
        self._number = 0  # of the newest line that was given to the publisher

    async def publish(self, pieces: AsyncIterator[bytes], stop: asyncio.Event | None = None) -> PublishSummary:
        """Publishes the lines of a stream that comes in pieces, until its end or until the gateway takes no more.

        stop: when it is set, no more is read, and what is under way is waited for, STOP_SECONDS at most.
        """
        summary = self._summary
        async with self._publisher as publisher:
            try:
                if await self._read_until(pieces, stop or asyncio.Event()):
                    await publisher.drain()
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(STOP_SECONDS):
                            await publisher.drain()
            except PublishRefused as stopped:
                summary.stopped = PublishRefused(
                    stopped.status, stopped.problem, url=stopped.url or self._url, hint=stopped.hint
                )
            unsent = publisher.unsent
            summary.unsent = len(unsent)
            summary.settled_line = min((self._lines.get(event["id"], 1) - 1 for event in unsent), default=self._number)
            await publisher.close()
        summary.accepted, summary.duplicates = publisher.stats.accepted, publisher.stats.duplicates
        summary.demoted = publisher.stats.demoted
        return summary

    async def _read_until(self, pieces: AsyncIterator[bytes], stop: asyncio.Event) -> bool:
        """Whether all was read; False if `stop` came first. Raises PublishRefused."""
        reading = asyncio.ensure_future(self._read_lines(pieces))
        stopping = asyncio.ensure_future(stop.wait())
        checking = asyncio.ensure_future(self._publisher.check_gateway())  # no line may come for hours
        ending = asyncio.ensure_future(self._publisher.wait_until_stopped())
        try:
            await asyncio.wait({reading, stopping, checking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not self._publisher.has_events:  # nothing else would find it out
                self._publisher.input_over.set()
                await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, checking, reading, ending):
                task.cancel()
            await asyncio.wait({reading, stopping, checking, ending})
        for task in (checking, ending):
            if not task.cancelled():
                task.result()
        if reading.cancelled():
            return False
        reading.result()
        return True

    async def _read_lines(self, pieces: AsyncIterator[bytes]) -> None:
        try:
            async for line in split_lines(pieces):
                await self._publish_line(self._number + 1, line)
                self._number += 1
        except OSError as error:
            raise ConfigError(f"standard input can't be read: {error.strerror or error}") from None

    async def _publish_line(self, number: int, line: bytes | None) -> None:
        if line is not None and not line.strip():
            return
        try:
            event = {**self._defaults, **parse_line(line)}
            if not isinstance(event.get("data"), dict):
                raise ValueError("it has no data, which is an object, {…}")
            id = await self._publisher.publish(**event)
        except (ValueError, TypeError) as error:
            self._reject_line(number, str(error))
            return
        self._lines[id] = number
        if len(self._lines) >= MOST_WAITING:
            await self._publisher.drain()
            self._lines.clear()

    def _reject_line(self, number: int, text: str) -> None:
        self._summary.refused += 1
        self._complain(number, text)


class _PatientPublisher(Publisher):
    """A publisher that, once the gateway has taken something, waits for it as long as it takes, and says so.

    Lines are read from what goes on, such as a log, and whoever writes them can't send them again.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.input_over = asyncio.Event()
        self._is_checked = False

    @property
    def is_known(self) -> bool:
        """Whether the gateway has ever said that it takes events of this publisher."""
        return self._is_checked or self._contact.has_succeeded

    @property
    def has_events(self) -> bool:
        """Whether any were given to it: what is wrong is found out by sending them."""
        return self._buffer.waiting_count > 0 or self._contact.has_succeeded

    def _report_token_end(self, text: str) -> None:
        click.echo(f"solowire: {text}", err=True)

    async def check_gateway(self) -> None:
        """Asks whether events would be taken, by a request that has none, whenever there is none to find it out by.

        Raises PublishRefused if they would not. While nobody answers that is said, once a minute. Returns when the
        input is over and the answer is known.
        """
        pace, began, was_said = WarningPace(), time.monotonic(), False
        while not (self.input_over.is_set() and self.is_known):
            if self._buffer.waiting_count:
                await self._pause(CHECK_SECONDS)
                continue
            answer = await self._post([])
            if isinstance(answer, Accepted) or answer.problem.get("code") == NO_EVENT:
                self._is_checked = True
                if was_said:
                    click.echo(f"solowire: {self._url} answers again", err=True)
                was_said = False
                pace.reset()
                await self._pause(self._find_quiet_s())
                continue
            decision = decide_retry(answer, succeeded=self.is_known, renewable=self._token.is_renewable)
            is_over = self.input_over.is_set() and time.monotonic() - began >= (self._retry_for or 0.0)
            if is_over or decision not in (RetryDecision.retry, RetryDecision.renew):
                raise self._make_error(answer)
            if decision is RetryDecision.renew:
                self._bearer = ""
            if pace.is_due(answer.text, time.monotonic()):
                click.echo(f"solowire: {self._url} {answer.text}; trying on, Ctrl-C ends", err=True)
                was_said = self.is_known
            await asyncio.sleep(max(CHECK_SECONDS, wait_at_least(answer)))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.input_over.wait()

    def _find_quiet_s(self) -> float:
        """How long to leave the gateway alone: not beyond the end of a token that can't be renewed."""
        end = read_token_end(self._token.fixed or "")
        left = QUIET_SECONDS if end is None else end + 0.1 - time.time()
        return min(left, QUIET_SECONDS) if left > 0 else QUIET_SECONDS

    async def wait_until_stopped(self) -> None:
        """Waits until it takes no more events. Raises PublishRefused."""
        if self._worker is not None:
            await asyncio.wait({self._worker})
        self._require_running()

    async def _post_until_settled(
        self, items: list[bytes], retry_for: float | None, *, is_whole: bool = False
    ) -> Accepted | Fault:
        if not self.is_known:
            return await super()._post_until_settled(items, retry_for, is_whole=is_whole)
        pace, was_said = WarningPace(), False
        settling = asyncio.ensure_future(super()._post_until_settled(items, None, is_whole=is_whole))
        try:
            while not (await asyncio.wait({settling}, timeout=PATIENCE_S))[0]:
                fault = self._last_fault
                reason = "gives no answer" if fault is None else fault.text
                if pace.is_due(reason, time.monotonic()):
                    click.echo(f"solowire: not published yet: {self._url} {reason}; trying on, Ctrl-C ends", err=True)
                    was_said = True
        finally:
            settling.cancel()
        if was_said:
            click.echo(f"solowire: {self._url} answers again", err=True)
        return settling.result()


def parse_line(line: bytes | None) -> dict[str, Any]:
    """The event of one line; None stands for one that is too long. Raises ValueError for what is none."""
    if line is None:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes; publish smaller events")
    try:
        event = msgspec.json.decode(line.removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"it is not valid JSON: {describe_json_fault(error, line)}") from None
    if not isinstance(event, dict):
        raise ValueError('it is no object, such as {"type": "custom.hello", "data": {"text": "hello"}}')
    for name, value in event.items():
        if name not in FIELDS:
            known = f"an event has {', '.join(FIELDS)}"
            raise ValueError(f"it has an unknown field {name[:64]!r}{suggest_name(name, FIELDS, known)}")
        if name != "data" and not isinstance(value, str) and value is not None:
            raise ValueError(f"its {name} is no text")
    if not isinstance(event.get("type"), str):
        raise ValueError("it has no type; GET /v1/catalog lists them, your own begin with custom.")
    return event


def describe_fault(problem: Mapping[str, object]) -> str:
    """What the gateway says of an event that it refuses: of the event itself, or of the request that was it alone."""
    words = problem.get("message") or problem.get("detail") or problem.get("title") or "no reason given"
    path = f"{problem['path']}: " if problem.get("path") else ""
    hint = f" ({problem['hint']})" if problem.get("hint") else ""
    return f"{path}{words}{hint}"


async def split_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes | None]:
    """Lines without their ends, of which the last needs none; None for each that is longer than MAX_LINE_BYTES."""
    held = b""
    is_too_long = False
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield None if is_too_long or len(line) > MAX_LINE_BYTES else line
            is_too_long = False
        if len(held) > MAX_LINE_BYTES:
            held, is_too_long = b"", True
    if held or is_too_long:
        yield None if is_too_long else held
