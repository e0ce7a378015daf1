"""The ids of events that were published lately, and whose they are: what a journal knows duplicates by.

What it keeps true: an id is remembered for the window, of MAX_IDS events at the most; with more those of the publisher
that has most are forgotten first, the oldest of them, so that nobody shortens the window of others. An event is a
duplicate if its id was seen from the same publisher, whatever the event says, or from another one with the same
content: two sources of one zone tell a change once, and so does an agent that was started again under another name.
With other content it is a new event, so nobody keeps an event of somebody else's out of the log by taking its id first.

A publisher is remembered as a tag, since there are millions of ids. The tag of what was published before the router
started is read from the event when it is asked for. Other publishers' events are compared with what the log has: one
that it has no more is not the same. MAX_HOLDERS publishers of one id are remembered, the newest; what an older one
repeats is then a new event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from solowire.backplane.messages import PublishedEvent
from solowire.model.events import Event, decode_event

MAX_IDS = 2_000_000
"""Above this the window is shorter than set: about 420 MB go to ids then."""
SHORT_ID = 36
"""Characters of an id that is remembered as it is; of a longer one, which may take half a kilobyte, its hash is."""
MAX_HOLDERS = 4
SPARE = 1000
"""So many requests of which all is forgotten are kept, and as many again as half of all: they cost little."""

_TAG_BITS = 64
_TAG_MASK = 2**_TAG_BITS - 1

IdKey = str | bytes
ReadBody = Callable[[int], bytes | None]
IsSame = Callable[[Event, Event], bool]

_Place = int
"""The offset of an event in the upper bits, and below it its publisher's tag, 0 if that is not known."""


class AppendResult(NamedTuple):
    """Where appended events are in the log.

    offsets: one for each event, in their order. duplicates: the indexes of those that were there already.
    """

    offsets: list[int]
    duplicates: list[int]


class _RequestIds:
    """The ids that came in one request. last_offset: nothing of it is behind it. keys: none once it is forgotten."""

    __slots__ = ("at", "keys", "last_offset", "publisher")

    def __init__(self, at: float, last_offset: int, keys: list[IdKey], publisher: str) -> None:
        self.at = at
        self.last_offset = last_offset
        self.keys = keys
        self.publisher = publisher


class _PublisherIds:
    """One publisher's. requests: oldest first. count: of their ids."""

    __slots__ = ("count", "requests")

    def __init__(self) -> None:
        self.count = 0
        self.requests: deque[_RequestIds] = deque()


def id_key(id: str) -> IdKey:
    """What an event's id is remembered by."""
    if len(id) <= SHORT_ID and id.isascii():
        return id
    return blake2b(id.encode(errors="surrogatepass"), digest_size=16).digest()


