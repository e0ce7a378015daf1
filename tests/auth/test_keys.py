"""Keys: each is used for its own algorithm, and what is public is never a secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from solowire.auth.claims import ANY, ClaimMapping, TokenRules
from solowire.auth.keys import PUBLIC_ALGORITHMS, parse_key_set
from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken, UnknownKey
from solowire.model.access import ROLES
from tests.support.jwks_server import SigningKey

SECRET = "a secret that is long enough for HS256, really"
NOW = 1_800_000_000.0
KEYS = {algorithm: SigningKey(algorithm, f"{algorithm}-1") for algorithm in PUBLIC_ALGORITHMS}
RULES = TokenRules((ANY,), (ANY,), mapping=ClaimMapping(default_role="viewer"))
CLAIMS = {"sub": "ann", "exp": NOW + 60}


def tokens_with(*jwks: Any, accepts_secret: bool = True) -> Tokens:
    tokens = Tokens(SECRET, ROLES, domain=DNS, rules=RULES, accepts_secret=accepts_secret, has_provider=True)
    tokens.set_keys(parse_key_set(json.dumps({"keys": jwks}).encode()))
    return tokens


def refused(tokens: Tokens, token: str) -> InvalidToken:
    with pytest.raises(InvalidToken) as caught:
        tokens.identify(token, NOW)
    return caught.value


def hs256(secret: bytes, **header: Any) -> str:
    """Signed with whatever bytes, as no library would."""
    body = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT", **header}, {**CLAIMS, "role": "admin"})
    )
    signature = base64.urlsafe_b64encode(hmac.new(secret, body, hashlib.sha256).digest()).rstrip(b"=")
    return (body + b"." + signature).decode()


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS)
def test_a_key_of_a_set_proves_who_somebody_is(algorithm: str) -> None:
    """By its name, and where the token names none by its kind; never by another's name."""
    key = KEYS[algorithm]
    tokens = tokens_with(*(k.jwk() for k in KEYS.values()))
    assert tokens.identify(key.sign(CLAIMS), NOW).user == "ann"
    assert tokens.identify(jwt.encode(CLAIMS, key.private, algorithm), NOW).user == "ann"
    unknown = refused(tokens, key.sign(CLAIMS, kid="other"))
    assert isinstance(unknown, UnknownKey)
    assert "other" in unknown.message
    for other in KEYS.values():
        if other is not key:
            refused(tokens, key.sign(CLAIMS, kid=other.kid))
    assert "signature" in refused(tokens, SigningKey(algorithm, key.kid).sign(CLAIMS)).message


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS)
@pytest.mark.parametrize("accepts_secret", [True, False])
def test_a_public_key_is_no_secret(algorithm: str, accepts_secret: bool) -> None:
    """Whatever form of it is used as an HMAC secret, with whatever name of a key, it signs nothing."""
    public, jwk = KEYS[algorithm].private.public_key(), KEYS[algorithm].jwk()
    tokens = tokens_with(jwk, accepts_secret=accepts_secret)
    forms = [
        public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    raw = jwk.get("n") or jwk["x"]
    for secret in (*forms, json.dumps(jwk).encode(), raw.encode(), base64.urlsafe_b64decode(raw + "=="), b""):
        for kid in (KEYS[algorithm].kid, None):
            refused(tokens, hs256(secret, **({"kid": kid} if kid else {})))
            refused(tokens, hs256(secret, alg=algorithm, **({"kid": kid} if kid else {})))


def test_a_secret_in_a_set_is_none() -> None:
    """A set is public: a symmetric key in it would let anybody sign, so it is left out, under whatever name."""
    secret = base64.urlsafe_b64encode(b"x" * 32).rstrip(b"=").decode()
    key = KEYS["ES256"]
    for more in ({}, {"alg": "HS256"}, {"alg": "RS256"}, {"use": "sig"}):
        oct_key = {"kty": "oct", "k": secret, "kid": "s", **more}
        tokens = tokens_with(oct_key, key.jwk())
        for kid in ("s", key.kid):
            refused(tokens, hs256(b"x" * 32, kid=kid))
        with pytest.raises(ValueError, match="none of its 1 keys"):
            parse_key_set(json.dumps({"keys": [oct_key]}).encode())


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "HS384", "HS512", "RS384", "PS256", "ES384", "es256", "", "ES256K"]
)
def test_an_algorithm_that_is_not_accepted(algorithm: str) -> None:
    """What a token's header asks for is refused by name, and has nobody read the keys again."""
    token = hs256(SECRET.encode(), alg=algorithm, kid="ES256-1")
    for accepts_secret in (True, False):
        error = refused(tokens_with(KEYS["ES256"].jwk(), accepts_secret=accepts_secret), token)
        assert not isinstance(error, UnknownKey)


def test_the_secret_beside_a_provider() -> None:
    """Both are accepted unless the settings say otherwise; a provider's mapping is not for what the secret signs."""
    token = Tokens(SECRET, ROLES, domain=DNS).sign_token("ann", "operator", now=NOW, ttl=60)
    ours = tokens_with(KEYS["ES256"].jwk())
    assert ours.identify(token, NOW).role == "operator"
    assert not isinstance(refused(tokens_with(KEYS["ES256"].jwk(), accepts_secret=False), token), UnknownKey)


