"""The command `solowire` (design, section 7). Exit status: 0, 1 for what failed, 2 for a wrong setting or usage.

Imports of the roles stand inside the commands: `solowire token` should not load a web server.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import shutil
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from solowire import __version__, logs
from solowire.access import ADMINISTER, PUBLISH, grants
from solowire.completion import SHELLS, VARIABLE, completion_script
from solowire.directory_lock import router_lock, supervisor_lock
from solowire.durations import Duration
from solowire.errors import ClientError, ConfigError, InvalidToken, PublishRefused
from solowire.scope_options import read_scope_options
from solowire.settings import Settings, load, make_directories, secret_of
from solowire.settings_listing import list_settings

F = TypeVar("F", bound=Callable[..., Any])

TOKEN_SECONDS = 12 * 3600.0
PUBLISH_SECONDS = 5.0  # for which `publish` tries on: a router or gateway that restarts is back by then


def main() -> None:
    """The console script."""
    warnings.filterwarnings("ignore", message="The HMAC key is")  # PyJWT's; `secret_of` says it in our words
    logs.configure("warning", None)  # until the settings say how: what is logged goes to stderr, never between output
    try:
        cli.main(standalone_mode=False, complete_var=VARIABLE)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        click.echo(f"solowire: {error}", err=True)
        sys.exit(2)
    except ClientError as error:
        click.echo(f"solowire: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="solowire")
def cli() -> None:
    """One live WebSocket per user, whatever the number of tabs, panels and event types."""


def common(command: F) -> F:
    """The options that every command has."""
    command = click.option("--data-dir", type=click.Path(path_type=Path), help="Data directory of the system.")(command)
    return click.option("--config", type=click.Path(path_type=Path), help="Settings from a TOML file.")(command)


def remote(command: F) -> F:
    """The options of commands that talk to a running gateway."""
    command = click.option("--token", help="Token to use. [default: one signed with the secret of the data directory]")(
        command
    )
    return common(click.option("--url", help="The gateway. [default: http://127.0.0.1:8000]")(command))


@cli.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="The gateway's port; shards take the ports after it. [default: 8000]")
@click.option("--shards", type=int, help="Number of shards. [default: one per core]")
@common
def up(config: Path | None, **options: Any) -> None:
    """Router, shards and gateway on this machine.

    Ctrl-C drains and stops them.
    """
    from solowire import process
    from solowire.supervisor import Failed, Supervisor

    settings = _load(config, "up", **options)
    if settings.shard_port is not None:
        raise ConfigError(
            "SOLOWIRE_SHARD_PORT: it is for one shard alone; the shards of `up` take the ports after --port"
        )
    _role(
        settings, ADMINISTER, connects=True
    )  # what every child would refuse, and we at the end, is refused here, once
    _ = settings.backplane_address
    make_directories(settings)
    secret, made = secret_of(settings, create=True)
    config = config.absolute() if config is not None else None
    status = 0

    async def run(stop: asyncio.Event) -> None:
        nonlocal status
        supervisor = Supervisor(settings, str(config) if config is not None else None)
        process.on_reload(supervisor.reload)
        try:
            starting = asyncio.ensure_future(supervisor.start())
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                return
            starting.result()
            process.report_ready()
            # By a thread that nobody waits for: who reads standard output may not read, or have gone.
            telling = (settings, supervisor.gateway_url, secret, made)
            threading.Thread(target=_say_where, args=telling, daemon=True).start()
            await supervisor.watch(stop)
            logs.write("Stopping …")
        except Failed as failed:
            status = failed.status
        except TimeoutError:
            logs.write("solowire: not everything became ready in time; the log above says why")
            status = 1
        finally:
            await supervisor.stop()

    with supervisor_lock(settings):
        with router_lock(settings):
            pass  # a router that was started alone has it: nothing of ours may join it
        process.run(run)
    sys.exit(status)


def _say_where(settings: Settings, url: str, secret: str, made: bool) -> None:
    token = _signed(settings, secret, "admin", _role(settings, ADMINISTER, connects=True), TOKEN_SECONDS)
    elsewhere = (
        f" --data-dir {shlex.quote(str(settings.data_dir.absolute()))}"
        if "data_dir" in settings.model_fields_set
        else ""
    )
    elsewhere += f" --url {url}" if url != Settings.model_fields["url"].default else ""
    lines = ["", f"Solowire is ready: {settings.shards} shard{'s' if settings.shards > 1 else ''}.", ""]
    if made:
        lines.append(f"  a secret was made        {settings.data_dir / 'secret'}")
    lines += [
        f"  gateway                  {url}",
        f"  API documentation        {url}/docs",
        f"  administrator's token    {token}",
        "",
        "Follow events, in another terminal:",
        f"  {_command()} tail{elsewhere}",
        "and publish one:",
        f"""  {_command()} publish custom.hello '{{"text": "hello"}}'{elsewhere}""",
        "",
    ]
    with suppress(OSError):
        click.echo("\n".join(lines))


@cli.command()
@common
def router(config: Path | None, **options: Any) -> None:
    """The router alone, for containers."""
    from router.server import serve

    serve(_load(config, "router", **options))


@cli.command()
@click.option("--index", type=click.IntRange(0, 255), required=True, help="Which shard it is, from 0.")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", "shard_port", type=int, help="Port to listen on. [default: the gateway's + 1 + index]")
@common
def shard(config: Path | None, index: int, **options: Any) -> None:
    """One shard alone, for containers."""
    from workers.server import serve

    serve(_load(config, "shard", index=index, **options), index)


@cli.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on. [default: 8000]")
@common
def gateway(config: Path | None, **options: Any) -> None:
    """The gateway alone, for containers."""
    from gateway.server import serve

    serve(_load(config, "gateway", **options))


@cli.group()
def source() -> None:
    """Agents that turn real systems into events."""


@source.command()
@click.option("--query-log", type=click.Path(path_type=Path), required=True, help="The query log that named writes.")
@click.option("--server", default=socket.gethostname, help="What to call the server. [default: this host's name]")
@click.option("--zones", default="", help="Zones, separated by commas: queries beneath one are labelled with it.")
@click.option("--from-start", is_flag=True, help="Begin at the start of the file, not at its end.")
@remote
def bind9(config: Path | None, query_log: Path, server: str, zones: str, from_start: bool, **options: Any) -> None:
    """Follows BIND 9's query log and publishes dns_query_log."""
    from solowire import process
    from solowire.publisher import Publisher
    from sources.server import run_bind9

    settings = _load(config, "source", **options)

    async def run(stop: asyncio.Event) -> None:
        process.report_ready()
        async with Publisher(settings.url, _token(settings, PUBLISH)) as publisher:
            await run_bind9(query_log, publisher, server=server, from_start=from_start, zones=_listed(zones), stop=stop)

    process.run(run)


