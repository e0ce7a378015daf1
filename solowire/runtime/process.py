"""The life of every process: its loop, its signals, its signs of life, its last words.

It follows sd_notify(3), so that systemd and `up` watch it in the same way: where NOTIFY_SOCKET names a socket, it says
`READY=1` when it serves (`report_ready`) and `WATCHDOG=1` from its loop, once a second or as often as WATCHDOG_USEC
asks. A loop that is stuck says nothing, which is the whole idea.

Its locks and sockets are made again where somebody removes them; a process whose lock another one has ends.

SIGHUP is what a terminal says when it closes, and what an operator says to a service: a process that was started from a
terminal ends in order, as by SIGTERM, and any other one calls what `on_reload` was given.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
import uvloop

from solowire.errors import ConfigError
from solowire.runtime import logging as logs
from solowire.runtime.owned_files import CHECK_SECONDS, OWNED
from solowire.runtime.settings import Settings
from solowire.runtime.settings_changes import ReloadNote, explain_waiting, list_waiting_settings
from solowire.runtime.terminal import PARENT, has_terminal

logger = structlog.get_logger("solowire.process")

_PR_SET_PDEATHSIG = 1
_PR_SET_MEMORY_MERGE = 67  # prctl(2), Linux 6.4 and newer
_KSM = Path("/sys/kernel/mm/ksm")
NOTIFY = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"

FEWEST_FILES = 64
"""Open files, below which a library ends the process instead of an error."""
HEARTBEAT_SECONDS = 1.0
HEARTBEATS_IN_TIME = 3
"""So many beats fall into the time after which a silent process is taken for stuck: two may be lost."""

START_EXTENSION_SECONDS = 60
"""How much more time a process asks for that is not ready yet, from then on."""

_exit_hooks: list[Callable[[], None]] = []
_reload_hooks: list[Callable[[Settings], object]] = []
_last_reload_hooks: list[Callable[[Settings], object]] = []
_loaders: list[tuple[Callable[[], Settings], Settings]] = []
_ready_hooks: list[Callable[[], None]] = []
_extension_hooks: list[Callable[[], None]] = []


def new_id() -> str:
    """A random id of 16 characters, for sessions, tickets, boots and epochs."""
    return secrets.token_hex(8)


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop; `stop` is set by SIGTERM, SIGINT or SIGQUIT.

    A second signal ends the process at once. Raises ConfigError where there are too few open files to start at all, and
    where another process has taken a lock of this one.
    """
    _die_with_parent()
    if (files := raise_file_limit()) < FEWEST_FILES:
        raise ConfigError(f"the limit of open files is {files}, {FEWEST_FILES} are needed; raise it (ulimit -n)")
    uvloop.run(_run(main))


def on_forced_exit(hook: Callable[[], None]) -> None:
    """Has `hook` done when a second signal ends the process at once, with no time for `finally`."""
    _exit_hooks.append(hook)


async def _run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    notifier = Notifier(os.environ)

    def ask_to_stop(number: int) -> None:
        if stop.is_set():
            for deed in _exit_hooks:
                deed()
            logs.flush()
            os._exit(128 + number)
        notifier.send_state("STOPPING=1")
        stop.set()

    def reload() -> None:
        waiting: list[str] = []
        notes: list[ReloadNote] = []
        try:
            for load, began_with in _loaders:
                settings = load()
                found = [reload_part(settings) for reload_part in (*_reload_hooks, *_last_reload_hooks)]
                notes += (note for note in found if isinstance(note, ReloadNote))
                waiting = list_waiting_settings(began_with, settings)
        except ConfigError as error:
            logger.error("settings_reload_rejected", reason=str(error), hint="the previous settings stay in force")
        except Exception:
            logger.exception("settings_reload_failed")
        else:
            hints = [note.hint for note in notes]
            fields: dict[str, object] = {name: value for note in notes for name, value in note.fields.items()}
            if waiting:
                fields["restart_needed"] = waiting
                hints.append(f"restart_needed: in force with the next start{explain_waiting(waiting)}")
            if fields:
                logger.warning("settings_reloaded", **fields, hint="; ".join(hints))
            else:
                logger.info("settings_reloaded")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, ask_to_stop, number)
    if has_terminal():
        loop.add_signal_handler(signal.SIGHUP, ask_to_stop, signal.SIGHUP)
    else:
        loop.add_signal_handler(signal.SIGHUP, reload)
    _ready_hooks[:] = [lambda: notifier.send_state("READY=1")]
    _extension_hooks[:] = [lambda: notifier.send_state(f"EXTEND_TIMEOUT_USEC={START_EXTENSION_SECONDS * 1_000_000}")]
    # Its first step comes when `main` waits for the first time: it has started then.
    beating = loop.create_task(_send_heartbeats(notifier))
    checking = loop.create_task(_check_files(stop))
    try:
        await main(stop)
    finally:
        beating.cancel()
        checking.cancel()
    if checking.done() and (lost := checking.exception()) is not None:
        raise lost


