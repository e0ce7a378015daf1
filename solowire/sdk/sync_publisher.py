"""The writer for programs without an event loop: Flask, Celery, scripts.

    publisher = SyncPublisher("https://gateway.example", token)
    publisher.publish("record_updated", {"zone": "example.com", …})

What it keeps true:

* It is a `Publisher`, in a thread of its own, so all that one promises holds here: ids, order, bounds, retries.
* There is no thread before the first use, so it can be made where a module is imported, before a server forks.
* A fork's child begins anew, with nothing in its buffer: what the parent had published, the parent goes on sending.
* At the end of the interpreter, or of a `multiprocessing` process, what is buffered is waited for, `timeout` seconds at
  most, and what is left then is logged as an error. Only `os._exit()` and signals that kill pass this by.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Any
from weakref import WeakSet

from solowire.errors import PublishRefused
from solowire.sdk.arguments import Token
from solowire.sdk.bulk_operation import BulkOperation
from solowire.sdk.event_encoding import encode_event
from solowire.sdk.event_faults import Problem
from solowire.sdk.publisher import Accepted, Publisher, PublisherStats
from solowire.sdk.publisher_thread import PublisherThread

logger = logging.getLogger("solowire.publisher")


class SyncPublisher:
    """Publishes events from any thread, as a context manager or until `close()`. The arguments are a `Publisher`'s.

    on_refused and a token function are called in the publisher's thread. One publisher serves a whole process.

    Raises TypeError or ValueError for arguments of another kind.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        batch: int = 100,
        linger: float = 0.005,
        buffer_events: int = 10_000,
        retry_for: float | None = None,
        timeout: float = 10.0,
        on_refused: Callable[[dict[str, Any], Problem], object] | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        self._make = partial(
            Publisher,
            url,
            token,
            batch=batch,
            linger=linger,
            buffer_events=buffer_events,
            retry_for=retry_for,
            timeout=timeout,
            on_refused=on_refused,
            ssl=ssl,
        )
        self._timeout = timeout
        self._publisher = self._make()
        self._lock = threading.RLock()  # a signal's handler may publish while its own thread does
        self._thread: PublisherThread | None = None
        self._is_closed = False
        _ALL.add(self)

    def __enter__(self) -> SyncPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises PublishRefused if events are left over, unless something else is being raised: then it is logged."""
        self._close(kind, error, traceback)

    def publish(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        id: str | None = None,
        priority: str | None = None,
        key: str | None = None,
        user: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
        correlation_id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Puts one event in the buffer and returns its id, made here if there is none. It does not wait.

        timestamp: RFC 3339; now, if there is none, as the event may have to wait. traceparent: the trace that it is
        part of (W3C Trace Context); by default that of OpenTelemetry's current span. Raises BufferFull; PublishRefused
        if the publisher has stopped; TypeError or ValueError, with its path, for what JSON can't say in `data`.
        """
        id, item = encode_event(
            type,
            data,
            id=id,
            priority=priority,
            key=key,
            user=user,
            timestamp=timestamp,
            source=source,
            correlation_id=correlation_id,
            traceparent=traceparent,
        )
        with self._lock:  # so that nothing is put behind what close() waits for
            if not (self._thread is not None and self._thread.is_current()):  # which may until the last one is settled
                self._begin()
            self._publisher.enqueue(item)
        return id

    def publish_and_wait(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> Accepted:
        """Posts one event or several, as the gateway takes them, past the buffer; ids are added where there are none.

        Raises PublishRefused, with nothing accepted, for whatever is not success; what can succeed later is tried
        again only if `retry_for` is set, and so long.
        """
        if isinstance(events, Iterable) and not isinstance(events, (Mapping, str, bytes)):
            events = list(events)  # here: it may need this thread
        return self._begin().call(self._publisher.publish_and_wait(events))

    def drain(self, timeout: float | None = None) -> None:
        """Waits until everything that was published is accepted (or refused by name). timeout: seconds.

        Raises PublishRefused; TimeoutError, and the events go on being sent.
        """
        try:
            self._begin().call(self._publisher.drain(), timeout)
        except TimeoutError:
            raise TimeoutError(f"{len(self.unsent)} events are not accepted after {timeout} s") from None

    @contextmanager
    def bulk(
        self,
        operation: str,
        *,
        total: int | None = None,
        operation_id: str | None = None,
        zone: str | None = None,
        actor: str | None = None,
    ) -> Iterator[BulkOperation]:
        """A bulk operation, such as an import, as a context manager that publishes how far it is.

        total: items to do, if that is known. operation_id: made here, if there is none. zone: that it is about.
        actor: who caused it. Raises TypeError or ValueError for arguments of another kind.
        """
        running = self._publisher.bulk(operation, total=total, operation_id=operation_id, zone=zone, actor=actor)
        thread, pid = self._begin(), os.getpid()
        thread.call(running.__aenter__())
        try:
            yield running
        except BaseException as error:
            if pid == os.getpid():
                thread.call(running.__aexit__(type(error), error, error.__traceback__))
            raise
        if pid == os.getpid():  # and not of a fork that left the block as well
            thread.call(running.__aexit__(None, None, None))

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """The events that are neither accepted nor refused, in order: to be kept, if the publisher has stopped."""
        return self._publisher.unsent

    @property
    def stats(self) -> PublisherStats:
        """Counts since the publisher began in this process."""
        return self._publisher.stats

    def close(self) -> None:
        """Waits `timeout` seconds at most for what is buffered, then ends. What is left over stays in `unsent`.

        Raises PublishRefused if there is any. One that is closed already, or was never used, has nothing to do.
        """
        self._close(None, None, None)

    # ------------------------------------------------------------------------------------------ inside

    def _begin(self) -> PublisherThread:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the publisher is closed")
            if self._thread is None:
                with _STARTING:
                    thread = PublisherThread(self._publisher, self._timeout)
                    thread.start()
                    self._thread = thread
                    _finish_at_exit(self)
            return self._thread

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        _RUNNING.discard(self)
        if self._thread is not None:
            self._thread.stop(kind, error, traceback)

    def finish(self) -> None:
        """Closes it where nobody can be told by an exception: at the end of the process."""
        try:
            self.close()
        except (PublishRefused, RuntimeError) as fault:
            logger.error("%d events are left over at the end of the process: %s", len(self.unsent), fault)

    def begin_anew(self) -> None:
        """In a fork's child: there is no thread here, and what is buffered is the parent's to send."""
        self._lock = threading.RLock()
        if self._thread is not None:
            self._thread.leave_to_parent()
            _LEFT_TO_PARENT.append((self._thread, self._publisher))
            self._thread = None
            self._publisher = self._make()


_STARTING = threading.RLock()
"""Held while a thread is started, and by whoever forks: a child finds a whole one, to leave to its parent, or none."""

_RUNNING: set[SyncPublisher] = set()
"""All that have a thread in this process; they live until they are closed."""

_ALL: WeakSet[SyncPublisher] = WeakSet()

_LEFT_TO_PARENT: list[object] = []
"""Kept, as they would be taken apart otherwise, loops and sockets, while they are in use in the parent."""


def _finish_at_exit(publisher: SyncPublisher) -> None:
    _RUNNING.add(publisher)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:  # it will end without atexit
        from multiprocessing.util import Finalize

        Finalize(None, _finish_all, exitpriority=10)


def _finish_all() -> None:
    for publisher in list(_RUNNING):
        publisher.finish()


def _begin_anew() -> None:
    _STARTING.release()
    for publisher in list(_ALL):
        publisher.begin_anew()
    _RUNNING.clear()


atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_begin_anew)
