"""Tokens (who you are, made by the application) and tickets (one admission to one shard, made by the gateway).

A token is a JWT (RFC 7519), and PyJWT decides whether its signature is good: by one of the secrets (HS256), or by a key
of an OpenID provider's (`solowire.auth.keys`). `solowire.auth.claims` says what it says. A ticket is for us alone and
made for each who connects, so it is what costs least: JSON of a fixed shape and its keyed BLAKE2b (RFC 7693), both in
base64, with a dot between them. It is signed with a key derived from the secret, so that neither can ever pass for the
other, lives 30 seconds, names its shard and that one's process, and is good for one use: `UsedTickets` remembers those
seen until they would have expired anyway.

What it keeps true: nobody is anybody but by a signature made with a key that is accepted, only until that ends, and
only as long as no revocation covers it; a token never gives more than its role has; what a token says, JSON in UTF-8
can say, too.

Nothing here reads a clock: the time, unix seconds, is an argument, and so PyJWT is asked for the signature alone.

A token that has proved somebody is remembered until it expires: publishers show the same one with each request, and
whoever is refused comes back with it. KNOWN_TOKENS of at most KNOWN_TOKEN_BYTES are kept; a larger one is verified each
time. Of one that proved nothing nothing is remembered. When the keys change all are forgotten.
"""

from __future__ import annotations

import hashlib
import hmac
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from solowire.auth.claims import ANY, NO_JWT, ClaimReader, Claims, TokenRules, check_audience, find_missing_scopes
from solowire.auth.keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHM, PublicKeys, SecretKeys, read_header
from solowire.auth.leniency import STRICT, Leniency
from solowire.auth.revocations import RevocationTable
from solowire.auth.scopes import read_scopes
from solowire.errors import InvalidToken, TokenRevoked, UnknownKey
from solowire.model.access import ADMINISTER, Identity, Proof, Role, is_granted
from solowire.model.domain import Domain
from solowire.model.permissions import describe_permission_fault, narrow_permissions

TICKET_SECONDS = 30.0
MAX_TOKEN_BYTES = 8192
MAX_TICKET_BYTES = 2 * MAX_TOKEN_BYTES
"""A ticket says what its token said, and more: a shard, an address, the permissions of the role."""
LEEWAY_SECONDS = 60.0
"""By how much the clock of whoever signs may be ahead of ours: for `nbf` and `iat`, and not for `exp`."""

_FOR_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_LATEST_UNIX = 253_402_300_799  # the end of the year 9999: what comes later is no date, and most often milliseconds
KNOWN_TOKENS = 8192
KNOWN_TOKEN_BYTES = 2048
NO_RULES = TokenRules()


class Ticket(msgspec.Struct):
    """An admission: this identity, to this shard, until `exp`, once (`jti`). address: whence it was asked for.

    incarnation: the shard's process that it is for, which alone knows whether it was used; "" if it is not told.
    is_old: for an old client's path alone, since its token was judged by a `Leniency`.
    """

    jti: str
    exp: float
    shard: int
    identity: Identity
    address: str = ""
    incarnation: str = ""
    is_old: bool = False


_encode_ticket = msgspec.json.Encoder().encode
_decode_ticket = msgspec.json.Decoder(Ticket).decode


