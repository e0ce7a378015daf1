"""`solowire tail`: events as lines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import SubscriptionDenied
from solowire.model.subscriptions import find_idle
from solowire.protocol.messages import Notice, ReceivedEvent, Welcome
from solowire.protocol.user_names import one_line
from solowire.sdk.client import Client, ConnectionState
from solowire.sdk.kept_subscriptions import describe_denial
from solowire.sdk.retry_policy import WarningPace

PATIENCE_SECONDS = 2.0
_STYLES = {"critical": "bold red", "high": "yellow", "normal": "", "low": "dim"}


async def follow_events(
    url: str,
    token: str | Callable[[], str],
    types: Sequence[str],
    filter: Mapping[str, list[str]],
    *,
    as_json: bool,
    count: int | None,
) -> None:
    """Prints events as they come, `count` of them or until it is interrupted. Raises ClientError."""
    # What others say is no markup, and a line stays one.
    notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    out = Console(highlight=False, soft_wrap=True)

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
    async with client:
        if client.welcome is not None:
            _write_welcome(notes, client.welcome, client.shard)
            for name in find_idle(tuple((n, frozenset(v)) for n, v in filter.items()), client.subscriptions, CATALOG):
                notes.print(f"--filter {name}=… narrows nothing: none of these event types has it", style="yellow")
            if types and not client.subscriptions:  # it would wait for ever, for nothing
                raise SubscriptionDenied("nothing of it can be followed", "`solowire tail` alone follows all", {})
        seen = 0
        async for event in client:
            if as_json:
                sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")  # JSON is UTF-8, whatever the locale is
                sys.stdout.buffer.flush()
            else:
                out.print(format_line(event))
            seen += 1
            if seen == count:
                break
    watching.cancel()


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
    for denied in welcome.denied:
        notes.print(f"not granted: {describe_denial(denied)}", style="yellow")


def _write_notice(notes: Console, notice: Notice) -> None:
    notes.print(f"{notice.code}: {notice.message}", style="yellow")
