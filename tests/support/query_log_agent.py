"""The agent of a log on its own, with a publisher of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Required, TypedDict, Unpack

from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.queries.query_lines import QueryLines
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.line_meaning import LineInterpreter
from solowire.sources.files.log_agent import EventPublisher, run_log_agent


class _LogOptions(TypedDict, total=False):
    server: str
    from_start: Required[bool]
    stop: Required[asyncio.Event]
    state_dir: Path | None
    acknowledgements: Acknowledgements | None


async def follow_log(
    path: Path,
    lines: LineInterpreter,
    publisher: EventPublisher,
    *,
    server: str = "ns1",
    from_start: bool,
    stop: asyncio.Event,
    state_dir: Path | None = None,
    acknowledgements: Acknowledgements | None = None,
) -> None:
    """As `run_log_agent`. state_dir: a new one if there is none, so that no place is known."""
    with TemporaryDirectory() as empty:
        await run_log_agent(
            path,
            lines,
            publisher,
            server=server,
            from_start=from_start,
            stop=stop,
            state_dir=state_dir or Path(empty),
            acknowledgements=acknowledgements or Acknowledgements(),
            status=PartStatus(lines.kind.name),
        )


async def run_bind9(
    query_log: Path, publisher: EventPublisher, *, zones: Iterable[str], **given: Unpack[_LogOptions]
) -> None:
    """Publish every query of a BIND 9 query log as `dns_query_log`, until `stop` is set.

    query_log: the file of the channel, which need not exist yet. zones: names of the zones to be told in the events.
    given: as for `follow_log`.
    """
    await follow_log(query_log, QueryLines(zones), publisher, **given)
