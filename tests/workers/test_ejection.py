"""Throwing users out of a shard: whom a word covers, and what they hear; and a refresh whose key has to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from solowire.auth.claims import ANY, ClaimMapping, TokenRules
from solowire.auth.keys import parse_key_set
from solowire.auth.tokens import Tokens
from solowire.backplane.messages import Revocation
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken
from solowire.model.access import ROLES, Identity, Proof
from solowire.protocol import messages as c
from solowire.protocol.close_codes import CloseCode
from solowire.workers.connections.connection import State
from tests.support.jwks_server import SigningKey
from tests.support.shard_harness import SECRET, TOKENS, WALL, ShardHarness


def revocation(user: str | None = None, token_id: str | None = None, before: float | None = None) -> Revocation:
    return Revocation("r1", user, token_id, before, WALL, WALL + 1e6, "admin")


@pytest.fixture(autouse=True)
def lifted() -> Iterator[None]:
    yield
    TOKENS.revocations.replace([])


def identity(user: str, token_id: str = "", issued_at: float | None = None) -> Identity:
    return Identity(user, "viewer", ROLES["viewer"].permissions, proof=Proof(token_id, issued_at))


def test_a_user_is_disconnected() -> None:
    """All of its connections, in whatever state, with 4410, and nobody else's; the audit log says why."""
    b = ShardHarness(limits__max_connections_per_user=3)
    live, pending, other = b.connect("ann"), b.open_connection("ann"), b.connect("ann2")
    leaving = b.connect("ann")
    b.shard._departures.send_away(leaving, 10.0, "draining", b.now)
    assert b.shard.disconnect("ann") == 3
    assert {b.close_code(connection) for connection in (live, pending, leaving)} == {CloseCode.disconnected}
    assert b.close_code(other) is None
    assert b.shard.disconnect("ann") == 0
    reasons = [line["reason"] for line in b.audit_lines if line["event"] == "disconnected"]
    assert reasons == ["disconnected"] * 3


def test_connections_of_revoked_tokens_are_closed() -> None:
    """By whichever token they are proved now: a refreshed connection is that of its new token."""
    b = ShardHarness(limits__max_connections_per_user=3)
    first, second, third = (b.open_as(identity("ann", name, WALL)) for name in ("a", "b", "c"))
    assert b.shard.revoke([revocation(token_id="b")], b.now) == 1
    assert [b.close_code(x) for x in (first, second, third)] == [None, CloseCode.unauthenticated, None]
    assert b.audit_lines[-1]["reason"] == "token_revoked"
    first.replace_identity(identity("ann", "d", WALL + 10))
    assert b.shard.revoke([revocation(token_id="a"), revocation("ann", before=WALL + 5)], b.now) == 1
    assert [b.close_code(x) for x in (first, third)] == [None, CloseCode.unauthenticated]
    assert b.shard.revoke([], b.now) == 0


def test_a_ticket_of_a_revoked_token_lets_nobody_in() -> None:
    """Also one that was made before, and what refreshes a connection has to be good as well."""
    b = ShardHarness()
    ticket, token = b.issue_ticket("ann"), b.sign_token("ann")
    connection = b.connect("ann")
    TOKENS.revocations.add([revocation("ann")])
    with pytest.raises(InvalidToken) as caught:
        b.shard.admit(ticket, b.now)
    assert caught.value.code == "token_revoked"
    b.say(connection, c.Refresh(token, "r"))
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("r", "token_revoked")


def test_who_has_more_than_its_role_grants_now_is_closed() -> None:
    """With a code to come back where it still may connect, for good where its role is gone; nobody else is."""
    b = ShardHarness()
    viewer, operator, narrow, gone = (
        b.open_as(Identity(user, role, permissions))
        for user, role, permissions in (
            ("v", "viewer", ROLES["viewer"].permissions),
            ("o", "operator", ROLES["operator"].permissions),
            ("n", "viewer", ("dns.read",)),
            ("g", "admin", ROLES["admin"].permissions),
        )
    )
    ticket = b.issue_ticket("later", "viewer")
    roles = {name: role for name, role in ROLES.items() if name != "admin"}
    less = tuple(name for name in ROLES["viewer"].permissions if name != "health.read")
    TOKENS.set_secrets([SECRET], roles | {"viewer": replace(ROLES["viewer"], permissions=less)})
    try:
        assert b.shard.apply_roles() == 2
        codes = [b.close_code(connection) for connection in (viewer, operator, narrow, gone)]
        assert codes == [CloseCode.restarting, None, None, CloseCode.forbidden]
        redeemed = TOKENS.redeem_ticket(ticket, 0, WALL)
        assert redeemed.identity.permissions == less
        assert b.shard.apply_roles() == 0
    finally:
        TOKENS.set_secrets([SECRET], ROLES)


