"""The commands `solowire source …`: the agents that turn what happens in real systems into events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from solowire.cli.bind9_parts import make_bind9_parts
from solowire.cli.command_options import PathOption, check_texts, load_settings, read_zones, remote
from solowire.cli.command_tokens import make_token
from solowire.cli.system_parts import make_forwarders_parts, make_host_parts
from solowire.errors import ConfigError
from solowire.model.access import PUBLISH
from solowire.runtime.settings import Settings

READ_STEPS = "dns.read"
"""What a source of zones needs to see what another one has told."""

if TYPE_CHECKING:
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import SourcePart


@click.group()
def source() -> None:
    """Agents that turn real systems into events."""


@source.command()
@click.option("--query-log", type=PathOption(readable=False), help="The query log that named writes.")
@click.option(
    "--dnstap", type=PathOption(readable=False), help="The socket on which named tells of queries by dnstap: made here."
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=PathOption(readable=False),
    help="Another log that named writes: reloads, status, policy hits, refusals, updates. May be given more than once.",
)
@click.option(
    "--named-conf", type=PathOption(readable=False), help="named's configuration: its changes, and what became of them."
)
@click.option(
    "--statistics",
    metavar="URL",
    help="named's statistics channel, such as http://127.0.0.1:8053: its figures, and which zones there are.",
)
@click.option(
    "--probe-forwarders",
    is_flag=True,
    default=None,
    help="Probe the forwarders of --named-conf, too, and tell with that what dnstap tells of them.",
)
@click.option("--rules", type=PathOption(readable=False), help="Rules for security findings. [default: built in]")
@click.option("--server", help="What to call the server. [default: this host's name]")
@click.option("--zones", help="Zones, separated by commas: queries beneath one are labelled with it.")
@click.option(
    "--from-start", is_flag=True, default=None, help="Begin at the file's start, not at its end, if no place is known."
)
@click.option("--zones-of", help="Tell changes of zones of the name server at this address, such as 127.0.0.1#53.")
@click.option("--zone-names", help="The zones to watch, separated by commas. [default: all that --statistics lists]")
@click.option("--zones-key-file", type=PathOption(), help="TSIG keys for zone transfers, as named.conf has them.")
@click.option("--notify", help="Where named sends NOTIFY, such as 127.0.0.1#5353. [default: zones are polled]")
@click.option(
    "--state-dir",
    type=PathOption(),
    help="Where the agent keeps its places. [default: sources in the data directory]",
)
@remote
def bind9(
    config: Path | None,
    query_log: Path | None,
    dnstap: Path | None,
    logs: tuple[Path, ...],
    named_conf: Path | None,
    statistics: str | None,
    probe_forwarders: bool | None,
    rules: Path | None,
    server: str | None,
    zones: str | None,
    from_start: bool | None,
    zones_of: str | None,
    zone_names: str | None,
    zones_key_file: Path | None,
    notify: str | None,
    state_dir: Path | None,
    **options: Any,
) -> None:
    """Publishes what happens in a BIND 9 server.

    Each part is on if the option or setting that names what it reads is given. It goes on where it stopped, however it
    ended: each query of a log becomes one event, and each change of a record, too.
    """
    check_texts()
    labels = read_zones(zones)
    queries = {"query_log": query_log, "dnstap": dnstap, "from_start": from_start, "zones": list(labels) or None}
    watched = {
        "address": zones_of,
        "names": [name.strip() for name in zone_names.split(",")] if zone_names is not None else None,
        "key_file": zones_key_file,
        "notify": notify,
    }
    given = {
        "server": server,
        "state_dir": state_dir,
        "queries": queries,
        "server_log": {"files": list(logs) or None, "from_start": from_start},
        "zones": watched,
        "configuration": {"named_conf": named_conf},
        "statistics": {"url": statistics},
        "security": {"rules": rules},
        "forwarders": {"with_bind9": probe_forwarders},
    }
    settings = load_settings(config, "source", source=given, **options)
    _run_source("bind9", settings, make_bind9_parts)


@source.command(name="rules")
def print_rules() -> None:
    """Prints the built-in rules for security findings.

    They hold without --rules; a file of your own can begin with them.
    """
    from solowire.sources.bind9.security.security_rule import DEFAULT_RULES

    click.echo(DEFAULT_RULES, nl=False)


@source.command()
@click.option(
    "--forwarder",
    "addresses",
    multiple=True,
    help="A forwarder, such as 192.0.2.1 or 192.0.2.1#5353. May be given more than once.",
)
@click.option(
    "--named-conf", type=PathOption(readable=False), help="Probe the forwarders that named's configuration names."
)
@click.option("--name", help="The name to ask for. [default: the root]")
@click.option("--type", help="The record type to ask for. [default: SOA]")
@click.option("--interval-s", "interval", type=float, help="Seconds between two reports of a forwarder. [default: 30]")
@click.option("--server", help="What to call the server that forwards. [default: this host's name]")
@remote
def forwarders(
    config: Path | None,
    addresses: tuple[str, ...],
    named_conf: Path | None,
    name: str | None,
    type: str | None,
    interval: float | None,
    server: str | None,
    **options: Any,
) -> None:
    """Publishes how the forwarders of a server are.

    Each is asked a real query every few seconds. A change of its status is told at once, its figures at an interval.
    """
    check_texts()
    probed = {
        "addresses": list(addresses) or None,
        "named_conf": named_conf,
        "name": name,
        "type": type,
        "interval_s": interval,
    }
    settings = load_settings(config, "source", source={"server": server, "forwarders": probed}, **options)
    _run_source("forwarders", settings, make_forwarders_parts)


@source.command()
@click.option("--interval-s", "interval", type=float, help="Seconds between two measurements. [default: 30]")
@click.option("--process", "processes", multiple=True, help="A process to measure, by its name. [default: named]")
@click.option("--server", help="What to call the host. [default: its name]")
@remote
def host(
    config: Path | None, interval: float | None, processes: tuple[str, ...], server: str | None, **options: Any
) -> None:
    """Publishes the load of this host, and alerts.

    It tells of CPU, memory, disks, network, and named's own process; in a container, what can be seen there. It alerts
    where a figure stays above its threshold.
    """
    check_texts()
    measured = {"interval_s": interval, "processes": list(processes) or None}
    settings = load_settings(config, "source", source={"server": server, "host": measured}, **options)
    _run_source("host", settings, make_host_parts)


def _run_source(
    kind: str, settings: Settings, make_parts: Callable[[Settings, EventOutlet], Sequence[SourcePart]]
) -> None:
    """Runs one source until it is told to end."""
    from solowire.runtime import process
    from solowire.runtime.http_server import listen
    from solowire.runtime.settings.system_settings import LOCAL_HOST
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import run_source

    async def run(stop: asyncio.Event) -> None:
        server = settings.source.server or socket.gethostname()
        outlet = EventOutlet(settings.url, make_token(settings, PUBLISH, wished=READ_STEPS), server=server)
        parts = make_parts(settings, outlet)
        port, api = settings.listen.api_port, None
        if port is not None:
            try:
                api = listen(settings.listen.api_host or LOCAL_HOST, port)
            except ConfigError as error:
                raise ConfigError(f"{settings.name_setting('listen.api_port')}: {error}") from None
        async with outlet:
            await run_source(kind, parts, outlet, stop, url=settings.url, begun=process.report_ready, api=api)

    process.run(run)
