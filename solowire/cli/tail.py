"""`solowire tail`: events as lines."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from solowire.protocol.messages import Notice, ReceivedEvent, Welcome
from solowire.sdk.client import Client

PATIENCE_SECONDS = 2.0
_STYLES = {"critical": "bold red", "high": "yellow", "normal": "", "low": "dim"}


async def follow(
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

    client = Client(
        url,
        token,
        subscriptions=list(types) or None,
        filter=filter or None,
        on_gap=lost,
        on_notice=lambda notice: _note(notes, notice),
    )

    async def waiting() -> None:
        told = ""
        while True:
            await asyncio.sleep(PATIENCE_SECONDS)
            reason = client.last_reason or "no answer"
            if reason != told:
                notes.print(f"not connected to {url} yet ({reason}); trying on, Ctrl-C ends", style="yellow")
                told = reason

    patience = asyncio.create_task(waiting())
    async with client:
        patience.cancel()
        if client.welcome is not None:
            _greet(notes, client.welcome, client.shard)
        seen = 0
        async for event in client:
            if as_json:
                sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
                sys.stdout.flush()
            else:
                out.print(line_of(event))
            seen += 1
            if seen == count:
                return


def line_of(event: ReceivedEvent) -> Text:
    """One event as one line, whatever characters its data holds."""
    line = Text(f"{event.offset:>8} ", style="dim")
    line.append(f"{event.timestamp} ", style="dim")
    line.append(f"{event.type} ", style=f"bold cyan {_STYLES[event.priority]}".strip())
    line.append(msgspec.json.encode(event.data).decode(), style=_STYLES[event.priority])
    return line


def _greet(notes: Console, welcome: Welcome, shard: int | None) -> None:
    types = len(welcome.subscriptions)
    notes.print(f"connected as {welcome.user} ({welcome.role}) on shard {shard}: {types} event types", style="green")
    for denied in welcome.denied:
        notes.print(f"not granted: {denied.type}: {denied.reason}. {denied.hint}", style="yellow")


def _note(notes: Console, notice: Notice) -> None:
    notes.print(f"{notice.code}: {notice.message}", style="yellow")
