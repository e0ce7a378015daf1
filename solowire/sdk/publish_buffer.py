"""The publisher's buffer: encoded events in order, from any thread, until the publisher's task has settled them.

What it keeps true:

* Events leave in the order in which they were appended, but for those that are `held` for later, and stay, in `unsent`,
  until they are settled.
* It holds `limit` events at most, those that are being sent included; at that bound `append()` raises BufferFull.
* `append()` may be called from any thread, everything else on the loop alone. One wake-up is under way at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from solowire.errors import BufferFull
from solowire.sdk.held_events import HeldEvent, HeldEvents


class PublishBuffer:
    """Holds what was published and is not settled. limit: events. batch: how many are sent at once.

    held: what others go before, from here on to be settled by `settle_held`.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit = limit
        self._batch = batch
        self._lock = threading.RLock()  # a signal's handler may publish while its own thread does
        self._queue: deque[bytes] = deque()
        self.held = HeldEvents()
        self._sending: list[bytes] = []  # the batch that was taken out of the queue, as far as it is not settled
        self._appended_count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._is_waking = False  # the loop will look into the queue
        self._has_ended = False
        self._arrived = asyncio.Event()  # there is something in the queue
        self._enough = asyncio.Event()  # there is a batch in it, or someone waits for it to be settled
        self._settled = asyncio.Event()  # nothing is waiting any more but what is held, or it never will be sent
        self._settled.set()
        self._room = asyncio.Event()

    def begin(self) -> None:
        """From here on this loop is woken by what is appended."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    @property
    def waiting_count(self) -> int:
        return len(self._queue) + len(self._sending) + len(self.held)

    @property
    def unsent(self) -> list[bytes]:
        with self._lock:
            return [*(held.item for held in self.held.events), *self._sending, *self._queue]

    def append(self, item: bytes) -> int:
        """Adds an event at the end and returns its number. From any thread; raises BufferFull."""
        with self._lock:
            if self.waiting_count >= self._limit:
                raise BufferFull(self._limit)
            self._queue.append(item)
            self._appended_count += 1
            self._wake()
            return self._appended_count

    def append_many(self, items: Sequence[bytes]) -> int:
        """Adds as many of the events as there is room for, and returns how many that were. From any thread."""
        with self._lock:
            count = min(len(items), max(self._limit - self.waiting_count, 0))
            if count:
                self._queue.extend(items[:count])
                self._appended_count += count
                self._wake()
            return count

    def is_settled(self, number: int) -> bool:
        """Whether the event of that number has left the buffer, and all before it."""
        with self._lock:
            held = self.held.settled_count
            return number <= (self._appended_count - self.waiting_count if held is None else held)

    async def wait_until_settled(self) -> None:
        """Waits until there is nothing left but what is held for later, or never will be less."""
        self._notice()
        if self._queue:
            self._enough.set()
        await self._settled.wait()

    async def wait_for_room(self) -> None:
        """Waits until one event more can be appended, or the buffer has ended."""
        while self.waiting_count >= self._limit and not self._has_ended:
            self._room.clear()
            await self._room.wait()

    async def take_batch(self, linger: float) -> list[bytes]:
        """Waits for events, and up to `linger` seconds for a whole batch of them; they are being sent from here on."""
        while not self._queue:
            self._arrived.clear()
            self._enough.clear()
            await self._arrived.wait()
        if len(self._queue) < self._batch:
            with suppress(TimeoutError):
                async with asyncio.timeout(linger):
                    await self._enough.wait()
        with self._lock:
            self._sending = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]
        return self._sending

    def keep_sending(self, items: list[bytes]) -> None:
        """Of the batch that is being sent, only `items` are not settled yet."""
        with self._lock:
            self._sending = items
        if self.waiting_count < self._limit:
            self._room.set()
        if not self._queue and not items:
            self._settled.set()

    def hold_first(self, now: float) -> None:
        """The first event of the batch that is being sent is kept for later: others go before it."""
        with self._lock:
            settled_count = self._appended_count - self.waiting_count + len(self.held)  # once those have left
            self.held.add(self._sending[0], settled_count, now)
            self._sending = self._sending[1:]

    def settle_held(self, held: HeldEvent) -> None:
        """One that was kept for later is accepted, or refused."""
        with self._lock:
            self.held.remove(held)
        self.keep_sending(self._sending)

    def end(self) -> None:
        """Nothing more will be sent: nobody waits for it any more."""
        self._has_ended = True
        self._settled.set()
        self._room.set()

    def _wake(self) -> None:
        """Has the loop look into the queue; in its own thread at once."""
        if threading.get_ident() == self._thread_id:
            if not self._arrived.is_set():  # it knows nothing yet of what is there
                self._notice()
            elif len(self._queue) >= self._batch:
                self._enough.set()
        elif self._loop is not None and not self._is_waking:
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        with self._lock:
            self._is_waking = False
            if not self._queue:
                return
            self._arrived.set()
            if len(self._queue) >= self._batch:
                self._enough.set()
            if not self._has_ended:
                self._settled.clear()
