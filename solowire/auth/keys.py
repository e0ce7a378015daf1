"""Keys that sign tokens: several secrets (HS256), and public keys of a JWK set (RFC 7517) for RS256, ES256 and EdDSA.

What it keeps true: a key is used for the algorithm that it was made for, and for no other. A token's header chooses
among the keys of its algorithm and never the algorithm of a key; so a public key is no secret, a secret no public key,
and `none` nothing at all. What can't be used of a JWK set is left out, and a set of which nothing can be used is none.

Pure: where a set comes from, and when it is read again, is `solowire.auth.key_source`'s.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import HMACAlgorithm

from solowire.auth.claims import make_unreadable_error
from solowire.auth.key_places import MAX_SECRETS
from solowire.errors import InvalidToken, UnknownKey

SECRET_ALGORITHM = "HS256"  # noqa: S105 -- not a password
MAX_KEYS = 100
"""Of a JWK set; the others are not looked at."""
MAX_TRIED = 8
"""Keys that are tried for a token which names none, or a name that several have: each costs up to 0.1 ms."""
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
_ED25519 = "Ed25519"

_HEADER_CHARACTERS = 2048
_TOKEN_TYPES = frozenset(["", "jwt", "at+jwt", "application/jwt", "application/at+jwt"])
"""What a provider's token may say that it is (`typ`): a logout token or a proof is signed with the same keys."""


class _HS256(HMACAlgorithm):
    """PyJWT's, with one key, which is judged once.

    PyJWT asks of the key, for each token anew, whether it is a certificate or a JWK in place of a secret: that is half
    of what a token would cost.
    """

    def __init__(self, key: bytes) -> None:
        super().__init__(hashlib.sha256)
        self._key = key
        self._hmac = hmac.new(key, digestmod="sha256")
        self._is_key_checked = False

    def prepare_key(self, key: str | bytes) -> bytes:
        """Raises InvalidKeyError for a key that PyJWT takes for no secret, and for every other than its own."""
        if key is not self._key:
            raise jwt.InvalidKeyError("it is another key")
        if not self._is_key_checked:
            super().prepare_key(key)
            self._is_key_checked = True
        return self._key

    def sign(self, msg: bytes, key: bytes) -> bytes:
        mac = self._hmac.copy()  # to begin with a copy costs half of what beginning with the key does
        mac.update(msg)
        return mac.digest()


