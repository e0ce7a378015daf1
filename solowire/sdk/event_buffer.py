"""A buffer of what has arrived and not been handed out: whole frames, each with its place in the log.

What it keeps true: there are `max_events` and one frame at most, and at that bound `room` is closed until half of them
are gone, unless an answer is awaited. `handed_out` moves on with the last event of a frame, or past one that has none,
never before. A gap is told between the events before and after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from solowire.protocol.messages import ReceivedEvent

Position = tuple[str, int]
"""(epoch, cursor) of a place in the log."""


class BufferedFrame:
    """What is buffered of one frame, where its end stands, and the reason if events are missing before it."""

    __slots__ = ("events", "gap", "position")

    def __init__(self, events: deque[ReceivedEvent], position: Position, gap: str | None = None) -> None:
        self.events = events
        self.position = position
        self.gap = gap


class EventBuffer:
    """Buffers frames that have arrived until the application takes their events.

    handed_out: the place up to which all has been given away. report_gap(reason): called in its place.
    """

    def __init__(self, max_events: int, handed_out: Position | None, report_gap: Callable[[str], None]) -> None:
        self.handed_out = handed_out
        self.event_count = 0
        self.news = asyncio.Event()  # for the iteration: there is something to look at
        self.room = asyncio.Event()  # for the reading: there is room, or somebody asks
        self.room.set()
        self._max_events = max_events
        self._report_gap = report_gap
        self._frames: deque[BufferedFrame] = deque()
        self._asking_count = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def append(self, frame: BufferedFrame) -> None:
        self._frames.append(frame)
        self.event_count += len(frame.events)
        if self.event_count >= self._max_events and not self._asking_count:
            self.room.clear()
        self.skip_empty()
        self.news.set()

    def take_event(self) -> ReceivedEvent:
        """The next event, of which there must be one."""
        frame = self._frames[0]
        event = frame.events.popleft()
        self.event_count -= 1
        if not frame.events:
            self.handed_out = frame.position
            self._frames.popleft()
            # A gap is told when this event has been dealt with: when the next is asked for.
            self.skip_empty(reports_gap=False)
        self._update_room()
        return event

    def skip_empty(self, *, reports_gap: bool = True) -> None:
        """Passes over what holds no events, so that gaps are told in their place and `handed_out` is not behind."""
        while self._frames and not self._frames[0].events and (reports_gap or self._frames[0].gap is None):
            frame = self._frames.popleft()
            self.handed_out = frame.position
            if frame.gap is not None:
                self._report_gap(frame.gap)

    def begin_asking(self) -> None:
        """An answer is awaited: it stands behind what is not read yet."""
        self._asking_count += 1
        self.room.set()

    def end_asking(self) -> None:
        self._asking_count -= 1
        self._update_room()

    def _update_room(self) -> None:
        if self._asking_count or self.event_count <= self._max_events // 2:
            self.room.set()
        elif self.event_count >= self._max_events:
            self.room.clear()
