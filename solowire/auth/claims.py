"""The claims of tokens, in our own words or in an OpenID provider's.

What it keeps true: what was meant to narrow a token is never passed over. A claim of ours in the wrong place, under a
name that is nearly ours, or of the wrong type refuses the token and is named; `null` is of the wrong type. What is none
of ours is left alone, whatever it is (docs/tokens.md lists both).

A token that the secret has signed speaks our contract. One that a key of `jwks` has signed is put into it by a
`ClaimMapping`, and what that names must be there: what a provider leaves out gives nothing.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from solowire.auth.misplaced_claims import OAUTH_TEXTS, MisplacedClaims
from solowire.errors import InvalidToken
from solowire.model.domain import Domain

ANY = "*"
"""In place of an issuer or an audience: each is good, none is asked for."""
MAX_ROLE_VALUES = 500


class Claims(msgspec.Struct):
    """What we read of a token, in the words of our contract.

    is_admin: what the domain's claim of that meaning says, for tokens that have no role. An older application leaves it
    out of tokens that were refreshed: neither of the two means "not an admin", which is a viewer.
    """

    sub: str
    exp: float | UnsetType = UNSET
    nbf: float | UnsetType = UNSET
    iat: float | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    aud: str | tuple[str, ...] | UnsetType = UNSET
    role: str | UnsetType = UNSET
    is_admin: bool | UnsetType = UNSET
    permissions: tuple[str, ...] | UnsetType = UNSET
    scopes: dict[str, tuple[str, ...]] = {}
    tenant: Annotated[str, msgspec.Meta(max_length=256)] = ""
    type: str | UnsetType = UNSET
    temp: bool = False
    jti: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = ""


class ClaimMapping(msgspec.Struct, frozen=True):
    """Which claims of a provider's tokens say what. A name is that of a claim, or a path with dots such as a.b.

    scope_claims: scope → the claim with its values. roles: value of the role claim → our role; of a token with several
    the first here counts. default_role: of a token that names none of ours; None refuses it.
    """

    user: str = "sub"
    role: str = "role"
    tenant: str = "tenant"
    scopes: str = "scopes"
    scope_claims: Mapping[str, str] = {}
    roles: Mapping[str, str] = {}
    default_role: str | None = None

    def names(self) -> frozenset[str]:
        """Every claim that it reads."""
        return frozenset((self.user, self.role, self.tenant, self.scopes, *self.scope_claims.values()))


class TokenRules(msgspec.Struct, frozen=True):
    """What a token has to say beside whose it is.

    issuers, audiences: any one of them, ANY for whichever; none of them given, `iss` is not looked at, and a token with
    an `aud` is for somebody else (RFC 7519, section 4.1.3). max_life: seconds from its `iat`, or from now, to its end.
    """

    issuers: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    max_life: float = 366 * 86400.0
    mapping: ClaimMapping = ClaimMapping()


_NAMES = tuple(name for name in Claims.__struct_fields__ if name != "is_admin")

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class ClaimReader:
    """Reads the claims of tokens of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._admin_claims = () if domain.admin_claim is None else (domain.admin_claim,)
        self._misplaced = MisplacedClaims((*_NAMES, *self._admin_claims), domain)

    def read_claims(self, payload: bytes, mapping: ClaimMapping | None = None) -> Claims:
        """The claims of a token whose signature is good. mapping: of a provider's. Raises InvalidToken."""
        raw_claims = _object(payload)
        if mapping is None:
            self._refuse_misplaced(raw_claims)
            raw_claims = self._name_admin_claim(raw_claims)
        else:
            raw_claims = self._map_claims(raw_claims, mapping)
        try:
            return msgspec.convert(raw_claims, Claims)
        except msgspec.ValidationError as error:
            raise _make_claims_error(str(error)) from None

    def _refuse_misplaced(
        self, raw_claims: Mapping[str, Any], read: Container[str] | None = None, elsewhere: Container[str] = ()
    ) -> None:
        """Raises InvalidToken for what `MisplacedClaims.find` finds."""
        found = self._misplaced.find(raw_claims, read, elsewhere)
        if found is None:
            return
        place = "beside its claims" if found.within is None else f"within {found.within[:64]!a}"
        raise InvalidToken(f"the token has {found.name[:64]!a} {place}, where nobody reads it", hint=found.hint)

    def _name_admin_claim(self, raw_claims: dict[str, Any]) -> dict[str, Any]:
        """The claims with that of the domain called `is_admin`. Raises InvalidToken if it is neither true nor false."""
        for name in self._admin_claims:
            if name in raw_claims:
                if not isinstance(raw_claims[name], bool):
                    raise _make_claims_error(f"Expected `bool` - at `$.{name}`")
                raw_claims["is_admin"] = raw_claims[name]
        return raw_claims

    def _map_claims(self, raw_claims: Mapping[str, Any], mapping: ClaimMapping) -> dict[str, Any]:
        """A provider's claims in our words; `role` says who administers. Raises InvalidToken."""
        named = mapping.names()
        read = named.union((name.partition(".")[0] for name in named), _AS_THEY_ARE, self._admin_claims)
        elsewhere = frozenset(name for name in ("role", "tenant") if getattr(mapping, name) != name)
        self._refuse_misplaced(raw_claims, read, elsewhere)
        ours = {name: raw_claims[name] for name in _AS_THEY_ARE if name in raw_claims}
        ours["sub"] = _text(raw_claims, mapping.user, "the user")
        ours["role"] = _role(raw_claims, mapping)
        if (tenant := _find(raw_claims, mapping.tenant)) is not UNSET:
            ours["tenant"] = tenant
        ours["scopes"] = _scopes(raw_claims, mapping)
        return ours


