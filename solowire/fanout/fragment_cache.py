"""The fragments that events were encoded to: how many bytes of them are kept, and for which events.

What it keeps true: what is kept takes no more than `max_bytes`, whatever number of codecs and sets of hidden fields
there are; the events that were encoded first lose theirs first, all at once, and are encoded again if somebody still
reads them. It holds no event, only the fragments.
"""

from __future__ import annotations

from collections import deque

from solowire.protocol.dialect_codec import AnyCodec

FragmentKey = tuple[AnyCodec, frozenset[str]]
"""How an event was written: the codec, and the fields that were left out."""

Fragments = dict[FragmentKey, bytes | None]
"""Of one event; None where nothing was left of it."""

FRAGMENT_BYTES = 200
"""What Python takes for one, its text apart: the key, and its part of dict and queue."""


class FragmentCache:
    """Keeps encoded events for the feeds that need them again. bytes: of all that is kept."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._kept: deque[Fragments] = deque()  # of one event each, in the order of their first

    def add(self, fragments: Fragments, key: FragmentKey, fragment: bytes | None) -> None:
        """Keeps one more fragment of an event, and drops the oldest of others if there is no more room."""
        if not fragments:
            self._kept.append(fragments)
        fragments[key] = fragment
        self.bytes += _size(fragment)
        while self.bytes > self._max_bytes:
            oldest = self._kept.popleft()
            self.bytes -= sum(map(_size, oldest.values()))
            oldest.clear()

    def clear(self) -> None:
        """Keeps nothing any more."""
        for fragments in self._kept:
            fragments.clear()
        self._kept.clear()
        self.bytes = 0


def _size(fragment: bytes | None) -> int:
    return FRAGMENT_BYTES + len(fragment or b"")
