"""The close codes that Solowire sends, with their reasons, and whether a client should come back.

Codes 44xx are ours (RFC 6455, section 7.4.2 leaves 4000–4999 to applications). *Terminal* means that coming back
changes nothing: the SDKs stop. On every other code they come back through `/v1/connect`, with jitter.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """A WebSocket close code. `reason` is sent with it; a client must not come back after a terminal one."""

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
    CloseCode.going_away: "server is shutting down",
    CloseCode.protocol_error: "WebSocket protocol error",
    CloseCode.invalid_data: "text is not valid UTF-8",
    CloseCode.too_big: "message too big",
    CloseCode.restarting: "server is restarting, reconnect",
    CloseCode.try_later: "connection limit reached, try again later",
    CloseCode.bad_protocol: "protocol violation",
    CloseCode.unauthenticated: "token is missing, invalid or expired",
    CloseCode.forbidden: "forbidden",
    CloseCode.no_heartbeat: "no answer to heartbeats",
    CloseCode.replaced: "replaced by a newer connection",
    CloseCode.disconnected: "disconnected by an administrator",
    CloseCode.too_slow: "reading too slowly, reconnect and resume",
    CloseCode.wrong_shard: "user belongs to another shard, reconnect",
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