# ------------------------------------------------------------------------------------------ keys that are read again

OLD, NEW = SigningKey("EdDSA", "old"), SigningKey("EdDSA", "new")


class Provided(ShardHarness):
    """A shard whose users come from a provider, and whose refreshes may wait for its keys."""

    def __init__(self, awaits: bool = True) -> None:
        super().__init__()
        rules = TokenRules((ANY,), (ANY,), mapping=ClaimMapping(default_role="viewer"))
        self.tokens = Tokens(SECRET, ROLES, domain=DNS, rules=rules, has_provider=True)
        self.shard._command_handler._tokens = self.tokens
        self.shard._command_handler._max_pending = 1 if awaits else 0

    def retry(self, keys_wait: float | None = None) -> None:
        """The keys have been read for the one that waits, or can't be for so many seconds."""
        [pending] = self.shard.take_pending_refreshes()
        self.shard.retry_refresh(pending, self.now, keys_wait)

    def use(self, *keys: SigningKey) -> None:
        self.tokens.set_keys(parse_key_set(json.dumps({"keys": [key.jwk() for key in keys]}).encode()))


def token(key: SigningKey, **more: Any) -> str:
    return key.sign({"sub": "alice", "exp": WALL + 5000, **more})


def test_a_refresh_waits_for_its_key() -> None:
    """Once: what is known then is taken, what isn't is refused, and the connection goes on meanwhile."""
    b = Provided()
    b.use(OLD)
    connection = b.connect("alice", subscriptions=["custom.a"])
    b.say(connection, c.Refresh(token(NEW), "r"))
    b.publish("custom.a")
    b.wait(1)
    assert [m.type if hasattr(m, "type") else type(m).__name__ for m in b.read_messages(connection)] == ["Events"]
    b.use(OLD, NEW)
    b.retry()
    reply = b.read_messages(connection)[0]
    assert reply.id == "r"
    b.say(connection, c.Refresh(token(SigningKey("EdDSA", "other")), "s"))
    b.retry()
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("s", "invalid_token")
    assert not b.shard.take_pending_refreshes()


def test_a_key_of_which_nobody_can_know() -> None:
    """As long as the keys can't be read again a new one may be right: the client is told when to come again."""
    b = Provided()
    b.use(OLD)
    connection = b.connect("alice")
    b.say(connection, c.Refresh(token(NEW), "r"))
    b.retry(keys_wait=7.5)
    [error] = b.read_messages(connection)
    assert (error.id, error.code, error.retry_after) == ("r", "keys_unavailable", 7.5)


def test_a_connection_that_has_gone_meanwhile() -> None:
    """It hears nothing, and nothing happens."""
    b = Provided()
    b.use(OLD)
    connection = b.connect("alice")
    b.say(connection, c.Refresh(token(NEW), "r"))
    b.shard.disconnect("alice")
    b.use(NEW)
    b.retry()
    assert b.close_code(connection) == CloseCode.disconnected


def test_keys_that_cannot_be_had() -> None:
    """The client is told that it isn't its token's fault."""
    b = Provided(awaits=False)
    connection = b.connect("alice")
    b.say(connection, c.Refresh(token(NEW), "r"))
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("r", "keys_unavailable")


def test_a_refresh_that_waits_for_its_key_while_the_client_comes_back() -> None:
    """It holds from where the client has got what it had missed, by the rights that it had until then; as if it had
    been said meanwhile. Whatever is for other rights is never sent behind its answer.
    """
    b = Provided()
    b.use(OLD)
    b.make_event("custom.a", {"zone": "other.example"})
    b.deliver()
    connection = b.open_connection("alice")
    b.say(connection, c.Refresh(token(NEW, scopes={"zones": ["example.com"]}), "r"))
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 0)))
    assert connection.state is State.resuming
    b.use(OLD, NEW)
    b.retry()
    b.answer_requests()
    b.wait(1)
    told = [type(m).__name__ for m in b.read_messages(connection)]
    assert told == ["Welcome", "Events", "Reply", "Subscriptions"]
    b.publish("custom.a", {"zone": "other.example"})
    b.wait(1)
    assert b.read_events(connection) == []