def report_ready() -> None:
    """Tells whoever started this process that it serves; once, whatever number of times it is called."""
    while _ready_hooks:
        _ready_hooks.pop()()


def extend_start() -> None:
    """Asks whoever started this process for more time until it is ready. Call it again well before that has passed."""
    for extend in _extension_hooks:
        extend()


def reload_from(load: Callable[[], Settings], settings: Settings) -> None:
    """How the settings are read again. It may raise ConfigError: the previous settings stay in force then.

    settings: those that the process began with.
    """
    _loaders[:] = [(load, settings)]


def on_reload(reload_part: Callable[[Settings], object], *, is_last: bool = False) -> None:
    """Has this called with the settings that were read again. It may raise ConfigError before it changes anything.

    What it returns, if it is a ReloadNote, stands in the line that says that they were. is_last: after all the
    others, so that nothing has changed if one of them refuses. It raises nothing.
    """
    (_last_reload_hooks if is_last else _reload_hooks).append(reload_part)


class Notifier:
    """Tells whoever started this process how it is. What can't be told is left untold: it must not stop the process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.period = _parse_period(environment.get(WATCHDOG, ""))
        address = environment.get(NOTIFY, "")
        # A path, or a name in the abstract namespace, which sd_notify(3) writes with @ for the NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @property
    def is_wanted(self) -> bool:
        return self._socket is not None

    def send_state(self, state: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # nobody reads, or nobody is there any more
                self._socket.sendto(state.encode(), self._address)


async def _send_heartbeats(notifier: Notifier) -> None:
    while notifier.is_wanted:
        notifier.send_state("WATCHDOG=1")
        await asyncio.sleep(notifier.period)


async def _check_files(stop: asyncio.Event) -> None:
    """Raises ConfigError where another process has taken a lock of this one, and has this one stop."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            OWNED.check()
        except ConfigError as error:
            logger.critical("lock_lost", reason=str(error), hint="this process ends")
            stop.set()
            raise


def _parse_period(microseconds: str) -> float:
    """How often to beat, in seconds, if silence is taken for stuck after so long."""
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return HEARTBEAT_SECONDS
    return min(HEARTBEAT_SECONDS, int(microseconds) / 1e6 / HEARTBEATS_IN_TIME)


def raise_file_limit() -> int:
    """Takes as many open files as the hard limit allows, since each connection is one; returns how many it has then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def tune_gc() -> None:
    """Takes what start-up made out of the garbage collector's sight, and lets it look less often.

    Our messages and frames hold no cycles, so a full collection over the recent log finds nothing and stops the loop.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def merge_memory() -> dict[str, object]:
    """Offers this process's memory to same-page merging; what came of it, to be logged.

    The kernel keeps pages of the same content once for all, where the host has its merging on. It finds them in the
    background, at the host's own pace.
    """
    offered = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0
    reason = "" if offered else os.strerror(ctypes.get_errno())
    found: dict[str, object] = {"offered": offered, **({"reason": reason} if reason else {})}
    for name in ("run", "use_zero_pages"):
        try:
            found[f"host_{name}"] = (_KSM / name).read_text().strip() == "1"
        except OSError:
            found[f"host_{name}"] = False
    return found


def _die_with_parent() -> None:
    """A child of `up` ends with it, even when it is killed: no orphan holds a port or a socket.

    By SIGKILL, which also ends one that is stuck or stopped. Nothing that was acknowledged is lost by it: the journal
    commits before it acknowledges.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # After the call, not before: a parent that ended in between would never be noticed.
    if os.getppid() != int(parent):
        raise ConfigError("the supervisor that started this process is gone")
