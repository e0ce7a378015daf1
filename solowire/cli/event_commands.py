"""The commands of `solowire` about events: publishing and following them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from solowire.algorithms.json_faults import describe_json_fault
from solowire.cli.command_options import load_settings, remote
from solowire.cli.command_tokens import make_token
from solowire.errors import ConfigError
from solowire.model.access import ADMINISTER, PUBLISH

EXAMPLE = '{"text": "hello"}'
PUBLISH_SECONDS = 5.0  # for which `publish` tries on: a router or gateway that restarts is back by then


@click.command()
@click.argument("type")
@click.argument("data", metavar="JSON", required=False)
@click.option("--priority", type=click.Choice(["critical", "high", "normal", "low"]), help="[default: the type's]")
@click.option("--user", help="Only this user gets it.")
@click.option("--key", help="What a state is the state of.")
@remote
def publish(
    config: Path | None,
    type: str,
    data: str | None,
    priority: str | None,
    user: str | None,
    key: str | None,
    **options: Any,
) -> None:
    """Publishes one event and prints its offset; or many.

    JSON is the event's data, or - to read it from standard input. With - in the place of TYPE each line of standard
    input is a whole event, {"type": …, "data": {…}}; what a line doesn't say of priority, user and key, the options
    do.
    """
    from solowire.cli.line_publisher import publish_input, read_input
    from solowire.sdk.publisher import Publisher

    if (data is None) is not (type == "-"):
        raise click.UsageError("write TYPE JSON, TYPE - to read the data, or - alone to read events")
    settings = load_settings(config, None, **options)
    given = {n: v for n, v in (("priority", priority), ("user", user), ("key", key)) if v is not None}
    if type == "-":
        sys.exit(publish_input(settings.url, make_token(settings, PUBLISH), given, retry_for=PUBLISH_SECONDS))
    if data is None or data == "-":
        data = read_input()
    try:
        payload = msgspec.json.decode(data)  # strict: NaN and numbers out of range would arrive as null
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        fault = describe_json_fault(error, data.encode(errors="surrogatepass"))
        raise ConfigError(f"JSON: {fault}; write an object in single quotes, such as '{EXAMPLE}'") from None
    if not isinstance(payload, dict):
        raise ConfigError("JSON: the data of an event is an object, {…}")
    event: dict[str, Any] = {"type": type, "data": payload}
    event |= given

    async def run() -> int:
        async with Publisher(settings.url, make_token(settings, PUBLISH), retry_for=PUBLISH_SECONDS) as publisher:
            try:
                return (await publisher.publish_and_wait(event)).last_offset
            except (TypeError, ValueError) as error:  # of what the options say: an empty name, say
                raise ConfigError(str(error).removeprefix("$.")) from None

    try:
        offset = asyncio.run(run())
    except (TypeError, ValueError) as error:  # what the SDK says of an event that can't be
        raise ConfigError(str(error)) from None
    click.echo(offset)


_filters = click.option(
    "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as zone=example.com; repeatable."
)
_MOMENTS = "1h, 90s, 2d, a time such as 2026-12-01T07:00:00Z, or EPOCH:OFFSET"


def read_filters(filters: tuple[str, ...]) -> dict[str, list[str]]:
    """The values of each attribute. Raises ConfigError."""
    wanted: dict[str, list[str]] = {}
    for entry in filters:
        name, sign, value = entry.partition("=")
        if not sign:
            raise ConfigError(f"--filter {entry}: write NAME=VALUE")
        wanted.setdefault(name, []).append(value)
    return wanted


@click.command()
@click.argument("types", nargs=-1)
@_filters
@click.option("--since", metavar="WHEN", help=f"First what was sent since then: {_MOMENTS}.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@remote
def tail(
    config: Path | None,
    types: tuple[str, ...],
    filters: tuple[str, ...],
    since: str | None,
    as_json: bool,
    count: int | None,
    **options: Any,
) -> None:
    """Follows events in the terminal.

    All that you may see, or TYPES, such as dns.* or security_alert.
    """
    from solowire.cli.tail import follow_events

    settings = load_settings(config, None, **options)
    wanted = read_filters(filters)
    token = make_token(settings, ADMINISTER, connects=True)
    asyncio.run(follow_events(settings.url, token, types, wanted, as_json=as_json, count=count, since=since))


@click.command()
@click.argument("types", nargs=-1)
@_filters
@click.option("--since", metavar="WHEN", default="1h", show_default=True, help=f"From then on: {_MOMENTS}.")
@click.option("--until", metavar="WHEN", help="Before then, or up to an offset; written alike. [default: now]")
@click.option("--newest-first", is_flag=True, help="Backwards.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@remote
def history(
    config: Path | None,
    types: tuple[str, ...],
    filters: tuple[str, ...],
    since: str,
    until: str | None,
    newest_first: bool,
    as_json: bool,
    count: int | None,
    **options: Any,
) -> None:
    """Shows what was sent before.

    All that you may see, or TYPES, such as dns.* or security_alert; as far back as the router's log goes.
    """
    from solowire.cli.tail import show_history

    settings = load_settings(config, None, **options)
    wanted = read_filters(filters)
    token = make_token(settings, ADMINISTER, connects=True)
    order: Literal["asc", "desc"] = "desc" if newest_first else "asc"
    asyncio.run(
        show_history(settings.url, token, since, types, wanted, until=until, order=order, as_json=as_json, count=count)
    )