class Tokens:
    """Signs and verifies with its keys and one set of roles.

    domain: whose scopes its tokens have. secret: one, or several, of which the first signs and all are accepted.
    leeway: seconds, for `nbf` and `iat`. accepts_secret: False where tokens are a provider's alone, and the secret is
    for tickets. has_provider: public keys will be given (`set_keys`).
    """

    def __init__(
        self,
        secret: str | Sequence[str],
        roles: Mapping[str, Role],
        leeway: float = LEEWAY_SECONDS,
        *,
        domain: Domain,
        rules: TokenRules = NO_RULES,
        accepts_secret: bool = True,
        has_provider: bool = False,
    ) -> None:
        self.revocations = RevocationTable()
        self.accepts_secret = accepts_secret
        self.domain = domain
        self._claim_reader = ClaimReader(domain)
        self._leeway = leeway
        self._secrets = SecretKeys([secret] if isinstance(secret, str) else secret)
        self._ticket_keys = [hmac.digest(key, b"solowire ticket", "sha256") for key in self._secrets.secrets]
        self._has_provider = has_provider
        self._keys: PublicKeys | None = None
        self._rules = rules
        self._roles = roles
        self._cached_identities: OrderedDict[str, Identity] = OrderedDict()

    def set_secrets(self, secrets: Sequence[str], roles: Mapping[str, Role]) -> None:
        """From now on these secrets are accepted, of which the first signs, and these are the roles."""
        self._secrets = SecretKeys(secrets)
        self._ticket_keys = [hmac.digest(key, b"solowire ticket", "sha256") for key in self._secrets.secrets]
        self._roles = roles
        self._cached_identities.clear()

    def set_keys(self, keys: PublicKeys | None) -> None:
        """From now on these public keys are a provider's; None if they can't be had, and nobody is to be believed."""
        self._keys = keys
        self._cached_identities.clear()  # a key that is not in the set any more may be in somebody else's hands

    def sign_token(
        self,
        user: str,
        role: str,
        *,
        now: float,
        ttl: float,
        scopes: Mapping[str, tuple[str, ...]] | None = None,
        tenant: str = "",
        token_id: str = "",
    ) -> str:
        """A token for `user`, valid `ttl` seconds from `now`. token_id: by which it can be revoked."""
        claims: dict[str, Any] = {"sub": user, "role": role, "iat": int(now), "exp": int(now + ttl)}
        if scopes:
            claims["scopes"] = {name: list(values) for name, values in scopes.items()}
        if tenant:
            claims["tenant"] = tenant
        if token_id:
            claims["jti"] = token_id
        for name, allowed in (("iss", self._rules.issuers), ("aud", self._rules.audiences)):
            if allowed and ANY not in allowed:
                claims[name] = allowed[0]
        return self._secrets.sign(claims)

    def identify(self, token: str, now: float) -> Identity:
        """The identity that `token` proves; a viewer's, if it names no role.

        Raises InvalidToken for all else, and of it UnknownKey for one that a public key has signed which is not known.
        """
        known = self.cached_identity(token, now)
        if known is not None:
            return known
        identity = self._verify_token(token, now)
        self.check_revoked(identity)
        if len(token) > KNOWN_TOKEN_BYTES:
            return identity
        if len(self._cached_identities) >= KNOWN_TOKENS:
            self._cached_identities.popitem(last=False)  # the one that came first: it is most likely to have expired
        self._cached_identities[token] = identity
        return identity

    def identify_leniently(self, token: str, now: float, leniency: Leniency) -> Identity:
        """As `identify`, for the tokens of old clients, of which `leniency` asks less.

        A token without a `jti` gets one made of its end, which `read_token_end` reads, and of itself.
        """
        identity = self._verify_token(token, now, leniency)
        self.check_revoked(identity)
        return identity

    def cached_identity(self, token: str, now: float) -> Identity | None:
        """The identity that `token` has proved before; None if it has to be verified."""
        known = self._cached_identities.get(token)
        if known is None or known.expires is None or known.expires <= now or self.revocations.covers(known):
            return None
        return known

    def check_revoked(self, identity: Identity) -> None:
        """Raises TokenRevoked if the token that proved the identity has been revoked since."""
        if self.revocations.covers(identity):
            raise TokenRevoked

    def _verify_token(self, token: str, now: float, leniency: Leniency = STRICT) -> Identity:
        claims, is_provided = self._verify_signature(token)
        check_audience(claims, self._rules)
        if not claims.sub or len(claims.sub) > 256:
            raise InvalidToken("the token's 'sub' must be a user name of 1 to 256 characters")
        if claims.type not in (UNSET, "access") or claims.temp:
            raise InvalidToken("this token was not made to open a connection", hint="use an access token")
        if claims.exp is UNSET:
            raise InvalidToken("the token has no 'exp'", hint="sign tokens with an expiry")
        if not claims.exp <= _LATEST_UNIX:  # so that NaN is refused too
            raise InvalidToken("the token's 'exp' is no unix time in seconds")
        expires = claims.exp if claims.exp > now else claims.exp + leniency.expiry_grace_s
        if expires <= now:
            raise InvalidToken("the token has expired", code="token_expired", hint="get a new one")
        for name, begins in (("nbf", claims.nbf), ("iat", claims.iat)):
            if begins is not UNSET and not begins <= now + self._leeway:  # so that NaN is refused too
                raise InvalidToken(
                    f"the token is not valid yet: its {name!r} is {begins - now:.0f} s ahead of this machine's clock",
                    hint="compare the clocks; it is a unix time in seconds",
                )
        issued_at = None if claims.iat is UNSET else claims.iat
        life = claims.exp - (now if issued_at is None else issued_at)
        if not life <= self._rules.max_life:
            raise InvalidToken(
                f"the token lives for {life / 86400:.0f} days, {self._rules.max_life / 86400:g} are the most",
                hint="sign it for less, or raise SOLOWIRE_AUTH__MAX_TOKEN_LIFE_S",
            )
        proof = Proof(claims.jti or leniency.name_token(token, claims.exp), issued_at)
        if claims.role is UNSET:
            self.check_revoked(Identity(claims.sub, "", (), proof=proof))  # what it says would be remembered
            claimed_admin = None if claims.is_admin is UNSET else claims.is_admin
            role = "admin" if leniency.judge_admin(claims.sub, claimed_admin, now) else "viewer"
        else:
            role = claims.role
        known = self._roles.get(role)
        if known is None:
            raise InvalidToken(f"the token's role {role!r} is not known", hint="known are " + ", ".join(self._roles))
        permissions = known.permissions
        if claims.permissions is not UNSET:
            self._check_permissions(claims.permissions)
            # A token may narrow its role, never widen it.
            permissions = tuple(p for p in claims.permissions if is_granted(known.permissions, p))
            if claims.permissions and not permissions:
                raise InvalidToken(
                    f"the token's 'permissions' leave nothing of its role {role!r}",
                    hint="name some that the role has; `x.*` and `*` count where the role has all of it",
                )
        scopes = read_scopes(claims.scopes, self.domain)
        if is_provided and not is_granted(permissions, ADMINISTER):
            for name in find_missing_scopes(scopes, self._rules.mapping):
                raise InvalidToken(f"the token has no claim {name!r}, which says what its user may see")
        leniency.late_count += claims.exp <= now
        identity = Identity(claims.sub, role, permissions, scopes, expires, claims.tenant, proof)
        if not _is_utf8_encodable(identity):
            raise InvalidToken(
                "the token's claims hold half a character", hint=r"such as \ud800 without its other half"
            )
        return identity

    def narrow_to_role(self, identity: Identity) -> Identity:
        """The identity with what its role grants now: itself where nothing is taken. Raises InvalidToken."""
        role = self._roles.get(identity.role)
        if role is None:
            raise InvalidToken(f"the role {identity.role!r} is not known any more", hint="get another token")
        if identity.permissions == role.permissions:
            return identity
        permissions = narrow_permissions(role.permissions, identity.permissions)
        if set(permissions) >= set(identity.permissions):
            return identity
        return msgspec.structs.replace(identity, permissions=permissions)

    def may_connect(self, identity: Identity) -> bool:
        """Whether the identity's role may have a connection."""
        role = self._roles.get(identity.role)
        return role is None or role.may_connect

    def _check_permissions(self, permissions: Sequence[str]) -> None:
        """Raises InvalidToken for one that nothing asks for: misspelt, it would hide what its author meant to show."""
        for name in permissions:
            if fault := describe_permission_fault(name, self.domain.catalog):
                raise InvalidToken(
                    f"the token's 'permissions' have {fault}", hint="correct it, or leave `permissions` out"
                )

    def issue_ticket(
        self,
        identity: Identity,
        shard: int,
        jti: str,
        now: float,
        address: str = "",
        incarnation: str = "",
        *,
        is_old: bool = False,
    ) -> str:
        ticket = Ticket(jti, now + TICKET_SECONDS, shard, identity, address, incarnation, is_old)
        payload = _base64url(_encode_ticket(ticket))
        return (payload + b"." + _ticket_signature(payload, self._ticket_keys[0])).decode("ascii")

    def read_ticket(self, text: str, now: float) -> Ticket:
        """The content of a ticket that is ours and fresh, whichever shard it is for. Raises InvalidToken."""
        _check_length(text, MAX_TICKET_BYTES)
        payload, _, signature = text.encode("ascii", "replace").rpartition(b".")
        if not hmac.compare_digest(signature, _ticket_signature(payload, self._ticket_keys[0])) and not any(
            hmac.compare_digest(signature, _ticket_signature(payload, key)) for key in self._ticket_keys[1:]
        ):
            raise InvalidToken("the ticket's signature is wrong", hint="ask /v1/connect for another")
        try:
            ticket = _decode_ticket(a2b_base64(payload.translate(_FROM_URL) + b"=="))  # too much padding is none
        except (ValueError, msgspec.MsgspecError) as error:
            raise InvalidToken(f"the ticket can't be read: {error}", hint="ask /v1/connect for another") from None
        if ticket.exp <= now:
            raise InvalidToken("the ticket has expired", code="ticket_expired", hint="ask /v1/connect for another")
        return ticket

    def redeem_ticket(self, text: str, shard: int, now: float) -> Ticket:
        """The ticket's content, if it is ours, for this shard and fresh. That it is used once is `UsedTickets`."""
        ticket = self.read_ticket(text, now)
        if ticket.shard != shard:
            raise InvalidToken(
                f"the ticket is for shard {ticket.shard}, this is shard {shard}",
                code="wrong_shard",
                hint="ask /v1/connect for another",
            )
        self.check_revoked(ticket.identity)
        narrowed = self.narrow_to_role(ticket.identity)  # roles may have been read again since it was made
        return ticket if narrowed is ticket.identity else msgspec.structs.replace(ticket, identity=narrowed)

    def _verify_signature(self, token: str) -> tuple[Claims, bool]:
        """The claims that one of the keys has signed, and whether it is a provider's. Raises InvalidToken."""
        _check_length(token, MAX_TOKEN_BYTES)
        if self._has_provider:
            header = read_header(token)
            if header is not None and (header.algorithm != SECRET_ALGORITHM or not self.accepts_secret):
                if header.algorithm not in PUBLIC_ALGORITHMS:
                    accepted = ", ".join((*PUBLIC_ALGORITHMS, *([SECRET_ALGORITHM] if self.accepts_secret else [])))
                    fault = f"the token's 'alg' {header.algorithm[:32]!a} is not accepted"
                    raise InvalidToken(fault, hint=f"accepted are {accepted}")
                if self._keys is None:
                    raise UnknownKey("the keys that tokens are signed with can't be had now", hint="try again")
                return self._claim_reader.read_claims(self._keys.verify(token, header), self._rules.mapping), True
            if not self.accepts_secret:
                raise InvalidToken("the token can't be read: its header is none", hint=NO_JWT)
        return self._claim_reader.read_claims(self._secrets.verify(token)), False


