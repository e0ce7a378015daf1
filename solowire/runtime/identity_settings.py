"""The settings that say whom to believe: secrets, a provider's keys, and what its tokens' claims mean."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode

from solowire.auth.claims import ClaimMapping, TokenRules
from solowire.auth.key_places import MAX_SECRETS, check_place
from solowire.errors import ConfigError

SECRET_CHARACTERS = 16


def split_list(value: Any) -> Any:
    """A list, also as one text with commas or, as pydantic writes them in the environment, in JSON."""
    if not isinstance(value, str):
        return value
    return [part for piece in value.strip().strip("[]").split(",") if (part := piece.strip(" \t\"'"))]


def _split_secrets(value: Any) -> Any:
    """The same, of what may hold any character: one that has a comma in it is written in a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("it begins with [ and is no JSON list") from None
    return [part for piece in value.split(",") if (part := piece.strip())]


class IdentitySettings(BaseSettings):
    """Part of `solowire.runtime.settings.Settings`."""

    secret: SecretStr | None = Field(
        None, description="signs tokens and tickets; made in the data directory if not set"
    )
    accepted_secrets: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split_secrets)] = Field(
        default_factory=list, description="more secrets that tokens may be signed with, while they are being changed"
    )
    accept_secret_tokens: bool = Field(
        True, description="tokens signed with a secret are accepted; false: those of `jwks` alone"
    )
    jwks: str | None = Field(
        None, description="URL or file of the public keys (JWK set) that RS256, ES256 and EdDSA tokens are signed with"
    )
    jwks_refresh_s: float = Field(300.0, ge=1, le=86400, description="how often they are read again")
    jwks_stale_s: float = Field(
        86400.0, ge=0, le=30 * 86400, description="for how long they are used on while they can't be read"
    )
    token_issuers: Annotated[list[str], NoDecode, BeforeValidator(split_list)] = Field(
        default_factory=list, description="what `iss` of a token may be; * for anything"
    )
    token_audiences: Annotated[list[str], NoDecode, BeforeValidator(split_list)] = Field(
        default_factory=list, description="what `aud` of a token may be; * for anything"
    )
    token_max_life_s: float = Field(
        366 * 86400.0, ge=60, le=10 * 366 * 86400, description="longest life of a token, and so of a revocation"
    )
    claim_user: str = Field("sub", min_length=1, description="the claim of a provider's token that gives the user")
    claim_role: str = Field("role", min_length=1, description="… that gives the role: a text, or a list of texts")
    claim_tenant: str = Field("tenant", min_length=1, description="… that gives the tenant")
    claim_scopes: str = Field("scopes", min_length=1, description="… that gives all scopes: {zones: [values]}")
    scope_claims: dict[str, str] = Field(
        default_factory=dict, description="scope → the claim of a provider's token that gives its values"
    )
    claim_roles: dict[str, str] = Field(
        default_factory=dict, description="value of the role claim → role; of several the first here counts"
    )
    default_role: str | None = Field(
        None, description="role of a provider's token that names none; default: it is refused"
    )
    forwarded: Literal["auto", "x-forwarded", "forwarded"] = Field(
        "auto", description="the headers that trusted_proxies write; auto: X-Forwarded-…, or else Forwarded"
    )

    @property
    def claim_mapping(self) -> ClaimMapping:
        return ClaimMapping(
            self.claim_user,
            self.claim_role,
            self.claim_tenant,
            self.claim_scopes,
            self.scope_claims,
            self.claim_roles,
            self.default_role,
        )

    @property
    def token_rules(self) -> TokenRules:
        return TokenRules(
            tuple(self.token_issuers), tuple(self.token_audiences), self.token_max_life_s, self.claim_mapping
        )

    def check_identity(self) -> None:
        """Raises ValueError for settings of these that contradict each other."""
        for name, secrets in (("secret", [self.secret]), ("accepted_secrets", self.accepted_secrets)):
            if any(s is not None and len(s.get_secret_value()) < SECRET_CHARACTERS for s in secrets):
                raise ValueError(f"{name} must have {SECRET_CHARACTERS} characters or more")
        if len(self.accepted_secrets) >= MAX_SECRETS:
            raise ValueError(f"accepted_secrets: {MAX_SECRETS - 1} are the most")
        if self.jwks is None:
            if not self.accept_secret_tokens:
                raise ValueError("accept_secret_tokens is false and there is no jwks: no token could be accepted")
        else:
            try:
                check_place(self.jwks)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            for name, allowed in (("token_issuers", self.token_issuers), ("token_audiences", self.token_audiences)):
                if not allowed:
                    raise ValueError(
                        f"{name} must be set where jwks is: the provider signs tokens for others with the same keys; "
                        "* if that is as it should be"
                    )
