"""Tokens (who you are, made by the application) and tickets (one admission to one shard, made by the gateway).

A token is a JWT (RFC 7519) signed with HS256, and PyJWT decides whether it is. A ticket is for us alone and made for
each who connects, so it is what costs least: JSON of a fixed shape and its keyed BLAKE2b (RFC 7693), both in base64,
with a dot between them. It is signed with a key derived from the secret, so that neither can ever pass for the other,
lives 30 seconds, names its shard, and is good for one use: `UsedTickets` remembers those seen until they would have
expired anyway.

What it keeps true: nobody is anybody but by a signature made with the secret, and only until that ends; a token never
gives more than its role has; what a token says, JSON in UTF-8 can say, too.

Nothing here reads a clock: the time, unix seconds, is an argument, and so PyJWT is asked for the signature alone.

A token that has proved somebody is remembered until it expires: publishers show the same one with each request, and
whoever is refused comes back with it. KNOWN_TOKENS of at most KNOWN_TOKEN_BYTES are kept: 5 MB of plain ones, 20 MB
where each names twenty zones, and 130 MB if all were as large as that and full of zones, which only the application
can sign. A larger one is verified each time. Of one that proved nothing nothing is remembered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Annotated, Any

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from solowire.access import Identity, Role, grants
from solowire.catalog import CATALOG
from solowire.errors import InvalidToken

ALGORITHM = "HS256"
TICKET_SECONDS = 30.0
MAX_TOKEN_BYTES = 8192
MAX_TICKET_BYTES = 2 * MAX_TOKEN_BYTES
"""A ticket says what its token said, and more: a shard, an address, the permissions of the role."""
_CLOCK_SKEW_SECONDS = 5.0
_FOR_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_LATEST_UNIX = 253_402_300_799  # the end of the year 9999: what comes later is no date, and most often milliseconds
KNOWN_TOKENS = 8192
KNOWN_TOKEN_BYTES = 2048


class _Claims(msgspec.Struct):
    """What we read of a token.

    The application that Solowire serves has `is_admin` where ours have `role`, and leaves it out of tokens that were
    refreshed: neither of the two means "not an admin", which is a viewer.
    """

    sub: str
    exp: float | None = None
    nbf: float | None = None
    role: str | None = None
    is_admin: bool = False
    permissions: tuple[str, ...] | None = None
    scopes: dict[str, tuple[str, ...]] = {}
    tenant: Annotated[str, msgspec.Meta(max_length=256)] = ""
    type: str | None = None
    temp: bool = False
    jti: str = ""  # which nobody reads: it is here to be refused if it is none


class Ticket(msgspec.Struct):
    """An admission: this identity, to this shard, until `exp`, once (`jti`). address: whence it was asked for."""

    jti: str
    exp: float
    shard: int
    identity: Identity
    address: str = ""


_decode_claims = msgspec.json.Decoder(_Claims).decode
_encode_ticket = msgspec.json.Encoder().encode
_decode_ticket = msgspec.json.Decoder(Ticket).decode


class _HS256(HMACAlgorithm):
    """PyJWT's, with one key, which is judged once.

    PyJWT asks of the key, for each token anew, whether it is a certificate or a JWK in place of a secret: that is half
    of what a token would cost.
    """

    def __init__(self, key: bytes) -> None:
        super().__init__(hashlib.sha256)
        self._key = key
        self._hmac = hmac.new(key, digestmod="sha256")
        self._judged = False

    def prepare_key(self, key: str | bytes) -> bytes:
        """Raises InvalidKeyError for a key that PyJWT takes for no secret, and for every other than its own."""
        if key is not self._key:
            raise jwt.InvalidKeyError("it is another key")
        if not self._judged:
            super().prepare_key(key)
            self._judged = True
        return self._key

    def sign(self, msg: bytes, key: bytes) -> bytes:
        mac = self._hmac.copy()  # to begin with a copy costs half of what beginning with the key does
        mac.update(msg)
        return mac.digest()


class Tokens:
    """Signs and verifies with one secret and one set of roles."""

    def __init__(self, secret: str, roles: Mapping[str, Role]) -> None:
        self._secret = secret.encode()
        self._ticket_key = hmac.digest(self._secret, b"solowire ticket", "sha256")
        # The only algorithm it knows: that refuses `alg: none`, and a public key used as an HMAC secret.
        self._jws = jwt.PyJWS(algorithms=[ALGORITHM])
        self._jws.unregister_algorithm(ALGORITHM)
        self._jws.register_algorithm(ALGORITHM, _HS256(self._secret))
        self._roles = roles
        self._known: OrderedDict[str, Identity] = OrderedDict()

    def sign(
        self,
        user: str,
        role: str,
        *,
        now: float,
        ttl: float,
        scopes: Mapping[str, tuple[str, ...]] | None = None,
        tenant: str = "",
    ) -> str:
        """A token for `user`, valid `ttl` seconds from `now`."""
        claims: dict[str, Any] = {"sub": user, "role": role, "iat": int(now), "exp": int(now + ttl)}
        if scopes:
            claims["scopes"] = {name: list(values) for name, values in scopes.items()}
        if tenant:
            claims["tenant"] = tenant
        return jwt.encode(claims, self._secret, ALGORITHM)

    def identify(self, token: str, now: float) -> Identity:
        """The identity that `token` proves; a viewer's, if it names no role. Raises InvalidToken for all else."""
        known = self.known(token, now)
        if known is not None:
            return known
        identity = self._verified(token, now)
        if len(token) > KNOWN_TOKEN_BYTES:
            return identity
        if len(self._known) >= KNOWN_TOKENS:
            self._known.popitem(last=False)  # the one that came first: it is most likely to have expired
        self._known[token] = identity
        return identity

    def known(self, token: str, now: float) -> Identity | None:
        """The identity that `token` has proved before; None if it has to be verified."""
        known = self._known.get(token)
        return known if known is not None and known.expires is not None and known.expires > now else None

    def _verified(self, token: str, now: float) -> Identity:
        claims = _read(self._signed(token))
        if not claims.sub or len(claims.sub) > 256:
            raise InvalidToken("the token's 'sub' must be a user name of 1 to 256 characters")
        if claims.type not in (None, "access") or claims.temp:
            raise InvalidToken("this token was not made to open a connection", hint="use an access token")
        if claims.exp is None:
            raise InvalidToken("the token has no 'exp'", hint="sign tokens with an expiry")
        if not claims.exp <= _LATEST_UNIX:  # so that NaN is refused too
            raise InvalidToken("the token's 'exp' is no unix time in seconds")
        if claims.exp <= now:
            raise InvalidToken("the token has expired", code="token_expired", hint="get a new one")
        if claims.nbf is not None and claims.nbf > now + _CLOCK_SKEW_SECONDS:
            raise InvalidToken("the token is not valid yet")
        role = claims.role or ("admin" if claims.is_admin else "viewer")
        known = self._roles.get(role)
        if known is None:
            raise InvalidToken(f"the token's role {role!r} is not known", hint="known are " + ", ".join(self._roles))
        permissions = known.permissions
        if claims.permissions is not None:
            # A token may narrow its role, never widen it.
            permissions = tuple(p for p in claims.permissions if grants(known.permissions, p))
        identity = Identity(claims.sub, role, permissions, _scopes(claims.scopes), claims.exp, claims.tenant)
        if not _can_be_said(identity):
            raise InvalidToken(
                "the token's claims hold half a character", hint=r"such as \ud800 without its other half"
            )
        return identity

    def issue_ticket(self, identity: Identity, shard: int, jti: str, now: float, address: str = "") -> str:
        ticket = Ticket(jti, now + TICKET_SECONDS, shard, identity, address)
        said = _base64url(_encode_ticket(ticket))
        return (said + b"." + self._ticket_signature(said)).decode("ascii")

    def redeem_ticket(self, text: str, shard: int, now: float) -> Ticket:
        """The ticket's content, if it is ours, for this shard and fresh. That it is used once is `UsedTickets`."""
        _check_length(text, MAX_TICKET_BYTES)
        said, _, signature = text.encode("ascii", "replace").rpartition(b".")
        if not hmac.compare_digest(signature, self._ticket_signature(said)):
            raise InvalidToken("the ticket's signature is wrong", hint="ask /v1/connect for another")
        try:
            ticket = _decode_ticket(a2b_base64(said.translate(_FROM_URL) + b"=="))  # too much padding is none
        except (ValueError, msgspec.MsgspecError) as error:
            raise InvalidToken(f"the ticket can't be read: {error}", hint="ask /v1/connect for another") from None
        if ticket.exp <= now:
            raise InvalidToken("the ticket has expired", code="ticket_expired", hint="ask /v1/connect for another")
        if ticket.shard != shard:
            raise InvalidToken(
                f"the ticket is for shard {ticket.shard}, this is shard {shard}",
                code="wrong_shard",
                hint="ask /v1/connect for another",
            )
        return ticket

    def _ticket_signature(self, said: bytes) -> bytes:
        return _base64url(hashlib.blake2b(said, key=self._ticket_key, digest_size=32).digest())

    def _signed(self, token: str) -> bytes:
        """The claims that the secret has signed, as they stand there. Raises InvalidToken."""
        _check_length(token, MAX_TOKEN_BYTES)
        try:
            claims: bytes = self._jws.decode(token, self._secret, algorithms=[ALGORITHM])
        except jwt.InvalidSignatureError:
            raise InvalidToken("the signature is wrong", hint="sign it with the gateway's secret") from None
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _unreadable(error) from None
        return claims


