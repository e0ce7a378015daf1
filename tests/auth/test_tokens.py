"""Tokens and tickets: only what the secret signed, for this purpose, at this time, proves anything."""

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
from jwt.algorithms import HMACAlgorithm

from solowire.algorithms.hash_ring import Ring
from solowire.auth.tokens import (
    KNOWN_TOKEN_BYTES,
    KNOWN_TOKENS,
    MAX_TOKEN_BYTES,
    TICKET_SECONDS,
    Tokens,
    UsedTickets,
    parse_bearer,
)
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken
from solowire.model.access import ROLES, Identity
from solowire.protocol.problem_details import to_http_response
from tests.support.examples import examples

SECRET = "a secret that is long enough for HS256, really"
NOW = 1_800_000_000.0
TOKENS = Tokens(SECRET, ROLES, domain=DNS)


def signed(secret: str = SECRET, **claims: Any) -> str:
    whole = {"sub": "alice", "role": "viewer", "exp": NOW + 60, **claims}
    return jwt.encode({k: v for k, v in whole.items() if v is not None}, secret, "HS256")


def by_hand(header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
    """A JWT that no library would make, correctly signed."""
    body = b".".join(
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).rstrip(b"=")
        for part in (header, payload)
    )
    signature = base64.urlsafe_b64encode(hmac.new(secret, body, hashlib.sha256).digest()).rstrip(b"=")
    return (body + b"." + signature).decode()


def refused(token: str, code: str = "invalid_token", now: float = NOW) -> InvalidToken:
    with pytest.raises(InvalidToken) as caught:
        TOKENS.identify(token, now)
    assert caught.value.code == code
    return caught.value


def test_a_token_says_who_you_are() -> None:
    """A token that the system signed is an identity with its role's permissions, its scopes and its expiry."""
    token = TOKENS.sign_token("alice", "operator", now=NOW, ttl=60, scopes={"zones": ("a.org", "b.org")})
    identity = TOKENS.identify(token, NOW + 59)
    assert identity == Identity(
        "alice", "operator", ROLES["operator"].permissions, {"zone": ("a.org", "b.org")}, NOW + 60
    )


def test_no_token() -> None:
    """Who shows no token is told that, and how to show one."""
    assert "Bearer" in refused("", "missing_token").hint


@pytest.mark.parametrize(
    "token",
    ["x", "a.b.c", "..", "Bearer x", "ü.ü.ü", "\ud800", "\x00", "null", "eyJ.eyJ.x", "a" * (MAX_TOKEN_BYTES + 1)],
)
def test_garbage(token: str) -> None:
    """What is not a token at all is refused as such."""
    refused(token)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer a.b.c", "a.b.c"),
        ("bearer  a.b.c ", "a.b.c"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("", ""),
        ("Basic YTpi", ""),
        ("Bearera.b.c", ""),
        ("a.b.c", ""),
    ],
)
def test_the_token_of_a_header(header: str, token: str) -> None:
    """A token comes in the one scheme that RFC 6750 names, in whatever case; another scheme's secret is none."""
    assert parse_bearer(header) == token


def test_an_expired_token() -> None:
    """A token ends at the second it says, and the client can tell that from a wrong one."""
    token = TOKENS.sign_token("alice", "viewer", now=NOW, ttl=60)
    TOKENS.identify(token, NOW + 59.9)
    refused(token, "token_expired", NOW + 60)


def test_a_wrongly_signed_token() -> None:
    """A token that someone else signed proves nothing, and its claims are not looked at."""
    assert "signature" in refused(signed(secret="another secret that is long enough for HS256")).message


def test_a_changed_token() -> None:
    """A token whose claims were changed after signing is refused."""
    head, _, tail = signed().split(".")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "alice", "role": "admin", "exp": NOW + 60}).encode())
    refused(f"{head}.{claims.rstrip(b'=').decode()}.{tail}")


def test_alg_none() -> None:
    """A token that says it needs no signature is refused."""
    claims = {"sub": "alice", "role": "admin", "exp": NOW + 60}
    refused(jwt.encode(claims, "", "none"))
    refused(by_hand({"alg": "none", "typ": "JWT"}, claims))


