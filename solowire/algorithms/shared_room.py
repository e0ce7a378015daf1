"""Room for the newest values by key, shared by those whose they are: who takes most gives way first.

What it keeps true: what is held takes no more than the room. Each value belongs to an owner and, of that, to a kind.
What does not fit takes the place of values of the owner that takes most, of the kind of which that has most, and of
these of the one that has been quiet longest. So whoever keeps to less than an equal share loses nothing, whatever the
others do. A value of a key takes the place of the one before, whoever's that was.

To find the owner that takes most, a heap has what owners took when it changed; what is out of date is passed over
(lazy deletion).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_SPARE = 1000
"""So many places of the heap may be out of date, and as many again as there are owners."""


class _HeldValue(NamedTuple, Generic[V]):
    owner: str
    kind: str
    size: int
    value: V


class _OwnRoom:
    """What one owner takes. sizes, keys: by kind; the key that was put last is the last."""

    __slots__ = ("keys", "size", "sizes")

    def __init__(self) -> None:
        self.size = 0
        self.sizes: dict[str, int] = {}
        self.keys: dict[str, OrderedDict[object, None]] = {}  # a dict is slow at its front


class SharedRoom(Generic[K, V]):
    """Holds values of `size` in all at most, each of which counts for `least` at the least."""

    def __init__(self, size: int, least: int) -> None:
        self._room = size
        self._least = least
        self._size = 0
        self._held: dict[K, _HeldValue[V]] = {}  # the one that was put last is the last
        self._owners: dict[str, _OwnRoom] = {}
        self._most: list[tuple[int, str]] = []  # what they take, below zero, so that the first has most

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[V]:
        """The values, the one that was put last at the end."""
        return (held.value for held in self._held.values())

    def get(self, key: K) -> V | None:
        """The value of a key, None if there is none."""
        held = self._held.get(key)
        return held.value if held is not None else None

    def put(self, key: K, value: V, owner: str, kind: str, size: int) -> list[tuple[str, V]]:
        """Takes a value; returns what gave way for it, each with its kind: that may be the value itself."""
        self.remove(key)
        size = max(size, self._least)
        self._held[key] = _HeldValue(owner, kind, size, value)
        own = self._owners.get(owner)
        if own is None:
            own = self._owners[owner] = _OwnRoom()
        own.keys.setdefault(kind, OrderedDict())[key] = None
        own.sizes[kind] = own.sizes.get(kind, 0) + size
        own.size += size
        self._size += size
        heappush(self._most, (-own.size, owner))
        gone = []
        while self._size > self._room:
            found = self._find_next()
            kind = self._held[found].kind
            gone.append((kind, self._remove(found)))
        if len(self._most) > 2 * len(self._owners) + _SPARE:
            self._most = [(-own.size, owner) for owner, own in self._owners.items()]
            heapify(self._most)
        return gone

    def remove(self, key: K) -> V | None:
        """Forgets a key; its value, None if there was none."""
        return self._remove(key) if key in self._held else None

    def clear(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._owners.clear()
        self._most.clear()
        self._size = 0

    def _find_next(self) -> K:
        """The key that gives way next."""
        while True:
            size, owner = self._most[0]
            own = self._owners.get(owner)
            if own is not None and own.size == -size:
                kind = max(own.sizes, key=own.sizes.__getitem__)
                key: K = next(iter(own.keys[kind]))  # type: ignore[assignment]
                return key
            heappop(self._most)

    def _remove(self, key: K) -> V:
        held = self._held.pop(key)
        own = self._owners[held.owner]
        self._size -= held.size
        own.size -= held.size
        own.sizes[held.kind] -= held.size
        keys = own.keys[held.kind]
        del keys[key]
        if not keys:
            del own.keys[held.kind], own.sizes[held.kind]
        if own.keys:
            heappush(self._most, (-own.size, held.owner))
        else:
            del self._owners[held.owner]
        return held.value
