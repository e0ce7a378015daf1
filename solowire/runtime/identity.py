"""Tokens and a provider's keys as the settings say: what each process makes of them when it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec
import structlog

from solowire.auth.claims import TokenRules
from solowire.auth.key_source import KeySource
from solowire.auth.tokens import Tokens
from solowire.errors import ConfigError
from solowire.model.access import Role, is_granted
from solowire.model.domain import Domain
from solowire.runtime.data_directory import JOURNAL_FILE, SECRET_FILE
from solowire.runtime.domain_loader import name_scopes
from solowire.runtime.roles import load_roles
from solowire.runtime.settings import Settings
from solowire.runtime.settings_changes import ReloadNote
from solowire.runtime.signing_secrets import load_secrets
from solowire.runtime.terminal import PARENT

logger = structlog.get_logger("solowire.settings")


def make_tokens(settings: Settings, roles: Mapping[str, Role], domain: Domain, *, create: bool) -> Tokens:
    """Makes the verifier and signer of tokens of the settings.

    create: whether the caller, a process of the system, may make a secret. Raises ConfigError.

    It may where a system begins: as a child of `up`, which has made one, or beside a log, a new secret would be another
    than the one that users' tokens are signed with.
    """
    rules = check_identity(settings, roles, domain)
    if create:
        _check_secret_not_lost(settings)
    secrets, made = load_secrets(settings, create=create)
    if made:
        _report_made(settings)
    return Tokens(
        secrets,
        roles,
        settings.auth.leeway_s,
        domain=domain,
        rules=rules,
        accepts_secret=settings.auth.accept_secret_tokens,
        has_provider=settings.auth.jwks is not None,
    )


def make_first_secret(settings: Settings) -> None:
    """Makes a secret where a system begins, before there is a log: whoever comes behind that takes one for lost.

    Raises ConfigError.
    """
    directory = settings.need_data_dir()
    if settings.secret is None and PARENT not in os.environ and not (directory / JOURNAL_FILE).exists():
        _, made = load_secrets(settings, create=True)
        if made:
            _report_made(settings)


def _report_made(settings: Settings) -> None:
    hint = "tokens signed with another are refused: processes with other data directories need this one"
    logger.warning("secret_made", path=str(settings.data_dir / SECRET_FILE), hint=hint)


def check_identity(settings: Settings, roles: Mapping[str, Role], domain: Domain) -> TokenRules:
    """What a token has to say, with the names of roles and scopes known. Raises ConfigError."""
    _check_roles(settings, roles)
    rules = settings.auth.token_rules
    mapping = msgspec.structs.replace(rules.mapping, scope_claims=name_scopes(settings, domain))
    return msgspec.structs.replace(rules, mapping=mapping)


def reload_identity(settings: Settings, tokens: Tokens, roles: dict[str, Role]) -> ReloadNote | None:
    """Has secrets and roles of settings that were read again in force. roles: changed in place, wherever it is known.

    What it returns names the roles that grant more than before, if there are any. Raises ConfigError, and nothing has
    changed.
    """
    fresh = load_roles(settings, tokens.domain.catalog)
    _check_roles(settings, fresh)
    secrets, _ = load_secrets(settings, create=False)
    widened = [name for name, role in fresh.items() if name in roles and _is_wider(role, roles[name])]
    roles.clear()
    roles.update(fresh)
    tokens.set_secrets(secrets, roles)
    if not widened:
        return None
    hint = "widened_roles: connections that are open have that when they come back"
    return ReloadNote({"widened_roles": widened}, hint)


def _is_wider(role: Role, before: Role) -> bool:
    """Whether it grants something that it did not."""
    return not all(is_granted(before.permissions, permission) for permission in role.permissions)


def _check_secret_not_lost(settings: Settings) -> None:
    path = settings.need_data_dir() / SECRET_FILE
    if settings.secret is not None or path.exists():
        return
    if PARENT in os.environ or (path.parent / JOURNAL_FILE).exists():
        raise ConfigError(
            f"the secret is gone: {path} doesn't exist, and users' tokens are signed with it; put it back, "
            "or end the whole system and start `solowire up`, which makes a new one that refuses those tokens"
        )


def _check_roles(settings: Settings, roles: Mapping[str, Role]) -> None:
    named = {
        f"{settings.name_setting('auth.claims.role_mapping')}: {value!r}": role
        for value, role in settings.auth.claims.role_mapping.items()
    }
    if settings.auth.claims.default_role is not None:
        named[settings.name_setting("auth.claims.default_role")] = settings.auth.claims.default_role
    for place, role in named.items():
        if role not in roles:
            raise ConfigError(f"{place}: the role {role!r} is not known; known are {', '.join(roles)}")


def make_key_source(settings: Settings, tokens: Tokens) -> KeySource | None:
    """Where the keys of a provider come from, if there is one. To be started, and closed."""
    if settings.auth.jwks is None:
        return None
    return KeySource(
        settings.auth.jwks, tokens.set_keys, refresh_s=settings.auth.jwks_refresh_s, stale_s=settings.auth.jwks_stale_s
    )
