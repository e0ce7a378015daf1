"""`solowire tail`: events as lines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.text import Text

from solowire.algorithms.warning_pace import WarningPace
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import HistoryRefused, SubscriptionDenied
from solowire.model.subscriptions import DeniedPattern, find_idle
from solowire.protocol.messages import Notice, ReceivedEvent, Welcome
from solowire.protocol.user_names import one_line
from solowire.sdk.client import Client, ConnectionState
from solowire.sdk.history import History
from solowire.sdk.kept_subscriptions import describe_denial, make_filter
from solowire.sdk.token_end import TokenEndWatch

PATIENCE_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""For which a question is asked again before it is given up; what has been answered once goes on."""
_STYLES = {"critical": "bold red", "high": "yellow", "normal": "", "low": "dim"}


async def follow_events(
    url: str,
    token: str | Callable[[], str],
    types: Sequence[str],
    filter: Mapping[str, list[str]],
    *,
    as_json: bool,
    count: int | None,
    since: str | None = None,
) -> None:
    """Prints events as they come, `count` of them or until it is interrupted. Raises ClientError.

    since: first what was sent from there on, and then what is live, without a gap and without one twice.
    """
    notes, out = make_consoles()
    printer = EventPrinter(out, as_json=as_json, count=count)
    resume, limits = None, ReportedLimits(notes)
    if since is not None:
        asked = list(types) or None
        resume = await print_history(Client(url, token), url, printer, notes, since, asked, filter, limits=limits)
        if printer.is_done:
            return

    def lost(reason: str) -> None:
        notes.print(f"events may be missing here: {reason}", style="yellow")

    state = ConnectionState("waiting", "no answer")

    def remember(now: ConnectionState) -> None:
        nonlocal state
        state = now

    client = Client(
        url,
        token,
        subscriptions=list(types) or None,
        filter=filter or None,
        resume=resume,
        on_gap=lost,
        on_notice=lambda notice: _write_notice(notes, notice),
        on_state=remember,
    )

    async def watch() -> None:
        """Says what is waited for, and when that is over; nothing of what lasts no longer than PATIENCE_SECONDS."""
        pace, was_said = WarningPace(), False
        while True:
            await asyncio.sleep(PATIENCE_SECONDS)
            reason = client.last_reason or "no answer"
            if state.name == "waiting" and pace.is_due(reason, time.monotonic()):
                yet = "" if client.connections else " yet"
                notes.print(f"not connected to {url}{yet} ({reason}); trying on, Ctrl-C ends", style="yellow")
                was_said = True
            elif state.name == "connected":
                if was_said and client.connections > 1:
                    notes.print("connected again", style="green")
                was_said = False
                pace.reset()

    watching = asyncio.create_task(watch())
    if isinstance(token, str):
        TokenEndWatch(token, lambda text: notes.print(text, style="yellow")).start()
    async with client:
        if client.welcome is not None:
            _write_welcome(notes, client.welcome, client.shard)
            limits.report(client.welcome.denied, filter, client.subscriptions)
            if types and not client.subscriptions:  # it would wait for ever, for nothing
                raise SubscriptionDenied("nothing of it can be followed", "`solowire tail` alone follows all", {})
        async for event in client:
            printer.print_event(event)
            if printer.is_done:
                break
    watching.cancel()


class ReportedLimits:
    """What is not shown of what was asked for, each limit said once: of history, and then live again."""

    def __init__(self, notes: Console) -> None:
        self._notes = notes
        self._reported: set[str] = set()

    def report(self, denied: Sequence[DeniedPattern], filter: Mapping[str, list[str]], types: Sequence[str]) -> None:
        """Says which types are not granted, and which attributes of the filter none of `types` has."""
        texts = [f"not granted: {describe_denial(one)}" for one in denied]
        granted = set(types) - {one.type for one in denied}
        idle = find_idle(make_filter(filter), granted, CATALOG)
        texts += [f"--filter {name}=… narrows nothing: none of these event types has it" for name in idle]
        for text in texts:
            if text not in self._reported:
                self._reported.add(text)
                self._notes.print(text, style="yellow")


