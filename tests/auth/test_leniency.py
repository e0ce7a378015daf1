"""What is asked less of old clients' tokens, and what is not."""

from __future__ import annotations

from typing import Any

import jwt
import pytest

from solowire.auth.leniency import MAX_ADMINS, Leniency, read_token_end
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import Revocation
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken
from solowire.model.access import ROLES

SECRET = "a secret that is long enough for HS256, really"
NOW = 1_800_000_000.0


def old_token(secret: str = SECRET, *, end: float = NOW + 600, **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "user_id": 7, "exp": end, **claims}, secret, "HS256")


def make_tokens() -> Tokens:
    return Tokens(SECRET, ROLES, domain=DNS)


def test_an_expired_token_counts_within_the_grace_and_each_use_is_counted() -> None:
    """Until its end and the grace are over; a token in time costs none of it."""
    tokens, leniency = make_tokens(), Leniency(60.0)
    assert tokens.identify_leniently(old_token(), NOW, leniency).expires == NOW + 600
    assert leniency.late_count == 0
    late = tokens.identify_leniently(old_token(end=NOW - 59), NOW, leniency)
    assert (late.expires, leniency.late_count) == (NOW + 1, 1)
    with pytest.raises(InvalidToken) as refused:
        tokens.identify_leniently(old_token(end=NOW - 60), NOW, leniency)
    assert refused.value.code == "token_expired"


def test_without_a_grace_expired_tokens_are_refused() -> None:
    with pytest.raises(InvalidToken):
        make_tokens().identify_leniently(old_token(end=NOW), NOW, Leniency())


@pytest.mark.parametrize("claims", [{"type": "refresh"}, {"temp": True}])
def test_tokens_that_open_nothing_still_open_nothing(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        make_tokens().identify_leniently(old_token(**claims), NOW, Leniency(60.0))


def test_a_signature_is_always_needed() -> None:
    """The faults of the replaced server: no signature, another's, an unreadable token."""
    unsigned = jwt.encode({"sub": "ann", "is_admin": True, "exp": NOW + 60}, "", "none")
    for token in (unsigned, old_token("another secret that is long enough"), "nonsense", ""):
        with pytest.raises(InvalidToken):
            make_tokens().identify_leniently(token, NOW, Leniency(60.0, 86400.0))


def role(tokens: Tokens, leniency: Leniency, now: float = NOW, **claims: Any) -> str:
    return tokens.identify_leniently(old_token(end=now + 600, **claims), now, leniency).role


def test_a_missing_is_admin_means_no_admin() -> None:
    """Whatever was said before, unless an operator wants it remembered."""
    tokens, leniency = make_tokens(), Leniency()
    assert role(tokens, leniency, is_admin=True) == "admin"
    assert role(tokens, leniency) == "viewer"


def test_an_administrator_is_remembered_for_a_time() -> None:
    tokens, leniency = make_tokens(), Leniency(0.0, 86400.0)
    assert role(tokens, leniency) == "viewer"
    assert role(tokens, leniency, is_admin=True) == "admin"
    assert role(tokens, leniency, NOW + 86399) == "admin"
    assert role(tokens, leniency, NOW + 86400) == "viewer"
    assert role(tokens, leniency, sub="bob") == "viewer"


def test_who_is_said_to_be_none_is_one_no_longer() -> None:
    tokens, leniency = make_tokens(), Leniency(0.0, 86400.0)
    assert role(tokens, leniency, is_admin=True) == "admin"
    assert role(tokens, leniency, is_admin=False) == "viewer"
    assert role(tokens, leniency) == "viewer"


def test_what_a_revoked_token_says_is_not_remembered() -> None:
    """Somebody who has stolen one makes nobody an administrator by it."""
    tokens, leniency = make_tokens(), Leniency(0.0, 86400.0)
    tokens.revocations.add([Revocation("r", None, "stolen", None, NOW, NOW + 600, "root")])
    with pytest.raises(InvalidToken):
        role(tokens, leniency, is_admin=True, jti="stolen")
    assert role(tokens, leniency) == "viewer"


def test_the_memory_has_a_bound() -> None:
    leniency = Leniency(0.0, 86400.0)
    for number in range(MAX_ADMINS + 1):
        leniency.judge_admin(f"user-{number}", True, NOW)
    assert not leniency.judge_admin("user-0", None, NOW)
    assert leniency.judge_admin("user-1", None, NOW)


def test_a_token_says_when_it_ends_whatever_the_grace() -> None:
    """By an id that is made of it, where it has none of its own."""
    tokens, leniency = make_tokens(), Leniency(3600.0)
    for end in (NOW + 600, NOW - 600):
        assert read_token_end(tokens.identify_leniently(old_token(end=end), NOW, leniency)) == end
    own = tokens.identify_leniently(old_token(jti="own"), NOW, leniency)
    assert (own.proof.token_id, read_token_end(own)) == ("own", NOW + 600)


def test_a_token_can_be_revoked_by_the_id_that_it_is_given() -> None:
    tokens, leniency = make_tokens(), Leniency()
    identity = tokens.identify_leniently(old_token(), NOW, leniency)
    tokens.revocations.add([Revocation("r", None, identity.proof.token_id, None, NOW, NOW + 600, "root")])
    with pytest.raises(InvalidToken):
        tokens.identify_leniently(old_token(), NOW, leniency)


def test_elsewhere_nothing_is_different() -> None:
    """A token at `/v1/connect` has no grace, no memory and no made-up id."""
    tokens = make_tokens()
    identity = tokens.identify(old_token(), NOW)
    assert (identity.role, identity.proof.token_id) == ("viewer", "")
    with pytest.raises(InvalidToken):
        tokens.identify(old_token(end=NOW), NOW)