def test_rs256_confusion() -> None:
    """A token of another algorithm is refused, and a public key is no secret, even where it is used as one."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = {"sub": "alice", "role": "admin", "exp": NOW + 60}
    refused(jwt.encode(claims, key, "RS256"))
    refused(by_hand({"alg": "HS256", "typ": "JWT"}, claims, public))
    refused(by_hand({"alg": "RS256", "typ": "JWT"}, claims))
    refused(jwt.encode(claims, SECRET * 2, "HS512"))


def test_the_secret_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is a secret at all is asked with the first token, and not with each."""
    asked: list[str | bytes] = []
    judge = HMACAlgorithm.prepare_key

    def prepare_key(self: HMACAlgorithm, key: str | bytes) -> bytes:
        asked.append(key)
        return judge(self, key)

    monkeypatch.setattr(HMACAlgorithm, "prepare_key", prepare_key)
    tokens = Tokens(SECRET, ROLES, domain=DNS)
    for user in ("ann", "ben"):
        assert tokens.identify(by_hand({"alg": "HS256"}, {"sub": user, "exp": NOW + 60}), NOW).user == user
    assert asked == [SECRET.encode()]


@pytest.mark.parametrize(
    "secret",
    [json.dumps({"kty": "oct", "k": "x" * 32}), "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"],
)
def test_a_secret_that_is_none(secret: str) -> None:
    """What PyJWT takes for a key of another kind proves nothing, the second time as little as the first."""
    tokens = Tokens(secret, ROLES, domain=DNS)
    for _ in range(2):
        with pytest.raises(InvalidToken):
            tokens.identify(by_hand({"alg": "HS256"}, {"sub": "ann", "exp": NOW + 60}, secret.encode()), NOW)


@pytest.mark.parametrize(
    "claims", [{"type": "refresh"}, {"type": "password_reset"}, {"type": ""}, {"type": "Access"}, {"temp": True}]
)
def test_a_token_for_something_else(claims: dict[str, Any]) -> None:
    """A refresh token, one that resets a password, or one from the middle of a login, opens no connection."""
    TOKENS.identify(signed(type="access", temp=False), NOW)
    assert "access token" in refused(signed(**claims)).hint


def test_a_token_without_an_end() -> None:
    """A token that would be good for ever is refused."""
    assert "exp" in refused(signed(exp=None)).message


@pytest.mark.parametrize("exp", [(NOW + 60) * 1000, 1e18, float("inf"), float("nan")])
def test_a_token_whose_end_is_no_time(exp: float) -> None:
    """An expiry in milliseconds, or one that is no date, is refused rather than taken for the far future."""
    assert "exp" in refused(signed(exp=exp)).message


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_that_is_not_valid_yet(claim: str) -> None:
    """A token for later is refused now, by how much; a clock that is ahead by a minute, or as is set, is forgiven."""
    TOKENS.identify(signed(SECRET, **{claim: NOW + 59}), NOW)
    TOKENS.identify(signed(SECRET, **{claim: NOW - 10**6}), NOW)
    told = refused(signed(SECRET, **{claim: NOW + 90}))
    assert told.code == "invalid_token"
    assert f"{claim!r} is 90 s ahead" in told.message
    refused(signed(SECRET, **{claim: (NOW + 1) * 1000}))  # milliseconds
    refused(signed(SECRET, **{claim: float("nan")}))
    strict, lax = Tokens(SECRET, ROLES, domain=DNS, leeway=0), Tokens(SECRET, ROLES, domain=DNS, leeway=600)
    lax.identify(signed(SECRET, **{claim: NOW + 599}), NOW)
    with pytest.raises(InvalidToken):
        strict.identify(signed(SECRET, **{claim: NOW + 1}), NOW)


