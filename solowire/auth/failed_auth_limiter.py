"""Tokens that prove nothing, by whence they came: an address that shows many is told no more than that.

What it keeps true: a right token is none of this business, whoever else comes from its address; so whoever shares one
with a guesser notices nothing. The table has a bound (`solowire.algorithms.token_bucket`).
"""

from __future__ import annotations

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.errors import RequestError, RequestRejected

REMEMBERED_ADDRESSES = 20_000
"""Some 4 MB when the table is full."""


class FailedAuthLimiter:
    """Limits how many failed tokens one address may show. rate: of one address."""

    def __init__(self, rate: Rate) -> None:
        self.buckets = BucketTable(rate, REMEMBERED_ADDRESSES)

    def limit_error(self, error: RequestError, address: str, now: float) -> RequestError:
        """What the peer hears of a refusal: of too many tokens that prove nothing no more than that.

        Tickets that are too old, used or another shard's are ours, and nobody's guesses.
        """
        if error.code not in ("invalid_token", "token_expired"):
            return error
        return self.record_failure(address, now) or error

    def record_failure(self, address: str, now: float) -> RequestRejected | None:
        """One was shown. None if the address, "" where it is not known, may be told so; else what it is told."""
        if not address:
            return None
        wait = self.buckets.wait_seconds(address, now)
        if wait:
            return RequestRejected(
                429,
                "too_many_auth_failures",
                "too many wrong tokens came from your address",
                "get a new token; right ones go on working; an operator raises SOLOWIRE_AUTH__BAD_TOKEN_RATE",
                wait,
            )
        self.buckets.charge_tokens(address, now)
        return None
