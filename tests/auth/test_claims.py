"""What a token says: what was meant to narrow it is never passed over, and a provider's words are put into ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.auth.claims import ANY, ClaimMapping, ClaimReader, Claims, TokenRules
from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidToken
from solowire.model.access import ROLES, Identity
from tests.support.examples import examples

SECRET = "a secret that is long enough for HS256, really"
NOW = 1_800_000_000.0
TOKENS = Tokens(SECRET, ROLES, domain=DNS)


def signed(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", "role": "viewer", "exp": NOW + 60, **claims}, SECRET, "HS256")


def refused(token: str, tokens: Tokens = TOKENS) -> InvalidToken:
    with pytest.raises(InvalidToken) as caught:
        tokens.identify(token, NOW)
    assert caught.value.code == "invalid_token"
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zones", ["example.com"]),
        ("zones", []),
        ("zones", None),
        ("zone", "example.com"),
        ("Zones", ["example.com"]),
        ("view", "internal"),
        ("views", ["internal"]),
        ("client_ip", ["10.0.0.1"]),
        ("client-ip", ["10.0.0.1"]),
        ("query_domain", "example.com"),
        ("server", ["ns1"]),
        ("servers", ["ns1"]),
        ("user", ["ann"]),
        ("scope", {"zones": ["example.com"]}),
        ("scope", ["example.com"]),
        ("Scopes", {"zones": ["example.com"]}),
        ("permission", ["dns.read"]),
        ("Permissions", []),
        ("roles", ["viewer"]),
        ("Role", "publisher"),
        ("ROLE", "publisher"),
        ("Tenant", "t"),
        ("tenants", ["t"]),
        ("isAdmin", False),
        ("is-admin", False),
        ("Type", "refresh"),
        ("TEMP", True),
        ("Aud", "billing"),
        ("AUD", ["billing"]),
        ("ISS", "https://b.example"),
        ("JTI", "0b2f"),
        ("Jti", "0b2f"),
        ("Nbf", NOW + 1000),
        ("IAT", NOW - 1000),
        ("clientIp", ["10.0.0.1"]),
        (" zones", ["example.com"]),
        ("zones ", ["example.com"]),
        ("\uff5aones", ["example.com"]),
        ("dns_zones", ["example.com"]),
        ("allowedZones", ["example.com"]),
        ("zone-names", ["example.com"]),
        ("https://app.example/zones", ["example.com"]),
        ("https://app.example/zone", "example.com"),
        ("urn:app:scopes", {"zones": ["example.com"]}),
        ("solowire", {"zones": ["example.com"]}),
        ("data", {"x": [{"zone": ["example.com"]}]}),
        ("claims", {"scopes": {"zones": ["example.com"]}}),
        ("user", {"scopes": {"view": ["internal"]}}),
        ("app_metadata", {"allowed_zones": ["example.com"]}),
        ("data", {"x": [{"dnsZones": ["example.com"]}]}),
        ("solowire", {"zone": "example.com"}),
        ("https://app.example/claims", {"zones": "example.com"}),
        ("token_type", "refresh"),
        ("tokenType", "Refresh"),
        ("token_use", "refresh_token"),
        ("typ", "Offline"),
    ],
)
def test_a_claim_of_ours_in_the_wrong_place(name: str, value: object) -> None:
    """A token that was meant to be narrower is refused by the claim's name, with where it belongs."""
    error = refused(signed(**{name: value}))
    assert ascii(name) in error.message
    assert error.hint


def test_zones_at_the_top_say_how_to_write_them() -> None:
    """The commonest mistake gets the very words to write instead."""
    assert '{"scopes": {"zones": […]}}' in refused(signed(zones=["example.com"])).hint


def test_an_empty_token_id_is_refused() -> None:
    """It would be that of all tokens that have one: nobody could revoke one of them alone."""
    assert "$.jti" in refused(signed(jti="")).message


@pytest.mark.parametrize("name", ["dns_zone", "dns_zones", "allowedZone", "zone_list", "ZONES-OF-ANN"])
@pytest.mark.parametrize("value", ["example.com", "", ["example.com"], {"example.com": ["read"]}, {}], ids=json.dumps)
def test_a_name_that_speaks_of_zones(name: str, value: object) -> None:
    """It is refused whatever form its value has: each would have been passed over, and the token not narrowed."""
    error = refused(signed(**{name: value}))
    assert ascii(name) in error.message
    assert "within scopes" in error.hint