def parse_bearer(authorization: str) -> str:
    """The token of an `Authorization` header (RFC 6750); "" if there is none, or it is of another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class UsedTickets:
    """Remembers the tickets that were used, each until it would have expired: bounded by admissions in 30 s."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def check(self, ticket: Ticket, now: float) -> None:
        """Raises InvalidToken if it was used already."""
        while self._order and self._order[0][0] <= now:
            self._seen.discard(self._order.popleft()[1])
        if ticket.jti in self._seen:
            raise InvalidToken("the ticket was used already", code="ticket_used", hint="ask /v1/connect for another")

    def mark_used(self, ticket: Ticket, now: float) -> None:
        """Marks it as used. Raises InvalidToken if it was already."""
        self.check(ticket, now)
        self._seen.add(ticket.jti)
        # Kept for the longest life a ticket can have rather than its own, so that the order is that of use.
        self._order.append((now + TICKET_SECONDS, ticket.jti))


_SHOW_IT = "send 'Authorization: Bearer …', or open /ws?token=…, in a browser"


def _check_length(text: str, most: int) -> None:
    if not text:
        raise InvalidToken("there is no token", code="missing_token", hint=_SHOW_IT)
    if len(text) > most:
        raise InvalidToken(f"it is longer than {most} bytes", hint="leave claims out that are not needed here")


def _base64url(raw: bytes) -> bytes:
    """Without padding (RFC 7515). As `base64` does it, without its three layers of Python."""
    return b2a_base64(raw, newline=False).translate(_FOR_URL).rstrip(b"=")


def _ticket_signature(payload: bytes, key: bytes) -> bytes:
    return _base64url(hashlib.blake2b(payload, key=key, digest_size=32).digest())


def _is_utf8_encodable(identity: Identity) -> bool:
    r"""Whether UTF-8 can say all of it, as tickets and heartbeats must: JSON's `\ud800` alone is half a character."""
    try:
        msgspec.json.encode(identity)
    except UnicodeEncodeError:
        return False
    return True