class SecretKeys:
    """Secrets of which any may have signed a token; the first signs new ones."""

    def __init__(self, secrets: Sequence[str]) -> None:
        if not 0 < len(secrets) <= MAX_SECRETS:
            raise ValueError(f"there must be 1 to {MAX_SECRETS} secrets")
        self.secrets = tuple(dict.fromkeys(secret.encode() for secret in secrets))
        self._signers = [(secret, self._signer(secret)) for secret in self.secrets]

    @staticmethod
    def _signer(secret: bytes) -> jwt.PyJWS:
        # The only algorithm it knows: that refuses `alg: none`, and a public key used as an HMAC secret.
        jws = jwt.PyJWS(algorithms=[SECRET_ALGORITHM])
        jws.unregister_algorithm(SECRET_ALGORITHM)
        jws.register_algorithm(SECRET_ALGORITHM, _HS256(secret))
        return jws

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token with these claims."""
        return jwt.encode(dict(claims), self.secrets[0], SECRET_ALGORITHM)

    def verify(self, token: str) -> bytes:
        """The claims that one of the secrets has signed, as they stand there. Raises InvalidToken."""
        for secret, jws in self._signers:
            try:
                payload: bytes = jws.decode(token, secret, algorithms=[SECRET_ALGORITHM])
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, RecursionError) as error:
                raise make_unreadable_error(error) from None
            return payload
        raise InvalidToken("the signature is wrong", hint="sign it with the gateway's secret")


class Header(NamedTuple):
    """What a token's header says: of which algorithm it is, by which key (None: it doesn't say), and of which kind."""

    algorithm: str
    key_id: str | None
    kind: str


@lru_cache(maxsize=256)
def _parse_header(segment: str) -> Header | None:
    try:
        header = json.loads(jwt.utils.base64url_decode(segment))
        algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None) or not isinstance(kind, str):
        return None
    return Header(algorithm, key_id, kind.lower())


def read_header(token: str) -> Header | None:
    """The header of a token that nobody has verified yet; None if there is none that we could read."""
    segment = token.partition(".")[0]
    return _parse_header(segment) if len(segment) <= _HEADER_CHARACTERS else None


class PublicKeys:
    """The keys of one JWK set. unused: how many of them were of no use, and so are left out."""

    def __init__(self, keys: Sequence[tuple[str | None, jwt.PyJWK]], unused: int = 0) -> None:
        self._keys = tuple(keys)
        self.unused = unused
        self._jws = jwt.PyJWS(algorithms=list(PUBLIC_ALGORITHMS))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def ids(self) -> list[str]:
        """The names of its keys, as far as they have one."""
        return [name for name, _ in self._keys if name is not None]

    def verify(self, token: str, header: Header) -> bytes:
        """The claims that one of the keys has signed, as they stand there. Raises InvalidToken, of it UnknownKey."""
        if header.kind not in _TOKEN_TYPES:
            raise InvalidToken(f"the token is a {header.kind[:64]!r}", hint="use an access token")
        fitting = [
            key for name, key in self._keys if key.algorithm_name == header.algorithm and header.key_id in (None, name)
        ][:MAX_TRIED]
        if not fitting:
            name = f"the key {header.key_id[:64]!r}" if header.key_id is not None else f"an {header.algorithm} key"
            raise UnknownKey(f"the token is signed with {name}, which is not known here", hint="get a new token")
        for key in fitting:
            try:
                payload: bytes = self._jws.decode(token, key, algorithms=[header.algorithm])
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, RecursionError) as error:
                raise make_unreadable_error(error) from None
            return payload
        raise InvalidToken("the signature is wrong", hint="get a new token from the provider that this system trusts")


_PARTS: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("RSA", ""): ("RS256", ("n", "e")),
    ("EC", "P-256"): ("ES256", ("x", "y")),
    ("OKP", _ED25519): ("EdDSA", ("x",)),
}
"""By kind and curve of a JWK: its algorithm, and what the public key is made of."""
PUBLIC_ALGORITHMS = tuple(algorithm for algorithm, _ in _PARTS.values())


def parse_key_set(raw: bytes) -> PublicKeys:
    """A JWK set as it is published. Raises ValueError that says why it is none that can be used."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JWK set: it has no list of 'keys'")
    usable = [found for jwk in listed[:MAX_KEYS] if (found := _parse_key(jwk)) is not None]
    if not usable:
        known = ", ".join(PUBLIC_ALGORITHMS)
        raise ValueError(f"none of its {len(listed)} keys is a public key for {known} that may verify signatures")
    return PublicKeys(usable, len(listed) - len(usable))


def _parse_key(jwk: object) -> tuple[str | None, jwt.PyJWK] | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    kind, curve, name = jwk.get("kty"), jwk.get("crv", ""), jwk.get("kid")
    if not isinstance(kind, str) or not isinstance(curve, str) or not isinstance(name, str | None):
        return None
    found = _PARTS.get((kind, curve if kind != "RSA" else ""))
    if found is None:
        return None
    algorithm, parts = found
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("alg", algorithm) not in (algorithm, curve or algorithm):
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    # What makes a private key of it is not even looked at, should somebody have published one.
    public = {"kty": kind, **({"crv": curve} if kind != "RSA" else {}), **{part: jwk.get(part) for part in parts}}
    try:
        key = jwt.PyJWK(public, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError):
        return None
    if isinstance(key.key, RSAPublicKey) and not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
        return None
    return name, key
