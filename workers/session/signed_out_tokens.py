"""Tokens of old clients whose user was disconnected: they open no connection any more.

A page that is signed out goes on connecting as long as it is loaded, and not even with its newest token, but with the
one that it first had. Its application has told the gateway that the user is to be disconnected; it can't revoke the
tokens, which have neither an id nor a time of issue. But all of an application's tokens live equally long: those that
end no later than the last one that the user showed here are from before.

What it keeps true: of a user who was disconnected such a token is refused here, and a later one is not. MAX_USERS are
known; beyond, the one who came first is forgotten, and all are when the shard restarts.
"""

from __future__ import annotations

from collections import OrderedDict

from solowire.auth.leniency import read_token_end
from solowire.errors import InvalidToken
from solowire.model.access import Identity

MAX_USERS = 10_000


class SignedOutTokens:
    """Remembers tokens whose users have signed out. Times are unix seconds."""

    def __init__(self) -> None:
        self._last_ends: OrderedDict[str, float] = OrderedDict()  # of the tokens that each user has shown
        self._void_ends: OrderedDict[str, float] = OrderedDict()

    def note(self, identity: Identity) -> None:
        """A token of this user has opened a connection."""
        _put_largest(self._last_ends, identity.user, read_token_end(identity))

    def sign_out(self, user: str) -> None:
        """The user is disconnected: what was shown until now is void."""
        if user in self._last_ends:
            _put_largest(self._void_ends, user, self._last_ends[user])

    def check(self, identity: Identity) -> None:
        """Rejects a token that was signed out. Raises InvalidToken."""
        if read_token_end(identity) <= self._void_ends.get(identity.user, float("-inf")):
            raise InvalidToken("the user has signed out", code="token_revoked", hint="sign in again for another token")


def _put_largest(kept: OrderedDict[str, float], user: str, end: float) -> None:
    kept[user] = max(end, kept.get(user, end))
    kept.move_to_end(user)
    if len(kept) > MAX_USERS:
        kept.popitem(last=False)
