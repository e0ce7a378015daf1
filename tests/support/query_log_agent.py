"""The agent of a query log on its own, with a publisher of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from solowire.sources.bind9.queries.query_lines import QueryLines
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.log_agent import EventPublisher, run_log_agent


async def run_bind9(
    query_log: Path,
    publisher: EventPublisher,
    *,
    server: str,
    from_start: bool,
    zones: Iterable[str],
    stop: asyncio.Event,
    state_dir: Path | None = None,
    acknowledgements: Acknowledgements | None = None,
) -> None:
    """Publish every query of a BIND 9 query log as `dns_query_log`, until `stop` is set.

    query_log: the file of the channel, which need not exist yet. zones: names of the zones to be told in the events.
    The rest, and the errors, are those of `run_log_agent`.
    """
    await run_log_agent(
        query_log,
        QueryLines(zones),
        publisher,
        server=server,
        from_start=from_start,
        stop=stop,
        state_dir=state_dir,
        acknowledgements=acknowledgements,
    )
