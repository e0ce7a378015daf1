"""Standard input, or any other file or pipe, as it comes, without holding up the loop."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import AsyncIterator

READ_BYTES = 64 * 1024
READ_AHEAD = 4  # pieces that are read and not taken yet


def _read(descriptor: int) -> bytes:
    """The next piece; waits for it also where the descriptor is one that doesn't, as Node's and some shells' are."""
    while True:
        try:
            return os.read(descriptor, READ_BYTES)  # no stream, whose lock would outlive the thread
        except BlockingIOError:
            ready = select.poll()
            ready.register(descriptor, select.POLLIN)
            ready.poll()


async def read_pieces(descriptor: int) -> AsyncIterator[bytes]:
    """What comes from a file or pipe, as it comes.

    It is read by a thread that nobody has to wait for, since a terminal may say nothing. The thread is READ_AHEAD
    pieces ahead at most. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD)

    def read() -> None:
        piece: bytes | OSError = b"-"
        while piece and not isinstance(piece, OSError):
            room.acquire()
            try:
                piece = _read(descriptor)
            except OSError as error:
                piece = error
            try:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
            except RuntimeError:  # the loop is closed: nobody wants it any more
                return

    threading.Thread(target=read, daemon=True).start()
    while piece := await queue.get():
        if isinstance(piece, OSError):
            raise piece
        room.release()
        yield piece
