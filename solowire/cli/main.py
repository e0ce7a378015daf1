"""The command `solowire` (design, section 7). Exit status: 0, 1 for what failed, 2 for a wrong setting or usage.

Imports of the roles stand inside the commands: `solowire token` should not load a web server.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shlex
import shutil
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import structlog

from solowire import __version__
from solowire.cli import backup_commands as cli_backups
from solowire.cli import event_commands as cli_events
from solowire.cli import source_commands as cli_sources
from solowire.cli import user_commands as cli_users
from solowire.cli.command_options import PathOption, common, load_server_settings, load_settings, remote
from solowire.cli.command_tokens import TOKEN_SECONDS, choose_role, make_token, sign_token
from solowire.cli.completion import SHELLS, VARIABLE, completion_script
from solowire.errors import ClientError, ConfigError
from solowire.model.access import ADMINISTER
from solowire.observability.process_tracer import read_tracer_settings
from solowire.runtime import logging as logs
from solowire.runtime.data_directory import (
    JOURNAL_FILE,
    SECRET_FILE,
    TOKEN_FILE,
    make_directories,
    write_private,
)
from solowire.runtime.directory_lock import router_lock, supervisor_lock
from solowire.runtime.settings import Settings
from solowire.runtime.settings_listing import list_settings
from solowire.runtime.signing_secrets import load_secret

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """The console script."""
    warnings.filterwarnings("ignore", message="The HMAC key is")  # PyJWT's; `secret_of` says it in our words
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an old locale lacks characters: no reason to end
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
    except UnicodeEncodeError as error:
        if not any("\udc80" <= character <= "\udcff" for argument in sys.argv for character in argument):
            raise
        click.echo(f"solowire: what is written on the command line is not UTF-8: {error.object[:80]!a}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what waits there would be tried again at the end
        click.echo(f"solowire: standard output can't be written: {error.strerror}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="solowire")
def cli() -> None:
    """One live WebSocket per user, whatever the number of tabs, panels and event types."""


for command in (
    cli_events.publish,
    cli_events.tail,
    cli_events.history,
    cli_sources.source,
    cli_users.token,
    cli_users.disconnect,
    cli_users.revoke,
    cli_users.revocations,
    cli_users.unrevoke,
    cli_backups.backup,
    cli_backups.restore,
):
    cli.add_command(command)


@cli.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="The gateway's port; shards take the ports after it. [default: 8000]")
@click.option("--shards", type=int, help="Number of shards. [default: one per core]")
@common
def up(config: Path | None, **options: Any) -> None:
    """Router, shards and gateway on this machine.

    Ctrl-C drains and stops them.
    """
    from solowire.cli.supervisor import ChildFailed, Supervisor
    from solowire.runtime import process
    from solowire.runtime.backplane_keys import load_member_keys, load_router_keys
    from solowire.runtime.domain_loader import load_domain
    from solowire.runtime.identity import make_tokens
    from solowire.runtime.roles import load_roles
    from solowire.runtime.server_certificate import check_certificate

    settings = load_server_settings(config, "up", **options)
    for setting, way_out in (
        ("shard.port", "the shards of `up` take the ports after --port"),
        ("listen.api_port", "`up` takes router.metrics_port and shard.api_port"),
    ):
        if settings.is_set(setting):
            raise ConfigError(f"{settings.name_setting(setting)} is for one process alone; {way_out}")
    if settings.is_networked and not settings.shard.api_port:
        raise ConfigError("`up` with a tcp backplane needs SOLOWIRE_SHARD__API_PORT, a port for the first shard's API")
    choose_role(
        settings, ADMINISTER, connects=True
    )  # what every child would refuse, and we at the end, is refused here, once
    _ = settings.backplane_address
    read_tracer_settings(os.environ)
    load_router_keys(settings)
    load_member_keys(settings)
    settings.find_advertised_host()
    make_directories(settings)
    _, made = load_secret(settings, create=True)
    if made and (settings.data_dir / JOURNAL_FILE).exists():
        hint = "the one that was there is gone: tokens that it signed are refused"
        structlog.get_logger("solowire.up").warning("secret_made", path=str(settings.data_dir / SECRET_FILE), hint=hint)
    domain = load_domain(settings)
    make_tokens(settings, load_roles(settings, domain.catalog), domain, create=False)  # what every child would refuse
    check_certificate(settings, time.time())  # the same
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
            telling = (settings, supervisor.gateway_url, made)
            threading.Thread(target=_print_addresses, args=telling, daemon=True).start()
            await supervisor.watch(stop)
            logs.write("Stopping …")
        except ChildFailed as failed:
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


def _print_addresses(settings: Settings, url: str, made: bool) -> None:
    role = choose_role(settings, ADMINISTER, connects=True)
    signs = settings.auth.accept_secret_tokens
    token = sign_token(settings, "admin", role, TOKEN_SECONDS) if signs else "(your provider makes them)"
    if (
        signs and not sys.stdout.isatty()
    ):  # a log, a pipe: it is kept where more people read it than should have the token
        file = settings.data_dir.absolute() / TOKEN_FILE
        try:
            write_private(file, token + "\n")
        except OSError as error:
            token = f"(can't be written to {file}: {error.strerror}; `solowire token` prints one)"
        else:
            token = f"in the file {file}"
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
    from solowire.router.server import serve

    serve(load_server_settings(config, "router", **options))


@cli.command()
@click.option("--index", type=click.IntRange(0, 255), help="Which shard it is, from 0. [default: SOLOWIRE_SHARD_INDEX]")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", "shard_port", type=int, help="Port to listen on. [default: the gateway's + 1 + index]")
@common
def shard(config: Path | None, index: int | None, shard_port: int | None, **options: Any) -> None:
    """One shard alone, for containers."""
    from solowire.workers.server import serve

    settings = load_server_settings(config, "shard", shard_index=index, shard={"port": shard_port}, **options)
    if settings.shard_index is None:
        raise ConfigError("which shard is this? name it by --index, or by SOLOWIRE_SHARD_INDEX")
    serve(settings, settings.shard_index)


@cli.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on. [default: 8000]")
@common
def gateway(config: Path | None, **options: Any) -> None:
    """The gateway alone, for containers."""
    from solowire.gateway.server import serve

    serve(load_server_settings(config, "gateway", **options))


@cli.command()
@click.option("--watch", is_flag=True, help="Keep the table up to date.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table; with --watch a line each second.")
@remote
def stats(config: Path | None, watch: bool, as_json: bool, **options: Any) -> None:
    """The shards, in a table."""
    from solowire.cli.stats import show_stats

    settings = load_settings(config, None, **options)
    asyncio.run(show_stats(settings.url, make_token(settings, ADMINISTER), watch=watch, as_json=as_json))


@cli.command()
@click.argument("shard", type=click.IntRange(0, 255))
@click.option("--force", is_flag=True, help="Also the last shard, without asking.")
@remote
def drain(config: Path | None, shard: int, force: bool, **options: Any) -> None:
    """Empties SHARD, and ends it.

    It takes no new users, and sends its own to the others.
    """
    from solowire.cli.stats import drain as drained
    from solowire.cli.stats import is_last

    settings = load_settings(config, None, **options)
    token = make_token(settings, ADMINISTER)
    if not force and asyncio.run(is_last(settings.url, token, shard)):
        text = f"shard {shard} is the last one that takes users: without it nobody can connect"
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigError(f"{text}; drain it all the same with --force")
        click.confirm(f"{text}. Drain it all the same?", abort=True)
        force = True
    asyncio.run(drained(settings.url, token, shard, is_forced=force))


@cli.command()
@click.argument("shard", type=click.IntRange(0, 255))
@remote
def undrain(config: Path | None, shard: int, **options: Any) -> None:
    """Ends the draining of SHARD: it takes users again."""
    from solowire.cli.stats import undrain as undrained

    settings = load_settings(config, None, **options)
    users = asyncio.run(undrained(settings.url, make_token(settings, ADMINISTER), shard))
    click.echo(f"shard {shard} stays, with {users:,} users")


@cli.command()
@click.option("--out", type=PathOption(), required=True, help="Directory for the four files.")
def keys(out: Path) -> None:
    """Makes the keys of a system on several hosts.

    Writes router.key, router.pub, member.key and member.pub. The router takes router.key and member.pub, shards and
    gateways member.key and router.pub.
    """
    from solowire.cli.key_files import write_keys

    click.echo("\n".join(write_keys(out)))


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
    from solowire.runtime.domain_loader import load_domain
    from solowire.runtime.identity import check_identity
    from solowire.runtime.roles import load_roles

    settings = load_settings(config, None, **options)
    domain = load_domain(settings)  # what the processes would refuse
    check_identity(settings, load_roles(settings, domain.catalog), domain)
    for line in list_settings(settings):
        click.echo(line)


def _command() -> str:
    """This command, as it can be typed here."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m solowire"
    found = shutil.which("solowire")
    return (
        "solowire" if found and os.path.realpath(found) == os.path.realpath(sys.argv[0]) else shlex.quote(sys.argv[0])
    )
