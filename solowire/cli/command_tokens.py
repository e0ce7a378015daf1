"""The tokens that commands of `solowire` use: the one that is given, or one that is signed here."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from solowire.errors import ConfigError
from solowire.model.access import ADMINISTER, is_granted
from solowire.runtime.settings import Settings
from solowire.runtime.signing_secrets import load_secret
from solowire.sdk.arguments import check_token_text

TOKEN_SECONDS = 12 * 3600.0
MAX_TOKEN_FILE_BYTES = 64 * 1024


def make_token(
    settings: Settings, permission: str, *, wished: str | None = None, connects: bool = False
) -> str | Callable[[], str]:
    """The configured token, or its file's; else one signed here, anew whenever it is asked for, for this process alone.

    wished: a permission to have beside the other, if a role grants both. Raises ConfigError.
    """
    if settings.token is not None:
        return settings.token.get_secret_value()
    if settings.token_file is not None:
        return open_token_file(settings.token_file, settings.name_setting("token_file"))
    need_secret_tokens(settings)
    load_secret(settings, create=False)  # says now that there is none
    role = choose_role(settings, permission, wished=wished, connects=connects)
    user = f"cli:{_login()}@{socket.gethostname()}:{os.getpid()}"
    return lambda: sign_token(settings, user, role, TOKEN_SECONDS)


def open_token_file(path: Path, setting: str) -> Callable[[], str]:
    """What reads the token of a file, anew each time. Raises ConfigError if there is none now.

    Later it raises OSError or ValueError instead, and whoever needs a token tries again.
    """

    def read() -> str:
        with path.open("rb") as file:
            raw = file.read(MAX_TOKEN_FILE_BYTES)
        return check_token_text(raw.decode("ascii", "replace"), f"the token in {path}")

    try:
        read()
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None
    return read


def need_secret_tokens(settings: Settings) -> None:
    """Loads the secret that tokens are signed with. Raises ConfigError."""
    if not settings.auth.accept_secret_tokens:
        raise ConfigError("SOLOWIRE_AUTH__ACCEPT_SECRET_TOKENS is false: give a token of your provider with --token")


def choose_role(settings: Settings, permission: str, *, wished: str | None = None, connects: bool = False) -> str:
    """The role to sign for: the widest for administrators, else the one that grants little beside `permission`.

    Raises ConfigError if there is none. wished: granted too, if there is such a role. connects: it must be allowed to
    open a connection.
    """
    from solowire.runtime.domain_loader import load_domain
    from solowire.runtime.roles import load_roles

    able = {
        name: role
        for name, role in load_roles(settings, load_domain(settings).catalog).items()
        if is_granted(role.permissions, permission) and (role.may_connect or not connects)
    }
    if not able:
        which = f"{permission!r} and may connect" if connects else repr(permission)
        raise ConfigError(f"roles file {settings.roles_file}: no role grants {which}, which is what to sign for here")
    everything = permission == ADMINISTER

    def rank(name: str) -> tuple[bool, bool]:
        permissions = able[name].permissions
        return ("*" in permissions) is not everything, wished is not None and not is_granted(permissions, wished)

    return min(able, key=rank)


def sign_token(
    settings: Settings,
    user: str,
    role: str,
    ttl: float,
    scopes: Mapping[str, tuple[str, ...]] | None = None,
    tenant: str = "",
) -> str:
    """Raises ConfigError if there is no secret to sign with."""
    from solowire.runtime import process
    from solowire.runtime.domain_loader import load_domain
    from solowire.runtime.identity import make_tokens
    from solowire.runtime.roles import load_roles

    domain = load_domain(settings)
    tokens = make_tokens(settings, load_roles(settings, domain.catalog), domain, create=False)
    return tokens.sign_token(
        user, role, now=time.time(), ttl=ttl, scopes=scopes, tenant=tenant, token_id=process.new_id()
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"
