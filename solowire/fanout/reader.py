"""One reader: where it stands in the log, what waits for it, and the states it goes through.

    CURRENT ──busy──► BLOCKED ──writable──► BEHIND ──full frame──► SLOW ──level──► RECOVERING ──for 1 s──► CURRENT

    CURRENT ──own event──► BEHIND ──level──► CURRENT             BEHIND ──busy──► BLOCKED
    SLOW, RECOVERING ──busy──► SLOW_BLOCKED ──writable──► SLOW   any ──what it lacks is gone──► LOST ──► closed

                  in its feed    what it gets next
    CURRENT       current        the feed's next frame, together with all who are current
    BEHIND        unparked       a frame of its own, out of the log
    BLOCKED       behind         nothing: its socket is busy, or answers wait for it and go first
    SLOW          unparked       a frame of its own, compacted
    SLOW_BLOCKED  behind         nothing
    RECOVERING    current        as CURRENT; it was slow, and counts as slow until it has been level for a while
    LOST          behind         nothing: it is closed when its socket is free

What it keeps true: the state changes by TRANSITIONS and by nothing else. A reader that has no feed goes through the
same states, since answers may wait for it, too; it is never SLOW then. While it is CURRENT or RECOVERING, where it
stands is its feed's head, and is written into it when it leaves that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum

import msgspec

MAX_PENDING_REPLIES = 16
"""Of answers so many wait for a busy socket."""

RECOVERY_SECONDS = 1.0
"""For so long a slow reader has to be level until it is slow no longer."""

Answer = str | bytes | Iterator[str | bytes]
"""A frame that waits for a socket, or frames that are made when it takes them."""

Counts = tuple[tuple[str, int], ...]
"""How many events of each type, by name: a value that can be compared, and be part of a key."""


def make_counts(counts: Mapping[str, int]) -> Counts:
    """`counts` as a value; a type of which there are none is not named."""
    return tuple(sorted((name, events) for name, events in counts.items() if events))


def subtract_counts(counts: Counts, others: Counts) -> Counts:
    """By how many the first are more than the others; fewer are below zero."""
    found = dict(counts)
    for name, events in others:
        found[name] = found.get(name, 0) - events
    return make_counts(found)


# Whole numbers, since other members of enumerations are slow to look up.


class ReaderState(IntEnum):
    CURRENT = 0
    BLOCKED = 1
    BEHIND = 2
    SLOW = 3
    SLOW_BLOCKED = 4
    RECOVERING = 5
    LOST = 6


class Signal(IntEnum):
    """What happens to a reader."""

    busy = 0  # its socket is busy, or answers wait for it
    writable = 1  # its socket is free, and nothing waits
    apart = 2  # its next frame can't be the others'
    overfull = 3  # it was busy, and lacks more than a frame holds
    level = 4  # it lacks nothing that its feed's others have
    recovered = 5  # it has been level for a while
    lost = 6  # what it lacks is gone


class Action(IntEnum):
    """What is to be done for a reader next."""

    share = 0  # nothing: it gets what its feed's others get
    wait = 1  # nothing until its socket is free
    send_replies = 2  # send what waits for it
    read = 3  # read the log for it
    compact = 4  # read the log for it, compacted
    close = 5  # close it


_CURRENT, _BLOCKED, _BEHIND = ReaderState.CURRENT, ReaderState.BLOCKED, ReaderState.BEHIND
_SLOW, _SLOW_BLOCKED, _RECOVERING = ReaderState.SLOW, ReaderState.SLOW_BLOCKED, ReaderState.RECOVERING
_LOST = ReaderState.LOST
_BUSY, _WRITABLE, _APART, _OVERFULL = Signal.busy, Signal.writable, Signal.apart, Signal.overfull
_LEVEL, _RECOVERED, _GONE = Signal.level, Signal.recovered, Signal.lost

TRANSITIONS: dict[ReaderState, dict[Signal, ReaderState]] = {
    _CURRENT: {_BUSY: _BLOCKED, _APART: _BEHIND, _LEVEL: _CURRENT, _GONE: _LOST},
    _BLOCKED: {_BUSY: _BLOCKED, _APART: _BLOCKED, _LEVEL: _BLOCKED, _WRITABLE: _BEHIND, _GONE: _LOST},
    _BEHIND: {_BUSY: _BLOCKED, _APART: _BEHIND, _LEVEL: _CURRENT, _OVERFULL: _SLOW, _GONE: _LOST},
    _SLOW: {_BUSY: _SLOW_BLOCKED, _APART: _SLOW, _LEVEL: _RECOVERING, _RECOVERED: _BEHIND, _GONE: _LOST},
    _SLOW_BLOCKED: {
        _BUSY: _SLOW_BLOCKED,
        _APART: _SLOW_BLOCKED,
        _LEVEL: _SLOW_BLOCKED,
        _WRITABLE: _SLOW,
        _RECOVERED: _BLOCKED,
        _GONE: _LOST,
    },
    _RECOVERING: {
        _BUSY: _SLOW_BLOCKED,
        _APART: _SLOW,
        _LEVEL: _RECOVERING,
        _RECOVERED: _CURRENT,
        _GONE: _LOST,
    },
    _LOST: dict.fromkeys(Signal, _LOST),
}

_ACTIONS = {
    _CURRENT: Action.share,
    _RECOVERING: Action.share,
    _BLOCKED: Action.wait,
    _SLOW_BLOCKED: Action.wait,
    _BEHIND: Action.read,
    _SLOW: Action.compact,
    _LOST: Action.close,
}


class FeedHead(msgspec.Struct, frozen=True, gc=False):
    """Where the readers of a feed stand that are current. newest_release: the newest one that the feed accepts.

    reported_omitted: of what was left out of the feed, what they have been told. is_lost: what comes next is gone.
    """

    offset: int
    last_release: int
    newest_release: int
    reported_omitted: Counts
    is_lost: bool


class Reader:
    """One connection as a reader of the log.

    Times in seconds, monotonic.

    last_release: the newest release (`Conflator`) that it has. reported_omitted: of its feed's counts, those that it
    knows; one may be below zero, for what was counted for it alone. full_until: it came back, and gets all up to there.
    was_busy: its socket was, since it is behind. trimmed_until: what the log has dropped up to there was counted,
    durable events apart. blocked_since: when its socket was last seen to take something, while it is blocked.
    initial_count: how many of `pending_replies`, from the first, are what it begins with: states or a replay.
    """

    __slots__ = (
        "blocked_since",
        "full_until",
        "initial_count",
        "last_release",
        "level_since",
        "offset",
        "pending_replies",
        "reported_omitted",
        "state",
        "trimmed_until",
        "was_busy",
    )

    def __init__(self, offset: int = 0, last_release: int = 0) -> None:
        self.state = _CURRENT
        self.blocked_since = 0.0
        self.level_since: float | None = None
        self.pending_replies: deque[Answer] | tuple[()] = ()  # a deque only while something waits: it takes 0.6 KB
        self.initial_count = 0
        self.stand_at(offset, last_release)

    # ------------------------------------------------------------------------------------------------ its state

    def handle(self, signal: Signal) -> None:
        """Changes the state. Raises ValueError for a signal that can't come in it."""
        try:
            self.state = TRANSITIONS[self.state][signal]
        except KeyError:
            raise ValueError(f"a reader that is {self.state.name} can't be told: {signal.name}") from None

    @property
    def next_action(self) -> Action:
        """What is to be done for it, if its socket is free."""
        return Action.send_replies if self.pending_replies else _ACTIONS[self.state]

    @property
    def is_blocked(self) -> bool:
        return self.state is _BLOCKED or self.state is _SLOW_BLOCKED

    @property
    def is_lost(self) -> bool:
        return self.state is _LOST

    @property
    def is_in_full(self) -> bool:
        return self.offset < self.full_until

    def check_recovered(self, now: float, *, is_free: bool) -> bool:
        """Whether a slow one has now been level for so long that it is slow no longer. is_free: so its socket is."""
        # One may also be behind on purpose, for an event of its own: that is no sign of slowness.
        if self.was_busy or self.is_lost or not is_free:
            self.level_since = None
        elif self.level_since is None:
            self.level_since = now
        elif now - self.level_since >= RECOVERY_SECONDS:
            self.level_since = None
            self.handle(_RECOVERED)
            return True
        return False

    # --------------------------------------------------------------------------------------------- where it stands

    def stand_at(self, offset: int, last_release: int, *, full_until: int = 0, was_busy: bool = False) -> None:
        """It stands there from now on, and nothing else is known of it."""
        self.offset = offset
        self.last_release = last_release
        self.reported_omitted: Counts = ()
        self.full_until = full_until
        self.trimmed_until = 0
        self.was_busy = was_busy

    def note_busy(self) -> None:
        """Its socket was found to be busy with an older frame."""
        self.was_busy = True
        self.level_since = None

    def leave_head(self, head: FeedHead, signal: Signal) -> None:
        """It was current, and is not any more by this: from now on it has a place of its own."""
        self.offset, self.last_release = head.offset, head.last_release
        self.reported_omitted = head.reported_omitted
        self.full_until = self.trimmed_until = 0
        self.was_busy = signal is _BUSY
        if signal is _BUSY:
            self.level_since = None
        self.state = TRANSITIONS[self.state][_GONE if head.is_lost else signal]

    def make_frame_key(self) -> tuple[int, int, Counts, int, int]:
        """Readers of a feed in equal places get the same frame, what is for one user alone apart."""
        whole = self.full_until if self.offset < self.full_until else 0
        return (self.offset, self.last_release, self.reported_omitted, whole, self.trimmed_until)

    # ------------------------------------------------------------------------------------------ what waits for it

    def queue_replies(self, frames: Iterable[Answer]) -> None:
        """These wait behind whatever waits for its socket already."""
        if isinstance(self.pending_replies, deque):
            self.pending_replies.extend(frames)
        else:
            self.pending_replies = deque(frames)

    def take_reply(self) -> tuple[str | bytes | None, bool]:
        """The next frame of what waits; None if there is none in what comes first. And whether it was made now."""
        replies = self.pending_replies
        if not isinstance(replies, deque):
            return None, False
        first = replies[0]
        frame = first if isinstance(first, (str, bytes)) else next(first, None)
        is_ready = frame is first
        if is_ready or frame is None:
            replies.popleft()
            self.initial_count = max(0, self.initial_count - 1)
            if not replies:
                self.pending_replies = ()
        return frame, not is_ready

    def forget_replies(self) -> None:
        self.pending_replies, self.initial_count = (), 0