def _make_claims_error(fault: str) -> InvalidToken:
    return InvalidToken(f"the token's claims are not what they should be: {fault}", hint="docs/tokens.md lists them")


def check_audience(claims: Claims, rules: TokenRules) -> None:
    """Raises InvalidToken for a token that another issuer has made, or that is for somebody else."""
    if rules.issuers and ANY not in rules.issuers and claims.iss not in rules.issuers:
        found = f"the 'iss' {claims.iss[:200]!r}, which is not trusted here" if claims.iss else "no 'iss'"
        raise InvalidToken(f"the token has {found}", hint="SOLOWIRE_AUTH__ISSUERS lists who may make them")
    if ANY in rules.audiences:
        return
    audiences = () if claims.aud is UNSET else (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    if rules.audiences and not set(audiences) & set(rules.audiences):
        found = f"is for {str(audiences[0])[:200]!r}, and not for this system" if audiences else "has no 'aud'"
        raise InvalidToken(f"the token {found}", hint="SOLOWIRE_AUTH__AUDIENCES lists the names of this system")
    if not rules.audiences and claims.aud is not UNSET:
        raise InvalidToken(
            "the token has an 'aud', and this system has no name that it could be for",
            hint="set SOLOWIRE_AUTH__AUDIENCES to what the tokens for it have there, or leave 'aud' out",
        )


NO_JWT = "a token is a JWT, three parts with dots between them; `solowire token` makes one"


def make_unreadable_error(error: Exception) -> InvalidToken:
    """What to raise of a token that a library could not read."""
    # PyJWT quotes the header, in which anybody may write what UTF-8 can't say.
    reason = str(error).encode("ascii", "backslashreplace").decode()
    return InvalidToken(f"the token can't be read: {reason}", hint=NO_JWT)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        return _decode_object(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # Python's JSON reads more, such as NaN and half a character: it finds the words for those
    try:
        raw_claims = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise make_unreadable_error(error) from None
    if not isinstance(raw_claims, dict):
        raise InvalidToken("the token's claims are not what they should be: they are no object")
    return raw_claims


# ----------------------------------------------------------------------------------------------- an OpenID provider's

_AS_THEY_ARE = ("sub", "exp", "nbf", "iat", "iss", "aud", "jti", "type", "temp", "permissions")


def _find(raw_claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, or what its path leads to; UNSET if there is none."""
    if name in raw_claims:
        return raw_claims[name]
    found: Any = raw_claims
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return UNSET
        found = found[part]
    return found


def _text(raw_claims: Mapping[str, Any], name: str, what: str) -> str:
    found = _find(raw_claims, name)
    if not isinstance(found, str):
        fault = "is not there" if found is UNSET else "is no text"
        raise InvalidToken(
            f"the token's claim {name!r}, which says {what}, {fault}", hint="SOLOWIRE_AUTH__CLAIMS__… name them"
        )
    return found


def _role(raw_claims: Mapping[str, Any], mapping: ClaimMapping) -> str:
    """The one role that the claim gives."""
    found = _find(raw_claims, mapping.role)
    values = [found] if isinstance(found, str) else [] if found is UNSET else found
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidToken(
            f"the token's claim {mapping.role!r}, which says the role, is neither a text nor a list of texts"
        )
    if len(values) > MAX_ROLE_VALUES:
        raise InvalidToken(
            f"the token's claim {mapping.role!r} has {len(values)} values, {MAX_ROLE_VALUES} are the most"
        )
    if mapping.roles:
        ours = [role for value, role in mapping.roles.items() if value in values][:1]
    else:
        ours = values
    if len(ours) == 1:
        return ours[0]
    if not ours and mapping.default_role is not None:
        return mapping.default_role
    said_values = ", ".join(map(ascii, values[:10])) or "nothing"
    raise InvalidToken(
        f"the token's claim {mapping.role!r} says {said_values}: that is not one role",
        hint="SOLOWIRE_AUTH__CLAIMS__ROLE_MAPPING says which value means which role, "
        "SOLOWIRE_AUTH__CLAIMS__DEFAULT_ROLE what none of them means",
    )


def _scopes(raw_claims: Mapping[str, Any], mapping: ClaimMapping) -> Any:
    found = _find(raw_claims, mapping.scopes)
    if found is UNSET or (mapping.scopes in OAUTH_TEXTS and isinstance(found, str)):
        found = {}
    if not isinstance(found, dict) or not mapping.scope_claims:
        return found
    scopes = dict(found)
    for scope, name in mapping.scope_claims.items():
        values = _find(raw_claims, name)
        if values is UNSET:
            continue
        if scope in scopes:
            raise InvalidToken(
                f"the token has the scope {scope!r} twice: in {name!r} and in {mapping.scopes!r}",
                hint="keep one of them",
            )
        scopes[scope] = [values] if isinstance(values, str) else values
    return scopes


def find_missing_scopes(scopes: Container[str], mapping: ClaimMapping) -> list[str]:
    """The claims that should have narrowed a token with these scopes, and are not in it."""
    return [name for scope, name in mapping.scope_claims.items() if scope not in scopes]
