"""The tries of an event that somebody before the gateway refuses, while the gateway answers other requests.

A web application firewall refuses what an event says, each time anew, and the events behind it can't wait for ever.
A deployment whose servers take turns looks like that for a while, and must cost none. And where every event is refused
it is not the events: a rule or a route is wrong, and somebody will mend it.

Pure. What it keeps true: an event is given up after FIRST_TRIES, or after KNOWN_TRIES of an answer for which one was
given up before; but of those that no accepted one lies between, beyond MOST_IN_A_ROW, after LAST_TRIES.
"""

from __future__ import annotations

FIRST_TRIES = 6
"""Some three seconds in all."""
KNOWN_TRIES = 3
LAST_TRIES = 360
"""An hour at most, if they are ten seconds apart."""
MOST_IN_A_ROW = 100

REFUSED_ELSEWHERE = "refused_elsewhere"
"""The code of the problem of an event that was given up."""


class ForeignRefusals:
    """What was given up so far, and thus how much patience the next one has."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._in_a_row = 0

    def is_enough(self, tries: int, status: int) -> bool:
        """Whether an event is given up that was refused `tries` times, the last time with this HTTP status."""
        if self._in_a_row >= MOST_IN_A_ROW:
            return tries >= LAST_TRIES
        return tries >= (KNOWN_TRIES if status in self._known else FIRST_TRIES)

    def give_up(self, status: int) -> None:
        """An event was given up."""
        self._known.add(status)
        self._in_a_row += 1

    def accept(self) -> None:
        """An event was accepted: not all are refused."""
        self._in_a_row = 0


def describe_refusal(status: int, reason: str) -> dict[str, object]:
    """The problem of one event that was given up. reason: what was answered, in words."""
    return {
        "status": status,
        "code": REFUSED_ELSEWHERE,
        "detail": f"{reason}, again and again, while the gateway answers other requests",
        "hint": "something between here and the gateway, such as a web application firewall, refuses this event; have "
        "it pass the bodies of POST /v1/events on unread",
    }