def test_leeway_does_not_prolong_a_token() -> None:
    """An expired token is expired, however lax we are with those that begin."""
    with pytest.raises(InvalidToken) as expired:
        Tokens(SECRET, ROLES, domain=DNS, leeway=600).identify(signed(exp=NOW - 1), NOW)
    assert expired.value.code == "token_expired"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": "x" * 257},
        {"sub": None},
        {"sub": 7},
        {"sub": "\ud800"},
        {"sub": "ann\udcff"},
        {"tenant": "\ud800"},
        {"role": "\ud800"},
        {"role": "admin", "permissions": ["dns.read", "\ud800"]},
        {"scopes": {"zones": ["a.org", "\ud800"]}},
        {"scopes": {"\ud800": ["a.org"]}},
        {"role": "nosuch"},
        {"role": ["admin"]},
        {"exp": "tomorrow"},
        {"is_admin": "yes"},
        {"permissions": "*"},
        {"permissions": {"*": True}},
        {"scopes": ["a.org"]},
        {"scopes": {"zones": "a.org"}},
        {"temp": "no"},
        {"jti": 7},
    ],
)
def test_claims_that_are_not_what_they_should_be(claims: dict[str, Any]) -> None:
    """A claim of the wrong kind, or with half a character, refuses the token: it is not read as if it weren't there."""
    token = signed(**claims) if claims.get("sub") != 7 else by_hand({"alg": "HS256"}, {"sub": 7, "exp": NOW + 60})
    assert to_http_response(refused(token))[0] == 401


@pytest.mark.parametrize("value", [float("nan"), "\ud800", [[[1e300]]], 2**70], ids=ascii)
def test_a_claim_that_is_none_of_ours(value: object) -> None:
    """Whatever else an application writes into its tokens, with whatever Python's JSON writes, is left alone."""
    assert TOKENS.identify(signed(other=value), NOW) == TOKENS.identify(signed(), NOW)


@pytest.mark.parametrize("name", ["Zones", "zonez", "ZONE", " zone", "", "x" * 1000])
def test_a_scope_that_is_no_attribute(name: str) -> None:
    """A misspelt scope would narrow nothing, so its token is refused with the name and those that there are."""
    fault = refused(signed(scopes={"zone": ["a.org"], name: ["a.org"]}))
    assert repr(name[:64]) in fault.message
    assert "zones" in fault.hint
    assert "client_ip" in fault.hint
    assert len(str(fault)) < 1000


@pytest.mark.parametrize(
    ("scopes", "word"),
    [
        ({"zones": [""]}, "empty"),
        ({"zones": ["a.org", " "]}, "blanks"),
        ({"zones": ["."]}, "root"),
        ({"zones": ["*"]}, "wildcard"),
        ({"zones": [None]}, "$.scopes[...][0]"),
        ({"zones": [7]}, "$.scopes[...][0]"),
        ({"zones": [["a.org"]]}, "$.scopes[...][0]"),
        ({"zones": None}, "$.scopes[...]"),
        ({"zones": ""}, "$.scopes[...]"),
        ({"zones": {"a.org": True}}, "$.scopes[...]"),
        ([], "$.scopes"),
        ("zones", "$.scopes"),
        (True, "$.scopes"),
    ],
)
def test_scopes_that_narrow_nothing(scopes: Any, word: str) -> None:
    """What is no list of names is refused, and never taken for none at all, which would show everything."""
    assert word in refused(signed(scopes=scopes)).message


def test_scopes_that_are_null() -> None:
    """An application that has no scopes to give leaves them out: null may be its mistake, and shows nothing."""
    claims = {"sub": "alice", "exp": NOW + 60, "scopes": None}
    assert "$.scopes" in refused(jwt.encode(claims, SECRET, "HS256")).message


def test_a_scope_in_both_spellings() -> None:
    """`zone` and `zones` in one token would make one of them be forgotten: it is refused, in either order."""
    for scopes in ({"zones": ["a"], "zone": ["b"]}, {"zone": ["b"], "zones": ["a"]}):
        assert "'zone'" in refused(signed(scopes=scopes)).message
    assert TOKENS.identify(signed(scopes={"zone": ["b"], "view": ["c"]}), NOW).scopes == {
        "zone": ("b",),
        "view": ("c",),
    }


@pytest.mark.parametrize("payload", [[], "alice", 7, None, b"{", b"\xff\xfe", {}], ids=str)
def test_a_signed_payload_that_is_no_claims(payload: object) -> None:
    """Even what is correctly signed must be an object of claims."""
    refused(by_hand({"alg": "HS256", "typ": "JWT"}, payload))


