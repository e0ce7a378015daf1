"""The router's process: one lock on the data directory, one bus, one loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

import structlog

from router.journal import MemoryJournal
from router.router import Router
from solowire import backplane, process
from solowire.bus import Hub
from solowire.errors import BackplaneError, ConfigError
from solowire.settings import Settings, make_directories

log = structlog.get_logger("solowire.router")

TICK_SECONDS = 0.5


def serve(settings: Settings) -> None:
    """Runs the router until it is told to stop. Raises ConfigError if it can't start."""
    make_directories(settings)
    with ExitStack() as held:
        held.enter_context(_Lock(settings.data_dir / "router.lock"))
        process.run(lambda stop: _main(settings, stop))


class _Lock:
    """Held for as long as the process lives, by the kernel: two routers on one log would give out offsets twice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise ConfigError(
                f"a router (process {holder}) already uses the data directory {self._path.parent}; "
                "stop it, or choose another with --data-dir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    journal = MemoryJournal(
        process.new_id(),
        max_events=settings.journal_events,
        max_bytes=settings.journal_bytes,
        window=settings.duplicate_window_s,
    )
    planned = False

    def received(peer: bytes, raw: bytes) -> None:
        nonlocal planned
        try:
            message = backplane.decode_from_peer(raw)
        except BackplaneError as error:
            router.dropped += 1
            sender = peer.decode(errors="replace")
            log.error("backplane_message_dropped", sender=sender, error=str(error), dropped=router.dropped)
            return
        router.receive(peer, message, loop.time())
        if not planned:
            # After this turn's messages rather than after each: under load they go out in batches, without a timer.
            planned = True
            loop.call_soon(dispatch)

    def dispatch() -> None:
        nonlocal planned
        planned = False
        router.dispatch()

    hub = Hub(settings.backplane_address, received)
    router = Router(journal, lambda peer, message: hub.send(peer, backplane.encode(message)))
    process.calm_collector()
    log.info("router_ready", epoch=journal.epoch, backplane=settings.backplane_address)
    try:
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), TICK_SECONDS)
            except TimeoutError:
                router.tick(loop.time())
    finally:
        hub.close()