@lru_cache(maxsize=1000)
def tag_publisher(publisher: str) -> int:
    """What a publisher is remembered by; never 0."""
    digest = blake2b(publisher.encode(errors="surrogatepass"), digest_size=_TAG_BITS // 8).digest()
    return int.from_bytes(digest, "big") or 1


class KnownIds:
    """The ids of the last `window` seconds. Times are unix seconds.

    read_body: gives the event at an offset, of the open group too; None if the log doesn't have it any more.
    is_same: whether two publishers' events tell the same.
    """

    def __init__(self, window: float, read_body: ReadBody, is_same: IsSame) -> None:
        self._window = window
        self._read_body = read_body
        self._is_same = is_same
        self._places: dict[IdKey, _Place | tuple[_Place, ...]] = {}  # of several publishers the newest first
        self._requests: deque[_RequestIds] = deque()  # of all, oldest first
        self._by_publisher: dict[str, _PublisherIds] = {}
        self._empty_count = 0  # of the requests, of which all is forgotten
        self._group: list[_RequestIds] = []  # of the open group

    def __len__(self) -> int:
        return len(self._places)

    def assign_offsets(
        self, events: Sequence[PublishedEvent], publisher: str, last_offset: int, now: float
    ) -> AppendResult:
        """Where the events are, or are to be: new ones get the offsets behind `last_offset`, in the open group."""
        places, tag = self._places, tag_publisher(publisher)
        offsets: list[int] = []
        duplicates: list[int] = []
        fresh: list[IdKey] = []
        offset = last_offset
        for index, event in enumerate(events):
            key = id_key(event.id)
            known = places.get(key)
            if known is None:
                offset += 1
                places[key] = offset << _TAG_BITS | tag
            else:
                found = self._find_duplicate(key, known, event, publisher)
                if found is not None:
                    duplicates.append(index)
                    offsets.append(found)
                    continue
                offset += 1
                holders = (offset << _TAG_BITS | tag, *_list_places(places[key]))
                places[key] = holders[:MAX_HOLDERS]
            fresh.append(key)
            offsets.append(offset)
        if fresh:
            self._group.append(_RequestIds(now, offset, fresh, publisher))
        return AppendResult(offsets, duplicates)

    def load_request(self, at: float, records: Iterable[tuple[IdKey, int]]) -> None:
        """Takes ids and offsets of the log, newest first; to be called for older and older ones."""
        keys: list[IdKey] = []
        last_offset = 0
        for key, offset in records:
            known, place = self._places.setdefault(key, offset << _TAG_BITS), offset << _TAG_BITS
            if known != place:
                self._places[key] = (*_list_places(known), place)[:MAX_HOLDERS]
            last_offset = max(last_offset, offset)
            keys.append(key)
        request = _RequestIds(at, last_offset, keys, "")  # whose they are stands in the events
        self._requests.appendleft(request)
        own = self._by_publisher.setdefault("", _PublisherIds())
        own.requests.appendleft(request)
        own.count += len(keys)

    def keep_group(self) -> None:
        """The open group is in the log."""
        for request in self._group:
            self._requests.append(request)
            own = self._by_publisher.get(request.publisher)
            if own is None:
                own = self._by_publisher[request.publisher] = _PublisherIds()
            own.requests.append(request)
            own.count += len(request.keys)
        self._group.clear()

    def forget_group(self, last_offset: int) -> None:
        """The open group could not be kept: the log ends at `last_offset`."""
        for request in self._group:
            self._drop_places(request.keys, last_offset, request.last_offset)
        self._group.clear()

    def forget_old(self, now: float) -> None:
        """Forgets what is older than the window, and what is over MAX_IDS."""
        requests = self._requests
        while requests and (not requests[0].keys or requests[0].at < now - self._window):
            if requests[0].keys:
                self._forget_oldest(requests[0].publisher)
            requests.popleft()
            self._empty_count -= 1
        while len(self._places) > MAX_IDS and self._by_publisher:
            most = max(self._by_publisher, key=lambda name: self._by_publisher[name].count)
            fair = MAX_IDS / len(self._by_publisher)
            self._forget_oldest(most)
            while len(self._places) > MAX_IDS and (own := self._by_publisher.get(most)) and own.count > fair:
                self._forget_oldest(most)
        if self._empty_count > SPARE + len(requests) // 2:
            self._requests = deque(request for request in requests if request.keys)
            self._empty_count = 0

    def _forget_oldest(self, publisher: str) -> None:
        """Forgets the oldest request of a publisher."""
        own = self._by_publisher[publisher]
        request = own.requests.popleft()
        own.count -= len(request.keys)
        if not own.requests:
            del self._by_publisher[publisher]
        self._drop_places(request.keys, 0, request.last_offset)
        request.keys = []
        self._empty_count += 1

    def _drop_places(self, keys: list[IdKey], after: int, upto: int) -> None:
        """Forgets where these are behind `after` and up to `upto`: of another publisher one may stand elsewhere."""
        places, low, high = self._places, (after + 1) << _TAG_BITS, (upto + 1) << _TAG_BITS
        for key in keys:
            known = places.get(key)
            if isinstance(known, int):
                if low <= known < high:
                    del places[key]
            elif known is not None:
                kept = tuple(place for place in known if not low <= place < high)
                if kept:
                    places[key] = kept
                else:
                    del places[key]

    def _find_duplicate(
        self, key: IdKey, known: _Place | tuple[_Place, ...], event: PublishedEvent, publisher: str
    ) -> int | None:
        """The offset of what the event repeats; None if it is a new one."""
        tag, holders = tag_publisher(publisher), _list_places(known)
        for place in holders:
            if place & _TAG_MASK == tag:
                return place >> _TAG_BITS
        decoded = None
        for at, place in enumerate(holders):
            offset, is_tagged = place >> _TAG_BITS, bool(place & _TAG_MASK)
            body = self._read_body(offset)
            stored = _decode(body)
            if not is_tagged:
                # From before the start. Whose it is can't be told of what is trimmed or damaged: it may be this one's.
                if stored is None or stored.publisher is None or stored.publisher == publisher:
                    return offset
                tagged = offset << _TAG_BITS | tag_publisher(stored.publisher)
                holders = (*holders[:at], tagged, *holders[at + 1 :])
                self._places[key] = holders if len(holders) > 1 else tagged
            if stored is not None:
                decoded = decoded or _decode(event.body)
                if decoded is not None and self._is_same(stored, decoded):
                    return offset
        return None


def _list_places(known: _Place | tuple[_Place, ...]) -> tuple[_Place, ...]:
    return known if isinstance(known, tuple) else (known,)


def _decode(body: bytes | None) -> Event | None:
    """None for what is gone or is no event."""
    try:
        return decode_event(body) if body is not None else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
