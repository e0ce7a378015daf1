"""Leniency with tokens at the paths of old clients, which can't show others.

What it keeps true: a signature is always needed. A token counts after its end for `expiry_grace_s` at most, and each
such use is counted. Who shows a token that says nothing of `is_admin` is an administrator only if one of that user's
tokens has said so, here, within `admin_memory_s`, and none has said the opposite since. Of MAX_ADMINS that is known;
beyond, the one who was seen first is forgotten.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict

from solowire.model.access import Identity

MAX_ADMINS = 10_000
_NAMED = re.compile(r"exp(\d+)-[0-9a-f]{32}")


class Leniency:
    """How much less is asked. Seconds; 0: no grace, no memory. names_tokens: those without an id get one.

    late_count: how often an expired token was accepted.
    """

    def __init__(self, expiry_grace_s: float = 0.0, admin_memory_s: float = 0.0, *, names_tokens: bool = True) -> None:
        self.expiry_grace_s = expiry_grace_s
        self.late_count = 0
        self._admin_memory_s = admin_memory_s
        self._names_tokens = names_tokens
        self._seen_at: OrderedDict[str, float] = OrderedDict()

    def name_token(self, token: str, end: float) -> str:
        """An id for a token that ends then (unix seconds)."""
        if not self._names_tokens:
            return ""
        return f"exp{max(0, int(end))}-{hashlib.blake2b(token.encode(), digest_size=16).hexdigest()}"

    def judge_admin(self, user: str, is_claimed: bool | None, now: float) -> bool:
        """Whether the user is an administrator. is_claimed: what the token says, None if nothing. now: unix seconds."""
        if is_claimed is None:
            seen_at = self._seen_at.get(user)
            return seen_at is not None and now - seen_at < self._admin_memory_s
        self._seen_at.pop(user, None)
        if is_claimed and self._admin_memory_s:
            self._seen_at[user] = now
            if len(self._seen_at) > MAX_ADMINS:
                self._seen_at.popitem(last=False)
        return is_claimed


STRICT = Leniency(names_tokens=False)
"""As all other tokens are judged. It remembers nothing."""


def read_token_end(identity: Identity) -> float:
    """When the token ends, or ended, that proved it; unix seconds. A grace doesn't count."""
    named = _NAMED.fullmatch(identity.proof.token_id)
    if named is not None:
        return float(named[1])
    return identity.expires if identity.expires is not None else float("inf")
