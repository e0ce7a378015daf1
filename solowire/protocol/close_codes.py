"""Every close code that Solowire sends, why, and whether a client should come back.

Codes 44xx are ours (RFC 6455, section 7.4.2 leaves 4000–4999 to applications). *Terminal* means that coming back
changes nothing: the SDKs stop. On every other code they come back through `/v1/connect`, with jitter.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """A WebSocket close code. `.reason` is sent with it, `.terminal` says whether a client must stay away."""

    going_away = 1001
    protocol_error = 1002
    invalid_data = 1007
    too_big = 1009
    restarting = 1012
    try_later = 1013
    bad_protocol = 4400
    unauthenticated = 4401
    forbidden = 4403
    no_heartbeat = 4408
    replaced = 4409
    disconnected = 4410
    too_slow = 4413
    wrong_shard = 4421

    @property
    def reason(self) -> str:
        return _REASONS[self]

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


_REASONS = {
    CloseCode.going_away: "server going away",
    CloseCode.protocol_error: "WebSocket protocol error",
    CloseCode.invalid_data: "text that is not UTF-8",
    CloseCode.too_big: "message too big",
    CloseCode.restarting: "restarting",
    CloseCode.try_later: "over the limit, try later",
    CloseCode.bad_protocol: "bad protocol",
    CloseCode.unauthenticated: "not authenticated or token expired",
    CloseCode.forbidden: "forbidden",
    CloseCode.no_heartbeat: "no heartbeat",
    CloseCode.replaced: "replaced",
    CloseCode.disconnected: "disconnected by an administrator",
    CloseCode.too_slow: "too slow, come back and resume",
    CloseCode.wrong_shard: "wrong shard",
}

TERMINAL = frozenset(
    {
        CloseCode.bad_protocol,
        CloseCode.unauthenticated,
        CloseCode.forbidden,
        CloseCode.replaced,
        CloseCode.disconnected,
    }
)


def is_terminal(code: int) -> bool:
    """Whether a client that was closed with `code` (ours or anyone's) must not come back."""
    return code in TERMINAL
