"""Up to where a log is published *and acknowledged*, though the publisher answers later and for many at once.

Pure. What it keeps true: the place never passes a line whose event the gateway has neither accepted nor refused by
name. The publisher settles in the order in which it was given events, and counts what was accepted; those refused it
names. So the next to be accepted is the oldest that is not refused.
"""

from __future__ import annotations

from collections import deque

from solowire.sources.files.log_file import Place


class Acknowledgements:
    """Which lines are settled. `place` moves on with them; None until the first."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self._waiting: deque[tuple[str, Place]] = deque()  # events, the oldest first
        self._behind: Place | None = None  # what has been passed since the last of them
        self._refused: set[str] = set()
        self._accepted = 0

    def __len__(self) -> int:
        """How many events are not settled."""
        return len(self._waiting)

    def add_event(self, id: str, place: Place) -> None:
        """An event was given to the publisher; `place` is right behind its line."""
        self._waiting.append((id, place))
        self._behind = None

    def pass_line(self, place: Place) -> None:
        """Everything before `place` was read, and makes no further event."""
        if self._waiting:
            self._behind = place
        else:
            self.place = place

    def refuse_event(self, id: str) -> None:
        """The gateway has refused this event by name."""
        self._refused.add(id)

    def settle_events(self, accepted: int) -> None:
        """Takes note of accepted events.

        accepted: how many events the publisher has had accepted since it began, duplicates included.
        """
        if not self._waiting:
            self._accepted = accepted
            return
        while self._waiting:
            id, place = self._waiting[0]
            if id in self._refused:
                self._refused.discard(id)
            elif self._accepted < accepted:
                self._accepted += 1
            else:
                return
            self._waiting.popleft()
            self.place = place
        if self._behind is not None:
            self.place, self._behind = self._behind, None