@pytest.mark.parametrize("header", [{"typ": 7}, {"typ": ["JWT"]}, {"x": "y" * 3000}], ids=["number", "list", "long"])
def test_a_header_that_is_hard_to_read_opens_no_way_round(header: dict[str, Any]) -> None:
    """Where the secret is for tickets alone no token that it has signed is good, whatever its header is like."""
    token = hs256(SECRET.encode(), **header)
    refused(tokens_with(KEYS["ES256"].jwk(), accepts_secret=False), token)


def test_a_token_without_a_name_of_its_key_is_tried_with_few() -> None:
    """Else whoever makes up tokens has a hundred signatures checked for each."""
    many = [SigningKey("EdDSA", f"k{n}").jwk() for n in range(20)]
    token = jwt.encode(CLAIMS, KEYS["EdDSA"].private, "EdDSA")
    refused(tokens_with(*many, KEYS["EdDSA"].jwk()), token)
    assert tokens_with(KEYS["EdDSA"].jwk(), *many).identify(token, NOW).user == "ann"


def test_several_secrets() -> None:
    """Each of them is good for tokens and for tickets; the first signs; one that is not among them is not."""
    old, new = "the old secret that is long enough", "the new secret that is long enough"
    both, only_old, only_new = (
        Tokens([new, old], ROLES, domain=DNS),
        Tokens(old, ROLES, domain=DNS),
        Tokens([new], ROLES, domain=DNS),
    )
    for other in (only_old, only_new):
        identity = both.identify(other.sign_token("ann", "viewer", now=NOW, ttl=60), NOW)
        assert both.redeem_ticket(other.issue_ticket(identity, 0, "t", NOW), 0, NOW).identity == identity
    token = both.sign_token("ann", "viewer", now=NOW, ttl=60)
    ticket = both.issue_ticket(only_new.identify(token, NOW), 0, "t", NOW)
    assert only_new.redeem_ticket(ticket, 0, NOW).identity.user == "ann"
    refused(only_old, token)
    with pytest.raises(InvalidToken):
        only_old.redeem_ticket(ticket, 0, NOW)
    for secrets in ([], [f"secret {n} that is long enough" for n in range(9)]):
        with pytest.raises(ValueError, match="1 to 8"):
            Tokens(secrets, ROLES, domain=DNS)


def test_a_changed_set_judges_all_anew() -> None:
    """A token that was believed is not any more when its key has gone, or when there are no keys."""
    tokens = tokens_with(KEYS["ES256"].jwk())
    token = KEYS["ES256"].sign(CLAIMS)
    tokens.identify(token, NOW)
    tokens.set_keys(parse_key_set(json.dumps({"keys": [KEYS["RS256"].jwk()]}).encode()))
    assert isinstance(refused(tokens, token), UnknownKey)
    tokens.set_keys(None)
    assert isinstance(refused(tokens, token), UnknownKey)


@pytest.mark.parametrize(
    "more",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "ES384"},
        {"alg": "HS256"},
        {"kty": "oct"},
        {"kty": None},
        {"crv": "P-384"},
        {"crv": 7},
        {"x": "AA"},
        {"x": None},
        {"kid": 7},
    ],
    ids=str,
)
def test_a_key_that_is_of_no_use(more: dict[str, Any]) -> None:
    """It is left out, and the others of its set are used all the same."""
    found = parse_key_set(json.dumps({"keys": [KEYS["ES256"].jwk(**more), KEYS["RS256"].jwk()]}).encode())
    assert (found.ids, found.unused) == (["RS256-1"], 1)


def test_short_and_private_keys() -> None:
    """An RSA key of less than 2048 bits proves nothing; of a private key only the public half is taken."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(ValueError, match="none of its"):
        parse_key_set(json.dumps({"keys": [json.loads(RSAAlgorithm.to_jwk(short.public_key()))]}).encode())
    private = {**json.loads(RSAAlgorithm.to_jwk(KEYS["RS256"].private)), "kid": "RS256-1"}
    del private["key_ops"]
    assert tokens_with(private).identify(KEYS["RS256"].sign(CLAIMS), NOW).user == "ann"


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", 7, None])
def test_a_token_of_another_kind(kind: object) -> None:
    """A provider signs other things with the same keys: what says that it is one of them is no access token."""
    key = KEYS["ES256"]
    tokens = tokens_with(key.jwk())
    refused(tokens, key.sign(CLAIMS, typ=kind) if kind is not None else key.sign(CLAIMS, typ=["x"]))
    assert tokens.identify(key.sign(CLAIMS, typ="at+jwt"), NOW).user == "ann"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [7]}', b"\xff", b"[" * 100_000]
)
def test_a_set_that_is_none(raw: bytes) -> None:
    """It is refused in words, so that the keys of before stay in use."""
    with pytest.raises(ValueError, match=r"it|none"):
        parse_key_set(raw)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("AQAB") | st.just("P-256")


@given(st.lists(st.dictionaries(st.sampled_from(["kty", "crv", "n", "e", "x", "y", "kid", "alg", "use", "d"]), values)))
@settings(deadline=None)
def test_whatever_a_set_holds(keys: list[dict[str, Any]]) -> None:
    """Nonsense in a set is left out, and ends nothing."""
    for jwk in keys:
        jwk["kty"] = jwk.get("kty") or "RSA"
    good = KEYS["EdDSA"].jwk()
    assert good["kid"] in parse_key_set(json.dumps({"keys": [good, *keys]}).encode()).ids
