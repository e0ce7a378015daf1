"""The commands `solowire source …`: the agents that turn what happens in real systems into events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from solowire.cli.command_options import PathOption, check_texts, load_settings, read_zones, remote
from solowire.cli.command_tokens import make_token
from solowire.errors import ConfigError
from solowire.model.access import PUBLISH
from solowire.runtime.data_directory import make_data_directory
from solowire.runtime.settings import Settings

if TYPE_CHECKING:
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import SourcePart


@click.group()
def source() -> None:
    """Agents that turn real systems into events."""


@source.command()
@click.option("--query-log", type=PathOption(readable=False), help="The query log that named writes.")
@click.option("--server", help="What to call the server. [default: this host's name]")
@click.option("--zones", help="Zones, separated by commas: queries beneath one are labelled with it.")
@click.option(
    "--from-start", is_flag=True, default=None, help="Begin at the file's start, not at its end, if no place is known."
)
@click.option(
    "--state-dir",
    type=PathOption(),
    help="Where the agent keeps its places. [default: sources in the data directory]",
)
@remote
def bind9(
    config: Path | None,
    query_log: Path | None,
    server: str | None,
    zones: str | None,
    from_start: bool | None,
    state_dir: Path | None,
    **options: Any,
) -> None:
    """Publishes what happens in a BIND 9 server.

    Each part is on if the option or setting that names what it reads is given. It goes on where it stopped, however it
    ended: each query of a log becomes one event, and each change of a record, too.
    """
    check_texts()
    labels = read_zones(zones)
    queries = {"query_log": query_log, "from_start": from_start, "zones": list(labels) or None}
    settings = load_settings(
        config, "source", source={"server": server, "state_dir": state_dir, "queries": queries}, **options
    )
    _run_source("bind9", settings, _make_bind9_parts)


def _make_bind9_parts(settings: Settings, outlet: EventOutlet) -> Sequence[SourcePart]:
    """The parts that are set up. Raises ConfigError if there are none."""
    from solowire.sources.bind9.queries.query_log_part import QueryLogPart

    source = settings.source
    parts: list[SourcePart] = []
    if source.queries.query_log is not None:
        parts.append(
            QueryLogPart(
                source.queries.query_log,
                url=settings.url,
                token=make_token(settings, PUBLISH),
                server=outlet.server,
                zones=source.queries.zones,
                from_start=source.queries.from_start,
                state_dir=_find_state_dir(settings),
            )
        )
    if not parts:
        raise ConfigError("nothing to watch: name a query log with --query-log, or see `solowire source bind9 --help`")
    return parts


def _run_source(
    kind: str, settings: Settings, make_parts: Callable[[Settings, EventOutlet], Sequence[SourcePart]]
) -> None:
    """Runs one source until it is told to end."""
    from solowire.runtime import process
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import run_source

    async def run(stop: asyncio.Event) -> None:
        server = settings.source.server or socket.gethostname()
        outlet = EventOutlet(settings.url, make_token(settings, PUBLISH), server=server)
        parts = make_parts(settings, outlet)
        async with outlet:
            await run_source(kind, parts, outlet, stop, url=settings.url, begun=process.report_ready)

    process.run(run)


def _find_state_dir(settings: Settings) -> Path:
    return settings.source.state_dir or make_data_directory(settings) / "sources"