class EventPrinter:
    """Prints events, `count` of them at most, as lines of text or of JSON."""

    def __init__(self, out: Console, *, as_json: bool, count: int | None) -> None:
        self._out = out
        self._as_json = as_json
        self._left = count

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def print_event(self, event: ReceivedEvent) -> None:
        if self._as_json:
            sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")  # JSON is UTF-8, whatever the locale is
            sys.stdout.buffer.flush()
        else:
            self._out.print(format_line(event))
        if self._left is not None:
            self._left -= 1


async def print_history(
    client: Client,
    url: str,
    printer: EventPrinter,
    notes: Console,
    since: str | None,
    types: Sequence[str] | None,
    filter: Mapping[str, list[str]],
    *,
    limits: ReportedLimits,
    **more: Any,
) -> tuple[str, int] | None:
    """Prints what was sent; up to where that was. Of what the log doesn't keep, or not all may see, it says so.

    more: as in `Client.history`. Raises ClientError.
    """

    async def print_answers(history: History) -> tuple[str, int] | None:
        watching = asyncio.create_task(_say_what_is_awaited(history, notes, url))
        try:
            pages_count = 0
            async for event in history:
                if history.pages_count > pages_count:
                    pages_count = history.pages_count
                    limits.report(history.denied, filter, types or ())
                printer.print_event(event)
                if printer.is_done:
                    await history.close()
                    break
            limits.report(history.denied, filter, types or ())
        finally:
            watching.cancel()
        return history.position

    asked = client.history(since, types=types, filter=filter or None, **more)
    try:
        return await print_answers(asked)
    except HistoryRefused as refused:
        if refused.oldest is None:
            raise
    if more.get("order") == "desc" and asked.pages_count:
        notes.print("the log doesn't keep what is older", style="yellow")
        return None
    notes.print("the log doesn't keep events for so long: it begins with the oldest that there is", style="yellow")
    # Not from that event on: on a log that is full and written to it is gone before it can be asked for.
    kept = client.history(None, types=types, filter=filter or None, **more)
    return await print_answers(kept)


async def show_history(
    url: str,
    token: str | Callable[[], str],
    since: str,
    types: Sequence[str],
    filter: Mapping[str, list[str]],
    *,
    until: str | None,
    order: Literal["asc", "desc"],
    as_json: bool,
    count: int | None,
) -> None:
    """Prints what was sent. Raises ClientError."""
    notes, out = make_consoles()
    printer = EventPrinter(out, as_json=as_json, count=count)
    more: dict[str, Any] = {"until": until, "order": order, "limit": count, "retry_for": ANSWER_SECONDS}
    await print_history(
        Client(url, token),
        url,
        printer,
        notes,
        since,
        list(types) or None,
        filter,
        limits=ReportedLimits(notes),
        **more,
    )


def make_consoles() -> tuple[Console, Console]:
    """For notes, and for events: what others say is no markup, and a line stays one."""
    notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return notes, Console(highlight=False, soft_wrap=True)


async def _say_what_is_awaited(history: History, notes: Console, url: str) -> None:
    """Says why there is no answer, if that lasts longer than PATIENCE_SECONDS, and when it is over."""
    pace, was_said = WarningPace(), False
    while True:
        await asyncio.sleep(PATIENCE_SECONDS)
        reason = history.last_reason
        if reason is not None and pace.is_due(reason, time.monotonic()):
            notes.print(f"no history from {url} yet ({reason}); trying on, Ctrl-C ends", style="yellow")
            was_said = True
        elif reason is None:
            if was_said:
                notes.print("answered again", style="green")
            was_said = False
            pace.reset()


def format_line(event: ReceivedEvent) -> Text:
    """One event as one line, whatever characters its data holds."""
    line = Text(f"{event.offset:>8} ", style="dim")
    line.append(f"{event.timestamp} ", style="dim")
    line.append(f"{event.type} ", style=f"bold cyan {_STYLES[event.priority]}".strip())
    line.append(one_line(msgspec.json.encode(event.data).decode()), style=_STYLES[event.priority])
    return line


def _write_welcome(notes: Console, welcome: Welcome, shard: int | None) -> None:
    types = len(welcome.subscriptions)
    notes.print(f"connected as {welcome.user} ({welcome.role}) on shard {shard}: {types} event types", style="green")


def _write_notice(notes: Console, notice: Notice) -> None:
    notes.print(f"{notice.code}: {notice.message}", style="yellow")
