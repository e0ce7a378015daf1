"""Revocation requests of administrators, parsed strictly, since a word that is passed over lets in."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from solowire.backplane.messages import Revocation
from solowire.errors import RequestRejected

LEEWAY_SECONDS = 60.0
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RevocationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Of `user`, `jti` and `issued_before` (unix seconds) one, or `user` with `issued_before`.

    user alone: all of the user's tokens, also those to come. until: unix seconds; when they have all expired.
    """

    user: _Text | None = None
    jti: _Text | None = None
    issued_before: Annotated[float, msgspec.Meta(ge=0)] | None = None
    until: float | None = None
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


_decode = msgspec.json.Decoder(RevocationRequest).decode


def parse_revocation(body: bytes, *, id: str, by: str, now: float, longest: float) -> Revocation:
    """Parses the body of a revocation request.

    now: unix seconds. longest: how long a token may live, in seconds. Raises RequestRejected.
    """
    try:
        asked = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(str(error)) from None
    if asked.user is None and asked.jti is None and asked.issued_before is None:
        raise _invalid("it names nobody")
    if asked.jti is not None and (asked.user is not None or asked.issued_before is not None):
        raise _invalid("jti names one token alone: neither user nor issued_before narrows it")
    if asked.issued_before is not None and not asked.issued_before <= now + LEEWAY_SECONDS:
        raise _invalid("issued_before is a time to come, in unix seconds: it would refuse tokens that are not made yet")
    until = now + longest if asked.until is None else asked.until
    if not now < until <= now + longest:
        raise _invalid(f"until must be a time within the next {longest:.0f} s, in unix seconds: no token lives longer")
    # Where its clock is ahead of ours: tokens that are made from now on are not meant.
    issued_before = None if asked.issued_before is None else min(asked.issued_before, now)
    return Revocation(id, asked.user, asked.jti, issued_before, now, until, by, asked.reason)


def describe_revocation(revocation: Revocation) -> dict[str, Any]:
    """As the API shows it."""
    named = {"user": revocation.user, "jti": revocation.token_id, "issued_before": revocation.issued_before}
    return {
        "id": revocation.id,
        **{name: value for name, value in named.items() if value is not None},
        "made_at": revocation.made_at,
        "until": revocation.until,
        "by": revocation.by,
        "reason": revocation.reason,
    }


def _invalid(message: str) -> RequestRejected:
    hint = 'such as {"user": "ann"}, {"jti": "…"} or {"issued_before": 1800000000}'
    return RequestRejected(400, "invalid_revocation", message, hint)