def bearer(authorization: str) -> str:
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

    def use(self, ticket: Ticket, now: float) -> None:
        """Marks it as used. Raises InvalidToken if it was already."""
        self.check(ticket, now)
        self._seen.add(ticket.jti)
        # Kept for the longest life a ticket can have rather than its own, so that the order is that of use.
        self._order.append((now + TICKET_SECONDS, ticket.jti))


def _check_length(text: str, most: int) -> None:
    if not text:
        raise InvalidToken("there is no token", code="missing_token", hint="send 'Authorization: Bearer …'")
    if len(text) > most:
        raise InvalidToken(f"it is longer than {most} bytes")


def _base64url(raw: bytes) -> bytes:
    """Without padding (RFC 7515). As `base64` does it, without its three layers of Python."""
    return b2a_base64(raw, newline=False).translate(_FOR_URL).rstrip(b"=")


def _read(claims: bytes) -> _Claims:
    """Raises InvalidToken."""
    try:
        return _decode_claims(claims)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # Python's JSON reads more, such as NaN and half a character: it finds the words for those
    try:
        return msgspec.convert(json.loads(claims), _Claims)
    except msgspec.ValidationError as error:
        raise InvalidToken(f"its claims are not what they should be: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> InvalidToken:
    # PyJWT quotes the header, in which anybody may write what UTF-8 can't say.
    reason = str(error).encode("ascii", "backslashreplace").decode()
    return InvalidToken(f"it can't be read: {reason}")


def _can_be_said(identity: Identity) -> bool:
    r"""Whether UTF-8 can say all of it, as tickets and heartbeats must: JSON's `\ud800` alone is half a character."""
    try:
        msgspec.json.encode(identity)
    except UnicodeEncodeError:
        return False
    return True


def _scopes(claimed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Raises InvalidToken for a name that no event type declares: it would narrow nothing, and show everything."""
    scopes: dict[str, tuple[str, ...]] = {}
    for name, values in claimed.items():
        attribute = "zone" if name == "zones" else name  # `zones` is how people say it
        if attribute not in CATALOG.attributes:
            raise InvalidToken(
                f"the token's scope {name[:64]!r} is no attribute of any event type",
                hint="scopes are zones, " + ", ".join(sorted(CATALOG.attributes)),
            )
        if attribute in scopes:
            raise InvalidToken("the token has a scope both as 'zone' and as 'zones'", hint="keep one of them")
        scopes[attribute] = values
    return scopes
