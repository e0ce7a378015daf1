"""The commands of `solowire` about users: tokens for them, and throwing them out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from solowire.cli.command_options import common, load_settings, read_zones, remote
from solowire.cli.command_tokens import make_token, need_secret_tokens, sign_token
from solowire.cli.scope_options import read_scope_options
from solowire.errors import ConfigError, InvalidToken
from solowire.model.access import ADMINISTER
from solowire.runtime.durations import Duration


@click.command()
@click.option("--user", required=True, help="User name.")
@click.option("--role", default="viewer", show_default=True, help="Role.")
@click.option("--zones", help="Zones that the user may see, separated by commas. [default: all]")
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
    zones: str | None,
    scopes: tuple[str, ...],
    tenant: str,
    ttl: float,
    **options: Any,
) -> None:
    """Prints a token signed with the configured secret."""
    from solowire.runtime.domain_loader import load_domain
    from solowire.runtime.identity import make_tokens
    from solowire.runtime.roles import load_roles

    settings = load_settings(config, None, **options)
    domain = load_domain(settings)
    shown = read_scope_options(read_zones(zones), scopes, domain)
    roles = load_roles(settings, domain.catalog)
    if role not in roles:
        raise ConfigError(f"--role {role}: not known; known are {', '.join(roles)}")
    need_secret_tokens(settings)
    try:
        signed = sign_token(settings, user, role, ttl, shown, tenant)
        make_tokens(settings, roles, domain, create=False).identify(signed, time.time())
    except (InvalidToken, OverflowError, ValueError) as error:
        raise ConfigError(f"such a token would be refused: {error}") from None
    click.echo(signed)


@click.command()
@click.argument("user")
@remote
def disconnect(config: Path | None, user: str, **options: Any) -> None:
    """Closes all connections of USER (4410).

    It may come back: `revoke` keeps it out.
    """
    from solowire.cli import user_operations as user_commands

    settings = load_settings(config, None, **options)
    click.echo(user_commands.disconnect(settings.url, make_token(settings, ADMINISTER), user))


@click.command()
@click.option("--user", help="All tokens of this user, also those to come; with --issued-before only those.")
@click.option("--jti", help="The one token with this id.")
@click.option(
    "--issued-before", metavar="TIME", help="Tokens issued before: unix seconds, 2030-12-31T12:00:00Z or now."
)
@click.option("--until", metavar="TIME", help="When they have all expired. [default: when they must have]")
@click.option("--reason", help="For those who read the list.")
@remote
def revoke(config: Path | None, **options: Any) -> None:
    """Makes tokens void.

    Connections that they opened are closed, and they open none.
    """
    from solowire.cli import user_operations as user_commands

    asked = {name: options.pop(name) for name in ("user", "jti", "issued_before", "until", "reason")}
    settings = load_settings(config, None, **options)
    user_commands.check_revocation(asked)
    given = {name: value for name, value in asked.items() if value is not None}
    click.echo(user_commands.revoke(settings.url, make_token(settings, ADMINISTER), given))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@remote
def revocations(config: Path | None, as_json: bool, **options: Any) -> None:
    """Lists the revocations in force."""
    from solowire.cli import user_operations as user_commands

    settings = load_settings(config, None, **options)
    for line in user_commands.list_revocations(settings.url, make_token(settings, ADMINISTER), as_json=as_json):
        click.echo(line)


@click.command()
@click.argument("revocation", metavar="ID")
@remote
def unrevoke(config: Path | None, revocation: str, **options: Any) -> None:
    """Ends the revocation ID, as `revocations` lists it."""
    from solowire.cli import user_operations as user_commands

    settings = load_settings(config, None, **options)
    user_commands.unrevoke(settings.url, make_token(settings, ADMINISTER), revocation)