@cli.command()
@click.option("--user", required=True, help="User name.")
@click.option("--role", default="viewer", show_default=True, help="Role.")
@click.option("--zones", default="", help="Zones that the user may see, separated by commas. [default: all]")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="NAME=VALUE",
    help="What of an attribute, such as view=internal, the user may see; repeatable. [default: all]",
)
@click.option("--tenant", default="", help="Whose user it is. [default: nobody's]")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="Its life, such as 90, 30s, 5m, 1h, 2d.")
@common
def token(
    config: Path | None,
    user: str,
    role: str,
    zones: str,
    scopes: tuple[str, ...],
    tenant: str,
    ttl: float,
    **options: Any,
) -> None:
    """Prints a token signed with the configured secret."""
    from solowire.roles import roles_of
    from solowire.tokens import Tokens

    settings = _load(config, None, **options)
    roles = roles_of(settings)
    if role not in roles:
        raise ConfigError(f"--role {role}: not known; known are {', '.join(roles)}")
    secret, _ = secret_of(settings, create=False)
    try:
        signed = _signed(settings, secret, user, role, ttl, read_scope_options(_listed(zones), scopes), tenant)
        Tokens(secret, roles).identify(signed, time.time())
    except (InvalidToken, OverflowError, ValueError) as error:
        raise ConfigError(f"such a token would be refused: {error}") from None
    click.echo(signed)


@cli.command()
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
    from solowire.line_publisher import publish_input, read_input
    from solowire.publisher import Publisher

    if (data is None) is not (type == "-"):
        raise click.UsageError("write TYPE JSON, TYPE - to read the data, or - alone to read events")
    settings = _load(config, None, **options)
    given = {n: v for n, v in (("priority", priority), ("user", user), ("key", key)) if v is not None}
    if type == "-":
        sys.exit(publish_input(settings.url, _token(settings, PUBLISH), given, retry_for=PUBLISH_SECONDS))
    if data is None or data == "-":
        data = read_input()
    try:
        payload = msgspec.json.decode(data)  # strict: NaN and numbers out of range would arrive as null
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ConfigError("JSON: the data of an event is an object, {…}")
    event: dict[str, Any] = {"type": type, "data": payload}
    event |= given

    async def run() -> int:
        async with Publisher(settings.url, _token(settings, PUBLISH), retry_for=PUBLISH_SECONDS) as publisher:
            return (await publisher.publish_now(event)).last_offset

    try:
        click.echo(asyncio.run(run()))
    except PublishRefused as error:
        if error.status:
            url = error.url or f"{settings.url}/v1/events"
            raise PublishRefused(error.status, error.problem, url=url, hint=error.hint) from None
        title, detail = (error.problem.get(part, "no reason given") for part in ("title", "detail"))
        raise ClientError(f"{settings.url}: {title}: {detail}") from None


@cli.command()
@click.argument("types", nargs=-1)
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as zone=example.com; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@remote
def tail(
    config: Path | None,
    types: tuple[str, ...],
    filters: tuple[str, ...],
    as_json: bool,
    count: int | None,
    **options: Any,
) -> None:
    """Follows events in the terminal.

    All that you may see, or TYPES, such as dns.* or security_alert.
    """
    from solowire.tailing import follow

    settings = _load(config, None, **options)
    wanted: dict[str, list[str]] = {}
    for entry in filters:
        name, sign, value = entry.partition("=")
        if not sign:
            raise ConfigError(f"--filter {entry}: write NAME=VALUE")
        wanted.setdefault(name, []).append(value)
    token = _token(settings, ADMINISTER, connects=True)
    asyncio.run(follow(settings.url, token, types, wanted, as_json=as_json, count=count))


