"""What every process does alike: its loop, its signals, its last words."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import secrets
import signal
from collections.abc import Awaitable, Callable

import uvloop

from solowire.errors import ConfigError

_PR_SET_PDEATHSIG = 1
PARENT = "_SOLOWIRE_PARENT"


def new_id() -> str:
    """A random id of 16 characters, for sessions, tickets, boots and epochs."""
    return secrets.token_hex(8)


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop; `stop` is set by SIGTERM or SIGINT, and a second signal ends the process at once."""
    _die_with_parent()
    uvloop.run(_run(main))


async def _run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def ask_to_stop(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop, number)
    await main(stop)


def calm_collector() -> None:
    """Takes what start-up made out of the garbage collector's sight, and lets it look less often.

    Our messages and frames hold no cycles, so a full collection over the recent log finds nothing and stops the loop.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _die_with_parent() -> None:
    """A child of `up` ends with it, even when it is killed: no orphan holds a port or a socket."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise ConfigError("the supervisor that started this process is gone")
