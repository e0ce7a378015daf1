"""When a connection's token expires: the client is warned before, and closed then.

What it keeps true: a connection is warned once of each token: a fifth of the token's remaining life before its end, and
`notice` seconds before at most; and it is expired when the token is, whatever it has refreshed it to meanwhile. A
warning is answered by a refresh, so none may come of a refresh that changes nothing: after a warning only a token that
lives MIN_LONGER_S longer than the one it was about brings another. Since each of these takes a fifth of what is left at
most, a client that refreshes as told does so once a second at worst, whatever tokens it gets.

A connection has one timer however often it refreshes its token: one that fires too early, since the token lasts longer
now, looks again later.

Tokens expire by the wall clock, all else here is monotonic; so `watch` is told what lies between them (`wall_offset`:
what to add to a monotonic time to get unix seconds), and is to be called again when that has changed.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.workers.connections.connection import Connection
from solowire.workers.connections.timers import Act, Timers

NOTICE_FRACTION = 0.2
"""Of the life that a token has left when it is shown: so much before its end the client is warned, at most."""

MIN_LONGER_S = 1.0
"""A token that ends less than this after the one that was warned of counts as the same."""


class Expiry:
    """notice: seconds. expiring, expired: called when a connection is to be warned, or to be closed."""

    def __init__(self, notice: float, timers: Timers, *, expiring: Act, expired: Callable[[Connection], None]) -> None:
        self._notice = notice
        self._timers = timers
        self._expiring = expiring
        self._expired = expired

    def watch(self, connection: Connection, wall_offset: float, now: float) -> None:
        """Its identity has come, or has changed, or the wall clock was set."""
        unix = connection.identity.expires
        if unix is None:
            connection.expires = connection.token_ends = connection.warned_of = None
            return
        connection.expires = unix - wall_offset
        if connection.token_ends != unix:  # else it is the clock that was set, or the same token: its life is known
            connection.token_ends = unix
            connection.notice_s = min(self._notice, NOTICE_FRACTION * max(0.0, connection.expires - now))
        if connection.warned_of is not None and unix >= connection.warned_of + MIN_LONGER_S:
            connection.warned_of = None
        self._look_at(max(now, self._next(connection, connection.expires)), connection)

    @staticmethod
    def _next(connection: Connection, expires: float) -> float:
        """When there is something to do: the warning, or the end."""
        return expires - connection.notice_s if connection.warned_of is None else expires

    def _look_at(self, when: float, connection: Connection) -> None:
        if connection.looks_at is None or when < connection.looks_at:
            connection.looks_at = when
            self._timers.at(when, self._look, connection)

    def _look(self, connection: Connection, now: float) -> None:
        if connection.looks_at is None or now < connection.looks_at:
            return  # it was moved to a later time, and has another timer
        connection.looks_at = None
        if connection.expires is None:
            return
        if now >= connection.expires:
            self._expired(connection)
            return
        due = self._next(connection, connection.expires)
        if connection.warned_of is None and now >= due:
            connection.warned_of = connection.token_ends
            self._look_at(connection.expires, connection)
            self._expiring(connection, now)
        else:
            self._look_at(due, connection)
