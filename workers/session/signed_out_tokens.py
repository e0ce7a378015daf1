"""Tokens of old clients whose user was disconnected: they open no connection any more.

A page that is signed out goes on connecting, with the token that it first had, as long as it is loaded. Its application
has told the gateway that the user is to be disconnected, and can't revoke one token: it has no id.

What it keeps true: a token whose connection was ended so is refused here until it expires, whatever the user's other
tokens are. Of MAX_TOKENS that is known; beyond, the one that was noted first is forgotten, and so are all by a restart.
"""

from __future__ import annotations

from collections import OrderedDict

from solowire.errors import InvalidToken
from solowire.model.access import Identity

MAX_TOKENS = 10_000


class SignedOutTokens:
    """Times are unix seconds."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, identity: Identity) -> None:
        """The token that proved this identity, if it can be told apart from others."""
        if identity.proof.token_id:
            self._until[identity.proof.token_id] = identity.expires or float("inf")
            if len(self._until) > MAX_TOKENS:
                self._until.popitem(last=False)

    def check(self, identity: Identity, unix: float) -> None:
        """Raises InvalidToken."""
        until = self._until.get(identity.proof.token_id)
        if until is None:
            return
        if until <= unix:
            del self._until[identity.proof.token_id]
            return
        raise InvalidToken("the user has signed out", code="token_revoked", hint="sign in again for another token")