@cli.command()
@click.option("--watch", is_flag=True, help="Keep the table up to date.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table; with --watch a line each second.")
@remote
def stats(config: Path | None, watch: bool, as_json: bool, **options: Any) -> None:
    """The shards, in a table."""
    from solowire.statistics import show

    settings = _load(config, None, **options)
    asyncio.run(show(settings.url, _token(settings, ADMINISTER), watch=watch, as_json=as_json))


@cli.command()
@click.argument("shard", type=click.IntRange(0, 255))
@click.option("--force", is_flag=True, help="Also the last shard, without asking.")
@remote
def drain(config: Path | None, shard: int, force: bool, **options: Any) -> None:
    """Empties SHARD, and ends it.

    It takes no new users, and sends its own to the others.
    """
    from solowire.statistics import drain as drained
    from solowire.statistics import is_last

    settings = _load(config, None, **options)
    token = _token(settings, ADMINISTER)
    if not force and asyncio.run(is_last(settings.url, token, shard)):
        text = f"shard {shard} is the last one that takes users: without it nobody can connect"
        if not sys.stdin.isatty():
            raise ConfigError(f"{text}; drain it all the same with --force")
        click.confirm(f"{text}. Drain it all the same?", abort=True)
    asyncio.run(drained(settings.url, token, shard))


@cli.command()
@click.argument("shard", type=click.IntRange(0, 255))
@remote
def undrain(config: Path | None, shard: int, **options: Any) -> None:
    """Ends the draining of SHARD: it takes users again."""
    from solowire.statistics import undrain as undrained

    settings = _load(config, None, **options)
    users = asyncio.run(undrained(settings.url, _token(settings, ADMINISTER), shard))
    click.echo(f"shard {shard} stays, with {users:,} users")


@cli.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Prints a script that makes SHELL complete this command.

    For bash: eval "$(solowire completion bash)" in ~/.bashrc; for zsh the same in ~/.zshrc; for fish: solowire
    completion fish > ~/.config/fish/completions/solowire.fish
    """
    click.echo(completion_script(cli, shell))


@cli.command("config")
@common
def show_config(config: Path | None, **options: Any) -> None:
    """Prints the settings in force, secrets masked."""
    settings = _load(config, None, **options)
    for line in list_settings(settings):
        click.echo(line)


def _load(config: Path | None, role: str | None, *, index: int | None = None, **options: Any) -> Settings:
    settings = load(config, **options)
    context = {name: value for name, value in (("role", role), ("shard", index)) if value is not None}
    logs.configure(settings.log_level if role else "warning", settings.log_format, **context)
    if role:
        try:
            os.getcwd()
        except FileNotFoundError:
            raise ConfigError("the working directory is gone; start from another, such as /") from None
    return settings


def _token(settings: Settings, permission: str, *, connects: bool = False) -> str | Callable[[], str]:
    """The configured token; else one signed here, anew whenever it is asked for, for a user of this process alone."""
    if settings.token is not None:
        return settings.token.get_secret_value()
    secret, _ = secret_of(settings, create=False)
    role = _role(settings, permission, connects=connects)
    user = f"cli:{_login()}@{socket.gethostname()}:{os.getpid()}"
    return lambda: _signed(settings, secret, user, role, TOKEN_SECONDS)


def _role(settings: Settings, permission: str, *, connects: bool = False) -> str:
    """The role to sign for: the widest for administrators, else the one that grants little beside `permission`.

    Raises ConfigError if there is none. connects: it must be allowed to open a connection.
    """
    from solowire.roles import roles_of

    able = {
        name: role
        for name, role in roles_of(settings).items()
        if grants(role.permissions, permission) and (role.may_connect or not connects)
    }
    if not able:
        which = f"{permission!r} and may connect" if connects else repr(permission)
        raise ConfigError(f"roles file {settings.roles_file}: no role grants {which}, which is what to sign for here")
    everything = permission == ADMINISTER
    return min(able, key=lambda name: ("*" in able[name].permissions) is not everything)


def _signed(
    settings: Settings,
    secret: str,
    user: str,
    role: str,
    ttl: float,
    scopes: Mapping[str, tuple[str, ...]] | None = None,
    tenant: str = "",
) -> str:
    from solowire.roles import roles_of
    from solowire.tokens import Tokens

    tokens = Tokens(secret, roles_of(settings))
    return tokens.sign(user, role, now=time.time(), ttl=ttl, scopes=scopes, tenant=tenant)


def _command() -> str:
    """This command, as it can be typed here."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m solowire"
    found = shutil.which("solowire")
    return (
        "solowire" if found and os.path.realpath(found) == os.path.realpath(sys.argv[0]) else shlex.quote(sys.argv[0])
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