@pytest.mark.parametrize(
    "header",
    [
        [],
        "x",
        None,
        {},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": "HS256", "crit": ["x"]},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "kid": 7},
        {"alg": "HS256", "crit": ["\ud800"]},
    ],
    ids=ascii,
)
def test_a_header_that_is_no_header(header: object) -> None:
    """A header that says strange things refuses the token, whatever its signature, in words that HTTP can carry."""
    error = refused(by_hand(header, {"sub": "alice", "role": "admin", "exp": NOW + 60}))
    assert to_http_response(error)[0] == 401


def test_the_legacy_claim_of_admins() -> None:
    """Tokens of the application that has `is_admin` and no role still work: without either it means a viewer.

    It leaves `is_admin` out of refreshed tokens. A role that a token names goes first.
    """
    assert TOKENS.identify(signed(role=None, is_admin=True), NOW).role == "admin"
    assert TOKENS.identify(signed(role=None, is_admin=False), NOW).role == "viewer"
    assert TOKENS.identify(signed(role=None), NOW).role == "viewer"
    assert TOKENS.identify(signed(role="viewer", is_admin=True), NOW).role == "viewer"


def test_permissions_of_a_token_narrow() -> None:
    """A token may have fewer permissions than its role, and asking for more gives it none of them.

    Where nothing is left, its author meant something else, and reads so.
    """
    identity = TOKENS.identify(signed(permissions=["dns.read", "admin.read", "*", "dns.*"]), NOW)
    assert identity.permissions == ("dns.read",)
    assert TOKENS.identify(signed(role="admin", permissions=["dns.*"]), NOW).permissions == ("dns.*",)
    with pytest.raises(InvalidToken, match="leave nothing of its role 'viewer'"):
        TOKENS.identify(signed(permissions=["*"]), NOW)
    assert TOKENS.identify(signed(permissions=[]), NOW).permissions == ()
    assert TOKENS.identify(signed(role="operator", permissions=["sensitive.tsig_key"]), NOW).permissions == (
        "sensitive.tsig_key",
    )


@pytest.mark.parametrize("permission", ["dns.raed", "DNS.read", "dns.read ", "dns", "", "no.*", "x" * 4000])
def test_a_permission_that_nothing_asks_for_is_refused_by_name(permission: str) -> None:
    """Misspelt, it would hide in silence what its author meant to show."""
    with pytest.raises(InvalidToken) as caught:
        TOKENS.identify(signed(permissions=["dns.read", permission]), NOW)
    assert repr(permission[:100]) in str(caught.value)
    assert len(str(caught.value)) < 1000


@given(
    st.sampled_from(sorted(ROLES)),
    st.lists(
        st.sampled_from(["*", "dns.*", "dns.read", "sensitive.*", "admin.read", "sensitive.client_ip", "dns."]),
        max_size=5,
    ),
    st.text(max_size=12),
)
@settings(deadline=None, max_examples=examples(150))
def test_no_token_widens_its_role(role: str, permissions: list[str], wanted: str) -> None:
    """Whatever permissions a token claims, it may do nothing that its role may not."""
    try:
        identity = TOKENS.identify(signed(role=role, permissions=permissions), NOW)
    except InvalidToken:  # it names nothing, or leaves nothing: then it may do nothing at all
        return
    whole = TOKENS.identify(signed(role=role), NOW)
    for permission in (wanted, "dns.read", "admin.read", "sensitive.client_ip", "events.publish", "admin"):
        assert whole.has_permission(permission) or not identity.has_permission(permission)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=examples(200))
def test_any_text_is_refused(text: str) -> None:
    """Any text whatever in place of a token or a ticket is InvalidToken, and no other error."""
    with pytest.raises(InvalidToken):
        TOKENS.identify(text, NOW)
    with pytest.raises(InvalidToken):
        TOKENS.redeem_ticket(text, 0, NOW)