@pytest.mark.parametrize(
    "name",
    ["sub", "exp", "nbf", "iat", "iss", "role", "is_admin", "permissions", "scopes", "tenant", "type", "temp", "jti"],
)
@pytest.mark.parametrize("value", [None, {"x": 1}, [1], 1.5, [["x"]]], ids=json.dumps)
def test_a_claim_of_the_wrong_type(name: str, value: object) -> None:
    """It is named, and `null` is of the wrong type: what says nothing is left out."""
    if value == 1.5 and name in ("exp", "nbf", "iat"):
        return
    error = refused(
        jwt.api_jws.encode(json.dumps({"sub": "ann", "exp": NOW + 60, name: value}).encode(), SECRET, "HS256")
    )
    assert f"$.{name}" in error.message


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "openid profile"},
        {"name": "Ann"},
        {"status": {"status_list": {}}},
        {"user": "ann"},
        {"user": {"id": 1}},
        {"server": "auth-1"},
        {"user_id": 7},
        {"email": "ann@example.com", "groups": ["x"], "azp": "x", "sid": "x"},
        {"zoneinfo": "Europe/Berlin"},
        {"iss": "https://app.example"},
        {"user": {"id": 1, "role": "x", "name": "Ann", "zone": "eu-west-1", "scopes": ["a"], "permissions": ["b"]}},
        {"realm_access": {"roles": ["x"]}, "resource_access": {"account": {"roles": ["x"]}}},
        {"authorization": {"permissions": [{"rsname": "x", "scopes": ["read"]}]}},
        {"https://app.example/roles": ["x"], "https://app.example/name": "Ann", "urn:x:scope": "openid"},
        {"timeZone": "Europe/Berlin", "user_time_zones": ["Europe/Berlin"], "has_zones": True},
        {"time_zone": "Europe/Berlin", "zones_count": 3, "amr": ["pwd"], "nonce": "x"},
    ],
)
def test_what_is_none_of_ours_is_left_alone(claims: dict[str, Any]) -> None:
    """Claims that applications and providers write for others change nothing."""
    assert TOKENS.identify(signed(**claims), NOW) == TOKENS.identify(signed(), NOW)


@given(
    st.dictionaries(
        st.sampled_from(sorted({*Claims.__struct_fields__, *CATALOG.attributes, "zones", "scope", "Role", "roles"})),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2),
        max_size=4,
    )
)
@settings(deadline=None, max_examples=examples(200))
def test_no_claim_of_ours_is_passed_over(claims: dict[str, Any]) -> None:
    """A token is refused, or all of its claims of ours are in the identity: whatever stands where."""
    try:
        identity = TOKENS.identify(jwt.encode({"sub": "ann", "exp": NOW + 60} | claims, SECRET, "HS256"), NOW)
    except (InvalidToken, TypeError):
        return
    except jwt.PyJWTError:
        return  # PyJWT itself makes no such token
    assert not {"zone", "zones", "roles", "Role", "view", "client_ip"} & claims.keys()
    assert identity.role == claims.get("role", "admin" if claims.get("is_admin") else "viewer")


# ----------------------------------------------------------------------------------------- audience, issuer, life


def test_a_token_for_somebody_else() -> None:
    """Who has no name takes no token that has an audience, and who has takes none that is for others (RFC 7519)."""
    assert "aud" in refused(signed(aud="billing")).message
    ours = Tokens(SECRET, ROLES, domain=DNS, rules=TokenRules(audiences=("solowire", "sw2")))
    for aud in ("solowire", ["billing", "sw2"]):
        assert ours.identify(signed(aud=aud), NOW).user == "ann"
    others: tuple[dict[str, Any], ...] = ({}, {"aud": "billing"}, {"aud": []}, {"aud": ["Solowire"]})
    for claims in others:
        assert "SOLOWIRE_AUTH__AUDIENCES" in refused(signed(**claims), ours).hint
    assert refused(signed(), ours).message == "the token has no 'aud'"
    anybodys = Tokens(SECRET, ROLES, domain=DNS, rules=TokenRules(audiences=(ANY,)))
    for claims in ({}, {"aud": "billing"}):
        assert anybodys.identify(signed(**claims), NOW).user == "ann"


def test_a_token_of_another_issuer() -> None:
    """Where issuers are named, each token has to be one of theirs."""
    ours = Tokens(SECRET, ROLES, domain=DNS, rules=TokenRules(issuers=("https://a.example",)))
    assert ours.identify(signed(iss="https://a.example"), NOW).user == "ann"
    for claims in ({}, {"iss": "https://a.example/"}, {"iss": "https://b.example"}):
        assert "SOLOWIRE_AUTH__ISSUERS" in refused(signed(**claims), ours).hint
    assert refused(signed(), ours).message == "the token has no 'iss'"
    assert ours.identify(ours.sign_token("ann", "viewer", now=NOW, ttl=60), NOW).user == "ann"


def test_a_token_that_lives_too_long() -> None:
    """It would outlive the revocation that covers it."""
    strict = Tokens(SECRET, ROLES, domain=DNS, rules=TokenRules(max_life=3600))
    assert strict.identify(signed(iat=NOW - 3000, exp=NOW + 600), NOW).user == "ann"
    for claims in ({"exp": NOW + 3601}, {"iat": NOW - 3000, "exp": NOW + 601}):
        assert "SOLOWIRE_AUTH__MAX_TOKEN_LIFE_S" in refused(signed(**claims), strict).hint


# ----------------------------------------------------------------------------------------------------- a provider's


def mapped(mapping: ClaimMapping, **claims: Any) -> Claims:
    return ClaimReader(DNS).read_claims(json.dumps({"sub": "1", "exp": NOW + 60, **claims}).encode(), mapping)


