"""When a connection's token expires: the client is warned before, and closed then.

What it keeps true: a connection is warned `notice` seconds before its token expires, or at once if it has less, and is
expired when the token is, whatever it has refreshed it to meanwhile. It has one timer however often it refreshes its
token: one that fires too early, since the token lasts longer now, looks again later.

Tokens expire by the wall clock, all else here is monotonic; so `watch` is told what lies between them (`wall_offset`:
what to add to a monotonic time to get unix seconds), and is to be called again when that has changed.
"""

from __future__ import annotations

from collections.abc import Callable

from workers.connection import Connection
from workers.timers import Act, Timers


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
            connection.expires = None
            return
        connection.expires = unix - wall_offset
        self._look_at(max(now, connection.expires - self._notice), connection)

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
        notice = connection.expires - self._notice
        if now >= connection.expires:
            self._expired(connection)
        elif now >= notice:
            self._look_at(connection.expires, connection)
            self._expiring(connection, now)
        else:
            self._look_at(notice, connection)
