"""The snapshot that a connection begins with: the present states that its feed wants, in frames.

What it keeps true: a frame is made when somebody takes it, so that who begins costs no more memory than what its socket
is given at a time, and no more of a turn, whatever the states are. They have a bound (`RecentLog.latest_states`), and
so has what a connection begins with. The first KEPT_BYTES of frames, nearly all, are kept for the feed's next
connections, as long as no state changes; each but the last ends with the offset of its last event, so it is the same
for all. What is taken late is as it was when the connection began: newer values come behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from solowire.fanout.catch_up import MAX_EVENTS_BYTES
from solowire.fanout.frame_builder import FeedFilter
from solowire.fanout.recent_log import Entry
from solowire.model.events import STATES_BYTES
from solowire.protocol.dialect_codec import AnyCodec

KEPT_BYTES = STATES_BYTES
"""Of one feed."""


class Snapshot:
    """The present states that a feed wants, in frames.

    version: of the states. entries: the states, in the order of offsets. codec: of all frames but the last, which is
    written by `plain`. shared: others may begin with the same.
    """

    __slots__ = ("_codec", "_entries", "_kept", "_kept_bytes", "_plain", "_shared", "version")

    def __init__(self, version: int, entries: list[Entry], codec: AnyCodec, plain: AnyCodec, *, shared: bool) -> None:
        self.version = version
        self._entries = entries
        self._codec = codec if shared else plain
        self._plain = plain
        self._shared = shared
        self._kept: list[tuple[str | bytes, int]] = []  # frames from the first on, each with the entry behind it
        self._kept_bytes = 0

    @property
    def before(self) -> int | None:
        """The offset before the oldest state; None if there is none."""
        return self._entries[0].offset - 1 if self._entries else None

    def frames(self, matcher: FeedFilter, upto: int) -> Iterator[str | bytes]:
        """The frames, each made as it is asked for. Their reader then stands at `upto`."""
        at = number = 0
        while True:
            if number < len(self._kept):
                frame, at = self._kept[number]
            else:
                run, reached, behind = self._cut_run(matcher, at)
                if behind == len(self._entries):
                    if run:
                        yield self._plain.encode_events(upto, run)
                    return
                frame, at = self._codec.encode_events(reached, run), behind
                self._keep(number, frame, at)
            number += 1
            yield frame

    def _cut_run(self, matcher: FeedFilter, at: int) -> tuple[list[bytes], int, int]:
        """As many events from `at` on as a frame holds, the last one's offset, and where the next frame begins."""
        run: list[bytes] = []
        size = reached = 0
        for index in range(at, len(self._entries)):
            entry = self._entries[index]
            fragment = matcher.encode_for(entry)
            if fragment is None:
                continue
            size += len(fragment) + 1
            if run and size > MAX_EVENTS_BYTES:
                return run, reached, index
            run.append(fragment)
            reached = entry.offset
        return run, reached, len(self._entries)

    def _keep(self, number: int, frame: str | bytes, at: int) -> None:
        if self._shared and number == len(self._kept) and self._kept_bytes + len(frame) <= KEPT_BYTES:
            self._kept.append((frame, at))
            self._kept_bytes += len(frame)
