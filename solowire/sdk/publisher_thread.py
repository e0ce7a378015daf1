"""A thread with an event loop of its own, in which a publisher lives, for programs that have no event loop.

What it keeps true:

* The thread is a daemon: it never keeps a program alive. What is waited for here can be interrupted (Ctrl-C).
* A fork's child never touches what it has in common with its parent: the loop's descriptors, connections included, are
  replaced in the child by the null device at once, so that the parent alone reads, writes and closes them.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from anyio.lowlevel import checkpoint

from solowire.errors import PublishRefused
from solowire.sdk.publisher import Publisher

GRACE_S = 1.0
"""How long the thread is waited for beyond the publisher's own `timeout`."""

T = TypeVar("T")


class PublisherThread:
    """Runs one Publisher in a thread. timeout: seconds, the publisher's own."""

    def __init__(self, publisher: Publisher, timeout: float) -> None:
        self._publisher = publisher
        self._timeout = timeout
        self._loop = _Loop()
        self._leaving = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="solowire publisher", daemon=True)

    def start(self) -> None:
        """Begins, and enters the publisher. Raises RuntimeError where no thread can be started any more.

        When it returns, the thread has imported what it needs: a fork in the middle of an import, which another thread
        than the forking one does, leaves half a module in the child.
        """
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise
        try:
            self.call(self._enter())
        except BaseException:
            self._loop.call_soon_threadsafe(self._leaving.set)
            raise

    def is_current(self) -> bool:
        """Whether this is the thread itself, in which callbacks are called."""
        return threading.get_ident() == self._thread.ident

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """What `work` returns, done in the thread. Raises what it raises; TimeoutError after `timeout` seconds."""
        if self.is_current():
            work.close()
            raise RuntimeError(
                "what the publisher calls (on_refused, the token function) must not wait for it: publish() can be used"
            )
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended
            work.close()
            raise RuntimeError("the publisher is closed") from None
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def stop(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Leaves the publisher, which waits for what is buffered, and ends the thread. Raises PublishRefused."""
        try:
            self.call(self._publisher.__aexit__(kind, error, traceback), self._timeout + GRACE_S)
        except TimeoutError:
            count = len(self._publisher.unsent)
            why = f"{count} events are left over: its thread is held up, as by a token function that waits"
            raise PublishRefused(0, {"detail": f"did not take everything: {why}"}) from None
        finally:
            self._loop.call_soon_threadsafe(self._leaving.set)
            self._thread.join(GRACE_S)

    def leave_to_parent(self) -> None:
        """In a fork's child, at once: gives up all that it has in common with its parent. There is no thread here."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd in self._loop.list_descriptors():
            with suppress(OSError):
                os.dup2(null, fd, inheritable=False)
        os.close(null)

    async def _enter(self) -> None:
        await self._publisher.__aenter__()
        await checkpoint()  # anyio imports its part for asyncio when it is first used
        "localhost".encode("idna")  # as a name's lookup does

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._wait())

    async def _wait(self) -> None:
        await self._leaving.wait()


class _Loop(asyncio.SelectorEventLoop):
    """A loop that knows its descriptors, and works on when the interpreter ends, and has no threads any more."""

    def __init__(self) -> None:
        self._own_selector = selectors.DefaultSelector()
        self._connections: WeakSet[asyncio.BaseTransport] = WeakSet()
        super().__init__(self._own_selector)

    async def create_connection(self, *arguments: Any, **named: Any) -> Any:
        transport, protocol = await super().create_connection(*arguments, **named)
        self._connections.add(transport)
        return transport, protocol

    async def getaddrinfo(self, *arguments: Any, **named: Any) -> Any:
        try:
            return await super().getaddrinfo(*arguments, **named)
        except RuntimeError:  # the interpreter is about to end, and has no threads for this any more
            return socket.getaddrinfo(*arguments, **named)

    async def shutdown_default_executor(self, *arguments: Any, **named: Any) -> None:
        with suppress(RuntimeError):  # the same: it would wait in a thread for those that have ended already
            await super().shutdown_default_executor(*arguments, **named)

    def list_descriptors(self) -> set[int]:
        """Those of the selector, what it watches, and connections, which it doesn't watch while they are idle."""
        found = {key.fd for key in (self._own_selector.get_map() or {}).values()}  # None: it is closed
        found |= {each.get_extra_info("socket").fileno() for each in list(self._connections)}
        with suppress(AttributeError, ValueError):  # of a kind without a descriptor, or closed
            found.add(self._own_selector.fileno())
        return found - {-1}