any_text = st.text(st.characters(), max_size=10) | st.text(st.characters(categories=["Cs", "Ll"]), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
texts = st.lists(any_text, max_size=2)
likely_claims = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(ROLES))},
    optional={
        "tenant": any_text,
        "permissions": texts,
        "scopes": st.dictionaries(st.just("zone") | any_text, texts, max_size=1),
    },
)
claim_names = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "jti", "aud", "iss", "role", "permissions", "scopes", "temp", "tenant", "type"]
)


@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "crit", "b64", "kid"]), json_values, max_size=3),
    st.dictionaries(claim_names, json_values, max_size=5) | likely_claims,
)
@settings(deadline=None, max_examples=examples(200))
def test_any_signed_claims_are_an_identity_or_refused(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Correctly signed nonsense is an identity that a ticket carries, or an InvalidToken that HTTP can tell."""
    token = by_hand({"alg": "HS256", **header}, {"sub": "alice", "exp": NOW + 60, **claims})
    try:
        identity = TOKENS.identify(token, NOW)
    except InvalidToken as error:
        to_http_response(error)
        return
    assert identity.expires is not None
    assert identity.expires > NOW
    assert Ring([0]).owner(identity.user) == 0
    assert TOKENS.redeem_ticket(TOKENS.issue_ticket(identity, 0, "t", NOW), 0, NOW).identity == identity


def test_a_large_token_is_not_remembered() -> None:
    """One beyond 2 KB proves the same, each time anew: a bounded number of tokens is a bounded memory."""
    tokens = Tokens(SECRET, ROLES, domain=DNS)
    small, large = (
        tokens.sign_token("ann", "viewer", now=NOW, ttl=60, scopes={"view": tuple(f"{n}" * 500 for n in range(count))})
        for count in (2, 4)
    )
    assert len(small) < KNOWN_TOKEN_BYTES < len(large)
    for token in (small, large, large):
        assert tokens.identify(token, NOW).user == "ann"
    assert list(tokens._cached_identities) == [small]


def test_a_known_token_is_good_until_it_expires() -> None:
    """A token that was verified before is the same identity again, and is refused once it has expired."""
    token = TOKENS.sign_token("alice", "viewer", now=NOW, ttl=60)
    assert TOKENS.identify(token, NOW + 59) is TOKENS.identify(token, NOW)
    with pytest.raises(InvalidToken) as caught:
        TOKENS.identify(token, NOW + 60)
    assert caught.value.code == "token_expired"


def test_tokens_are_remembered_in_bounded_number() -> None:
    """However many tokens are shown, so many are remembered; those that are forgotten are verified again."""
    few = Tokens(SECRET, ROLES, domain=DNS)
    tokens = [few.sign_token(f"user{n}", "viewer", now=NOW, ttl=60) for n in range(KNOWN_TOKENS + 10)]
    for token in tokens:
        few.identify(token, NOW)
    assert len(few._cached_identities) == KNOWN_TOKENS
    assert few.identify(tokens[0], NOW).user == "user0"


def test_wrong_tokens_are_not_remembered() -> None:
    """What proves nothing takes no memory, and is judged anew each time."""
    fresh = Tokens(SECRET, ROLES, domain=DNS)
    with pytest.raises(InvalidToken):
        fresh.identify(fresh.sign_token("alice", "viewer", now=NOW, ttl=60)[:-4] + "AAAA", NOW)
    assert not fresh._cached_identities


# ------------------------------------------------------------------------------------------------------- tickets

ALICE = Identity("alice", "viewer", ("dns.read",), {"zone": ("a.org",)}, NOW + 3600)


def ticket_refused(text: str, code: str, shard: int = 3, now: float = NOW) -> None:
    with pytest.raises(InvalidToken) as caught:
        TOKENS.redeem_ticket(text, shard, now)
    assert caught.value.code == code


def test_a_ticket_carries_an_identity_to_its_shard() -> None:
    """What the gateway found out about a user is what the shard knows, for half a minute."""
    text = TOKENS.issue_ticket(ALICE, 3, "t1", NOW)
    ticket = TOKENS.redeem_ticket(text, 3, NOW + TICKET_SECONDS - 0.1)
    assert (ticket.identity, ticket.jti, ticket.shard) == (ALICE, "t1", 3)


@pytest.mark.parametrize("value", ["x", '"', "ü", "\u0001", "\U0001f600"])
def test_the_longest_token_makes_a_ticket_that_is_taken(value: str) -> None:
    """A ticket says more than the token it is made for, and is good all the same; what is longer yet is refused."""
    claims: dict[str, Any] = {"sub": "a" * 256, "is_admin": True, "role": None, "tenant": value * 256}
    views = [value]
    while len(token := signed(**claims, scopes={"view": [*views, f"{len(views)}{value * 20}"]})) <= MAX_TOKEN_BYTES:
        views.append(f"{len(views)}{value * 20}")
    token = signed(**claims, scopes={"view": views})
    identity = TOKENS.identify(token, NOW)
    text = TOKENS.issue_ticket(identity, 10**9, "t" * 16, NOW, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")
    assert TOKENS.redeem_ticket(text, 10**9, NOW).identity == identity
    ticket_refused("a" * (2 * MAX_TOKEN_BYTES + 1), "invalid_token")


def test_an_expired_ticket() -> None:
    """A ticket that was kept for too long is refused, and says to get another."""
    ticket_refused(TOKENS.issue_ticket(ALICE, 3, "t1", NOW), "ticket_expired", now=NOW + TICKET_SECONDS)


def test_a_ticket_for_another_shard() -> None:
    """A ticket opens the one shard that it was made for."""
    ticket_refused(TOKENS.issue_ticket(ALICE, 3, "t1", NOW), "wrong_shard", shard=4)


def test_a_token_is_no_ticket() -> None:
    """A long-lived token in a URL opens nothing."""
    ticket_refused(TOKENS.sign_token("alice", "admin", now=NOW, ttl=60), "invalid_token")
    claims = {"jti": "x", "exp": NOW + 30, "shard": 3, "identity": {"user": "a", "role": "admin", "permissions": ["*"]}}
    ticket_refused(jwt.encode(claims, SECRET, "HS256"), "invalid_token")


def test_a_ticket_is_no_token() -> None:
    """A ticket that leaked from a URL can't be used against the API, not even while it is fresh."""
    refused(TOKENS.issue_ticket(ALICE, 3, "t1", NOW))


@given(at=st.integers(0, 200), to=st.sampled_from("Aa0-_=.?é "))
def test_a_changed_ticket(at: int, to: str) -> None:
    """Whoever changes a character of what a ticket says makes it void, and can't reach the decoder behind."""
    text = TOKENS.issue_ticket(ALICE, 3, "t1", NOW)
    if text[at] != to:
        ticket_refused(text[:at] + to + text[at + 1 :], "invalid_token")


def test_no_ticket() -> None:
    """Who opens a shard's URL without a ticket is refused."""
    ticket_refused("", "missing_token")


def test_a_ticket_of_another_installation() -> None:
    """A ticket that another secret made opens nothing here."""
    other = Tokens("another secret that is long enough for HS256", ROLES, domain=DNS)
    ticket_refused(other.issue_ticket(ALICE, 3, "t1", NOW), "invalid_token")


def test_a_ticket_is_used_once() -> None:
    """A ticket that has opened a connection opens no second one, for as long as it would have been valid."""
    used = UsedTickets()
    ticket = TOKENS.redeem_ticket(TOKENS.issue_ticket(ALICE, 3, "t1", NOW), 3, NOW)
    used.mark_used(ticket, NOW)
    for later in (NOW, NOW + 1, NOW + TICKET_SECONDS - 0.1):
        with pytest.raises(InvalidToken) as caught:
            used.mark_used(ticket, later)
        assert caught.value.code == "ticket_used"


def test_used_tickets_are_forgotten_when_they_are_void() -> None:
    """A shard that runs for years remembers only the tickets of the last half minute."""
    used = UsedTickets()
    for n in range(1000):
        now = NOW + n
        used.mark_used(TOKENS.redeem_ticket(TOKENS.issue_ticket(ALICE, 3, f"t{n}", now), 3, now), now)
        assert len(used._seen) == len(used._order) <= TICKET_SECONDS + 1
