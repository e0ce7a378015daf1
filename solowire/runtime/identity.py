"""Tokens and a provider's keys as the settings say: what each process makes of them when it starts."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from solowire.auth.key_source import KeySource
from solowire.auth.tokens import Tokens
from solowire.errors import ConfigError
from solowire.model.access import Role
from solowire.model.domain import Domain
from solowire.runtime.domain_loader import name_scopes
from solowire.runtime.roles import load_roles
from solowire.runtime.settings import Settings
from solowire.runtime.signing_secrets import load_secrets


def make_tokens(settings: Settings, roles: Mapping[str, Role], domain: Domain, *, create: bool) -> Tokens:
    """Makes the verifier and signer of tokens of the settings.

    create: whether a secret may be made. Raises ConfigError.
    """
    secrets, _ = load_secrets(settings, create=create)
    _check_roles(settings, roles)
    rules = settings.auth.token_rules
    mapping = msgspec.structs.replace(rules.mapping, scope_claims=name_scopes(settings, domain))
    return Tokens(
        secrets,
        roles,
        settings.auth.leeway_s,
        domain=domain,
        rules=msgspec.structs.replace(rules, mapping=mapping),
        accepts_secret=settings.auth.accept_secret_tokens,
        has_provider=settings.auth.jwks is not None,
    )


def reload_identity(settings: Settings, tokens: Tokens, roles: dict[str, Role]) -> None:
    """Has secrets and roles of settings that were read again in force. roles: changed in place, wherever it is known.

    Raises ConfigError, and nothing has changed.
    """
    fresh = load_roles(settings, tokens.domain.catalog)
    _check_roles(settings, fresh)
    secrets, _ = load_secrets(settings, create=False)
    roles.clear()
    roles.update(fresh)
    tokens.set_secrets(secrets, roles)


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
