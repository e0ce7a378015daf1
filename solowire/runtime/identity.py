"""Tokens and a provider's keys as the settings say: what each process makes of them when it starts."""

from __future__ import annotations

from collections.abc import Mapping

from solowire.auth.key_source import KeySource
from solowire.auth.tokens import Tokens
from solowire.errors import ConfigError
from solowire.model.access import Role
from solowire.runtime.roles import roles_of
from solowire.runtime.settings import Settings, secrets_of


def tokens_of(settings: Settings, roles: Mapping[str, Role], *, create: bool) -> Tokens:
    """create: whether a secret may be made. Raises ConfigError."""
    secrets, _ = secrets_of(settings, create=create)
    _check_roles(settings, roles)
    return Tokens(
        secrets,
        roles,
        settings.token_leeway_s,
        rules=settings.token_rules,
        accepts_secret=settings.accept_secret_tokens,
        has_provider=settings.jwks is not None,
    )


def reload_identity(settings: Settings, tokens: Tokens, roles: dict[str, Role]) -> None:
    """Has secrets and roles of settings that were read again in force. roles: changed in place, wherever it is known.

    Raises ConfigError, and nothing has changed.
    """
    fresh = roles_of(settings)
    _check_roles(settings, fresh)
    secrets, _ = secrets_of(settings, create=False)
    roles.clear()
    roles.update(fresh)
    tokens.use_secrets(secrets, roles)


def _check_roles(settings: Settings, roles: Mapping[str, Role]) -> None:
    named = {f"claim_roles: {value!r}": role for value, role in settings.claim_roles.items()}
    if settings.default_role is not None:
        named["default_role"] = settings.default_role
    for place, role in named.items():
        if role not in roles:
            raise ConfigError(f"{place}: the role {role!r} is not known; known are {', '.join(roles)}")


def key_source_of(settings: Settings, tokens: Tokens) -> KeySource | None:
    """Where the keys of a provider come from, if there is one. To be started, and closed."""
    if settings.jwks is None:
        return None
    return KeySource(settings.jwks, tokens.use_keys, refresh_s=settings.jwks_refresh_s, stale_s=settings.jwks_stale_s)