def test_a_mapping_finds_claims_by_name_and_by_path() -> None:
    """The exact name goes first, since providers name claims by URLs; dots lead into objects."""
    mapping = ClaimMapping(
        "preferred_username", "https://x.example/role", "org.name", scope_claims={"zone": "attributes.zones"}
    )
    claims = mapped(
        mapping,
        preferred_username="ann",
        **{"https://x.example/role": "viewer"},
        org={"name": "t"},
        attributes={"zones": "example.com"},
    )
    assert (claims.sub, claims.role, claims.tenant) == ("ann", "viewer", "t")
    assert claims.scopes == {"zone": ("example.com",)}


@pytest.mark.parametrize(
    ("values", "role"),
    [
        (["a"], "admin"),
        (["x", "v", "a"], "admin"),
        ("v", "viewer"),
        (["x"], None),
        ([], None),
        (None, None),
        (7, None),
        ([["a"]], None),
        ({"a": 1}, None),
        (["admin"], None),
        (["x"] * 501, None),
    ],
)
def test_the_role_of_several_values(values: object, role: str | None) -> None:
    """The first that the operator has named counts; what names none is refused, also a role's own name."""
    mapping = ClaimMapping(role="groups", roles={"a": "admin", "v": "viewer"})
    if role is None:
        with pytest.raises(InvalidToken):
            mapped(mapping, **({} if values is None else {"groups": values}))
    else:
        assert mapped(mapping, groups=values).role == role


def test_a_role_that_nobody_gives() -> None:
    """Without a default nobody of a provider is a viewer only because it knows them."""
    with pytest.raises(InvalidToken, match="SOLOWIRE_AUTH__CLAIMS__DEFAULT_ROLE"):
        mapped(ClaimMapping())
    assert mapped(ClaimMapping(default_role="viewer")).role == "viewer"
    with pytest.raises(InvalidToken):
        mapped(ClaimMapping(default_role="viewer"), role=["viewer", "admin"])


@pytest.mark.parametrize(
    "claims",
    [
        {"zones": ["a.org"]},
        {"scopes": ["a.org"]},
        {"scopes": {"zones": "a.org"}},
        {"role": "viewer", "Role": "x"},
        {"scopes": {"zone": ["b"]}, "z": ["a"]},
        {"z": 7},
        {"z": {"a": 1}},
    ],
)
def test_a_providers_claims_that_are_nearly_ours(claims: dict[str, Any]) -> None:
    """What would narrow, in the wrong place or twice, refuses a provider's token as it does ours."""
    with pytest.raises(InvalidToken):
        mapped(ClaimMapping(default_role="viewer", scope_claims={"zone": "z"}), **claims)


def test_a_providers_scopes_that_nothing_maps() -> None:
    """Who has forgotten to say which claim has the zones hears of it, and nobody sees all of them meanwhile."""
    mapping = ClaimMapping(default_role="viewer", scope_claims={"zone": "attributes.dns.zones"})
    nested = {"attributes": {"dns": {"zones": ["a.org"]}, "x": 1}}
    assert mapped(mapping, **nested).scopes == {"zone": ("a.org",)}
    for claims in (nested, {"https://x.example/zones": ["a.org"]}):
        with pytest.raises(InvalidToken, match="zones"):
            mapped(ClaimMapping(default_role="viewer"), **claims)
    for name in ("dns_zones", "https://x.example/zones"):
        by_name = ClaimMapping(default_role="viewer", scope_claims={"zone": name})
        assert mapped(by_name, **{name: ["a.org"]}).scopes == {"zone": ("a.org",)}


def test_names_that_a_mapping_has_replaced_are_left_alone() -> None:
    """Where `groups` says the role, a provider's own `role` and `roles` are none of ours."""
    mapping = ClaimMapping(role="groups", tenant="org")
    claims = mapped(mapping, groups="viewer", role="Administrator", roles=["x"], tenant={"id": 1}, org="t")
    assert (claims.role, claims.tenant) == ("viewer", "t")
    assert mapped(ClaimMapping(role="roles"), roles=["viewer"], scopes="openid x").scopes == {}


# ----------------------------------------------------------------------------------------------------- what is written


def test_the_examples_of_the_docs_are_true() -> None:
    """Each example of docs/tokens.md is accepted, or refused, as it says there."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "tokens.md").read_text()
    found = re.findall(r"^\| `(\{.*\})` \| (accepted|refused)", page, re.MULTILINE)
    assert len(found) > 15
    for text, verdict in found:
        claims = {"sub": "ann", "exp": NOW + 60} | json.loads(text.replace("\\|", "|"))
        token = jwt.encode(claims, SECRET, "HS256")
        if verdict == "refused":
            refused(token)
        else:
            assert isinstance(TOKENS.identify(token, NOW), Identity), text


def test_each_claim_has_its_place_in_the_docs() -> None:
    """A claim that is read is documented."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "tokens.md").read_text()
    for name in Claims.__struct_fields__:
        assert f"| `{name}` |" in page, name
