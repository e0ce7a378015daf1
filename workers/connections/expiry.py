"""The expiry of connections' tokens: the client is warned before, and closed then.

What it keeps true: a connection is warned once of each token: a fifth of the token's remaining life before its end, and
`notice` seconds before at most; and it is expired when the token is, whatever it has refreshed it to meanwhile. A
warning is answered by a refresh, so none may come of a refresh that changes nothing: after a warning only a token that
lives MIN_LONGER_S longer than the one it was about brings another. Since each of these takes a fifth of what is left at
most, a client that refreshes as told does so once a second at worst, whatever tokens it gets.

A connection has one timer however often it refreshes its token: one that fires too early, since the token lasts longer
now, looks again later.

Tokens expire by the wall clock, all else here is monotonic; so `watch_token` is to be called again when the wall clock
was set.
"""

from __future__ import annotations

from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Notice
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.timers import TimerKind, Timers

NOTICE_FRACTION = 0.2
"""Of the life that a token has left when it is shown: so much before its end the client is warned, at most."""

MIN_LONGER_S = 1.0
"""A token that ends less than this after the one that was warned of counts as the same."""


class TokenExpiry:
    """Warns of and enforces the expiry of tokens. notice: seconds."""

    def __init__(self, notice: float, timers: Timers, clock: Clock) -> None:
        self._notice_s = notice
        self._timers = timers
        self._clock = clock

    def watch_token(self, connection: Connection, now: float) -> None:
        """Its identity has come, or has changed, or the wall clock was set."""
        unix = connection.identity.expires
        if unix is None:
            connection.expires_at = connection.token_ends_at = connection.warned_token_ends_at = None
            return
        connection.expires_at = unix - self._clock.wall_offset
        if connection.token_ends_at != unix:  # else it is the clock that was set, or the same token: its life is known
            connection.token_ends_at = unix
            connection.notice_s = min(self._notice_s, NOTICE_FRACTION * max(0.0, connection.expires_at - now))
        if connection.warned_token_ends_at is not None and unix >= connection.warned_token_ends_at + MIN_LONGER_S:
            connection.warned_token_ends_at = None
        self._schedule_check(max(now, self._next_check_at(connection, connection.expires_at)), connection)

    @staticmethod
    def _next_check_at(connection: Connection, expires: float) -> float:
        """When there is something to do: the warning, or the end."""
        return expires - connection.notice_s if connection.warned_token_ends_at is None else expires

    def _schedule_check(self, when: float, connection: Connection) -> None:
        if connection.expiry_check_at is None or when < connection.expiry_check_at:
            connection.expiry_check_at = when
            self._timers.schedule(when, TimerKind.token, connection)

    def check_token(self, connection: Connection, now: float) -> Notice | CloseCode | None:
        """What the connection is to be told, or closed with, when its timer is due."""
        if connection.expiry_check_at is None or now < connection.expiry_check_at:
            return None  # it was moved to a later time, and has another timer
        connection.expiry_check_at = None
        if connection.expires_at is None:
            return None
        if now >= connection.expires_at:
            return CloseCode.unauthenticated
        due = self._next_check_at(connection, connection.expires_at)
        if connection.warned_token_ends_at is None and now >= due:
            connection.warned_token_ends_at = connection.token_ends_at
            self._schedule_check(connection.expires_at, connection)
            left = round((connection.expires_at - now) * 1000)
            return Notice("token_expiring", "send refresh with a new token", after_ms=left)
        self._schedule_check(due, connection)
        return None
