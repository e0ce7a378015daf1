"""How much less is asked of tokens at the paths of old clients, which can't show others.

What it keeps true: a signature is always needed. A token counts after its end for `expiry_grace_s` at most, and each
such use is counted. Who shows a token that says nothing of `is_admin` is an administrator only if one of that user's
tokens has said so, here, within `admin_memory_s`, and none has said the opposite since. Of MAX_ADMINS that is known;
beyond, the one who was seen first is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_ADMINS = 10_000


class Leniency:
    """Seconds; 0: no grace, no memory. late_count: how often an expired token was accepted."""

    def __init__(self, expiry_grace_s: float = 0.0, admin_memory_s: float = 0.0) -> None:
        self.expiry_grace_s = expiry_grace_s
        self.late_count = 0
        self._admin_memory_s = admin_memory_s
        self._seen_at: OrderedDict[str, float] = OrderedDict()

    def judge_admin(self, user: str, said: bool | None, now: float) -> bool:
        """Whether the user is an administrator. said: what the token says, None if nothing. now: unix seconds."""
        if said is None:
            seen_at = self._seen_at.get(user)
            return seen_at is not None and now - seen_at < self._admin_memory_s
        self._seen_at.pop(user, None)
        if said and self._admin_memory_s:
            self._seen_at[user] = now
            if len(self._seen_at) > MAX_ADMINS:
                self._seen_at.popitem(last=False)
        return said
