"""A user's place among many who can't all come at once: it depends on nothing but its name.

What it keeps true: asking again gains nothing, and each gateway says the same.
"""

from __future__ import annotations

from hashlib import blake2b


def jitter_fraction(user: str, salt: bytes) -> float:
    """In [0, 1). among: whom (16 bytes at most); among others the user's place is another."""
    return int.from_bytes(blake2b(user.encode(), digest_size=4, person=salt).digest(), "big") / 2**32
