"""The settings that say whom to believe: a provider's keys, and what its tokens' claims mean."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from solowire.auth.claims import ClaimMapping, TokenRules
from solowire.auth.key_places import check_place
from solowire.errors import ConfigError
from solowire.runtime.settings.section import Section, Table, TextList, make_conflict


class ClaimSettings(Section):
    """What the claims of a provider's tokens mean.

    A name is that of a claim, or a path with dots such as a.b.
    """

    user: str = Field("sub", min_length=1, description="the claim of a provider's token that gives the user")
    role: str = Field("role", min_length=1, description="… that gives the role: a text, or a list of texts")
    tenant: str = Field("tenant", min_length=1, description="… that gives the tenant")
    scopes: str = Field("scopes", min_length=1, description="… that gives all scopes: {zones: [values]}")
    scope_mapping: Table[str] = Field(
        default_factory=dict,
        description="scope → the claim of a provider's token that gives its values",
    )
    role_mapping: Table[str] = Field(
        default_factory=dict,
        description="value of the role claim → role; of several the first here counts",
    )
    default_role: str | None = Field(
        None, description="role of a provider's token that names none; default: it is refused"
    )


class AuthSettings(Section):
    """Whom to believe."""

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
    issuers: TextList = Field(
        default_factory=list,
        description="what `iss` of a token may be; * for anything",
    )
    audiences: TextList = Field(
        default_factory=list,
        description="what `aud` of a token may be; * for anything",
    )
    max_token_life_s: float = Field(
        366 * 86400.0, ge=60, le=10 * 366 * 86400, description="longest life of a token, and so of a revocation"
    )
    leeway_s: float = Field(
        60.0, ge=0, le=3600, description="how far nbf and iat of a token may be ahead of this machine's clock"
    )
    bad_token_rate: float = Field(1.0, gt=0, le=1e9, description="wrong tokens per second that one address may show")
    bad_token_burst: float = Field(20.0, ge=1, le=1e9, description="wrong tokens that one address may show at once")
    claims: ClaimSettings = ClaimSettings()

    @field_validator("jwks")
    @classmethod
    def _is_place(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_place(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _agree(self) -> AuthSettings:
        if self.jwks is None:
            if not self.accept_secret_tokens:
                raise make_conflict(
                    "{} is false and there is no {}: no token could be accepted", "accept_secret_tokens", "jwks"
                )
            return self
        for name, allowed in (("issuers", self.issuers), ("audiences", self.audiences)):
            if not allowed:
                raise make_conflict(
                    "{} must be set where {} is: the provider signs tokens for others with the same keys; "
                    "* if that is as it should be",
                    name,
                    "jwks",
                )
        return self

    @property
    def token_rules(self) -> TokenRules:
        """What a token has to say beside whose it is."""
        claims = self.claims
        mapping = ClaimMapping(
            claims.user,
            claims.role,
            claims.tenant,
            claims.scopes,
            claims.scope_mapping,
            claims.role_mapping,
            claims.default_role,
        )
        return TokenRules(tuple(self.issuers), tuple(self.audiences), self.max_token_life_s, mapping)
