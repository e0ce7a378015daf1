"""The watch over a server's configuration, as a part of the BIND 9 source.

The directories are watched, not the files: a watch of a file ends with the file that an editor replaces. Where there is
no inotify the files are looked at every LOOK_S in any case.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ConfigError
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.server.config_files import (
    ConfigFiles,
    Signature,
    check_config,
    find_checker,
    list_changed,
    read_config_files,
)
from solowire.sources.bind9.server.config_history import ConfigHistory, ConfigNews, ConfigSnapshot
from solowire.sources.bind9.server.config_payload import digest_text, make_config_payload, make_invalid_snapshot
from solowire.sources.bind9.server.config_state import ConfigState, ConfigStateFile
from solowire.sources.bind9.server.secret_mask import SecretMask
from solowire.sources.files.directory_watch import DirectoryWatch

LOOK_S = 2.0
SETTLE_S = 0.2
"""For which an editor may go on writing before the files are read."""
_ATTEMPTS = 3
EVENT_TYPE = "config_change"

logger = structlog.get_logger()


class ConfigPart:
    """Publishes changes of the configuration at `path`.

    has_outcomes: somebody calls `observe_outcome`, which says how reloads end. Raises ConfigError without
    `named-checkconf`, or if the state can't be kept.
    """

    name = "configuration"

    def __init__(self, path: Path, outlet: EventOutlet, *, state_dir: Path, has_outcomes: bool) -> None:
        self._path = path.absolute()
        self._outlet = outlet
        self._has_outcomes = has_outcomes
        self._checker = find_checker()
        self._state_file = ConfigStateFile(state_dir, path)
        try:
            self._state = self._state_file.load()
            self._state_file.save(self._state)
        except OSError as error:
            raise ConfigError(
                f"the agent's state can't be kept in {state_dir}: {error.strerror}; choose another directory with "
                "--state-dir"
            ) from None
        self._mask = SecretMask(bytes.fromhex(self._state.key))
        self._files = ConfigFiles({}, frozenset())
        self._masked_signatures: dict[Path, Signature] = {self._path: "not read"}
        self._outcomes: list[tuple[bool, tuple[str, ...]]] = []
        self._outcome_came = asyncio.Event()
        self._history: ConfigHistory | None = None
        self._is_seen = False  # the files as they are have been read by BIND
        self._changed: set[str] = set()  # files, since a change was told
        self._trouble = WarningPace()

    def observe_outcome(self, success: bool, errors: Sequence[str]) -> None:
        """A reload has ended, says the log."""
        self._outcomes.append((success, tuple(errors)))
        self._outcome_came.set()

    def mask_line(self, text: str) -> str:
        """An error line of named's without secrets: also those that were written to a file a moment ago."""
        if list_changed(self._masked_signatures):
            files = read_config_files(self._path)
            self._masked_signatures = files.signatures
            self._mask.learn_secrets(files.secrets)
        return self._mask.mask_text(text)

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises PublishRefused."""
        stopping = asyncio.ensure_future(stop.wait())
        watch = DirectoryWatch(self._path)
        try:
            while not stopping.done():
                changed = await asyncio.to_thread(list_changed, self._files.signatures)
                if changed or not self._is_seen:
                    await asyncio.wait({stopping}, timeout=SETTLE_S if self._is_seen else 0)
                    await self._take_snapshot(status)
                    watch.paths = tuple(self._files.signatures)
                    watch.cover()
                await self._tell_outcomes(status)
                if self._history is not None:
                    await self._publish(self._history.tick(time.monotonic()), status)
                self._outcome_came.clear()
                if not self._outcomes or self._history is None:
                    await self._wait_for_change(watch, stopping)
        finally:
            stopping.cancel()
            watch.close()

    async def _wait_for_change(self, watch: DirectoryWatch, stopping: asyncio.Future[Any]) -> None:
        came = asyncio.ensure_future(self._outcome_came.wait())
        try:
            await watch.wait(LOOK_S, {stopping, came})
        finally:
            came.cancel()
        watch.read_events()

    # ------------------------------------------------------------------------------------------ looks

    def _read_files(self) -> None:
        self._files = read_config_files(self._path)
        self._mask.learn_secrets(self._files.secrets)

    async def _take_snapshot(self, status: PartStatus) -> None:
        """Looks at the disk. What can't be had is tried again at the next look."""
        self._is_seen = False
        for _ in range(_ATTEMPTS):
            before: dict[Path, Signature] = self._files.signatures
            await asyncio.to_thread(self._read_files)
            now = self._files.signatures
            self._changed |= {str(path) for path, signature in now.items() if before and before.get(path) != signature}
            if self._files.trouble is not None:
                self._wait_for_file(self._files.trouble, status)
                return
            plain = await check_config(self._checker, self._path, "-p")
            masked = await check_config(self._checker, self._path, "-px")
            problem = plain.problem or masked.problem
            if problem is not None:
                self._warn(status, problem, "the configuration is not watched as long as that is so")
                return
            if not plain.is_valid and not masked.is_valid:
                snapshot = make_invalid_snapshot(
                    [self._mask.mask_text(line) for line in [*masked.messages, *masked.output.splitlines()]]
                )
            else:
                text = await asyncio.to_thread(self._mask.mask_configuration, plain.output, masked.output)
                if text is None or not (plain.is_valid and masked.is_valid):
                    continue  # it was written meanwhile
                snapshot = ConfigSnapshot(digest=digest_text(text), text=text)
            self._is_seen = True
            status.set_running()
            self._trouble.reset()
            status.read_count += before != now
            await self._look(snapshot, status)
            return
        self._warn(status, f"{self._path} is being written", "it is read again in a moment")

    async def _look(self, snapshot: ConfigSnapshot, status: PartStatus) -> None:
        if self._history is None:
            kept = self._state.text
            loaded = snapshot if kept is None else ConfigSnapshot(digest=digest_text(kept), text=kept)
            self._history = ConfigHistory(loaded, has_outcomes=self._has_outcomes)
            if kept is None and snapshot.text is not None:
                await self._keep(snapshot)
        await self._publish(self._history.look(snapshot, time.monotonic()), status)

    def _wait_for_file(self, trouble: OSError, status: PartStatus) -> None:
        self._warn(
            status,
            f"{trouble.filename}: {trouble.strerror}",
            "waiting for it; let the agent's user read named.conf and all that it includes (on Debian the group bind)",
        )

    def _warn(self, status: PartStatus, reason: str, hint: str) -> None:
        """Says at once, and every minute, what stands in the way."""
        if self._trouble.is_due(reason, time.monotonic()):
            logger.warning("configuration_unreadable", path=str(self._path), reason=reason, hint=hint)
        status.set_waiting(reason)

    # ------------------------------------------------------------------------------------------ news

    async def _tell_outcomes(self, status: PartStatus) -> None:
        if self._history is None:
            return
        outcomes, self._outcomes = self._outcomes, []
        for success, errors in outcomes:
            if await asyncio.to_thread(list_changed, self._files.signatures):
                await self._take_snapshot(status)
            await self._publish(self._history.end_reload(success, errors), status)

    async def _publish(self, news: Sequence[ConfigNews], status: PartStatus) -> None:
        for one in news:
            files, self._changed = sorted(self._changed), set()
            data = await asyncio.to_thread(make_config_payload, one, str(self._path), self._outlet.server, files)
            await self._outlet.publish(EVENT_TYPE, data)
            status.published_count += 1
        if news and self._history is not None and self._history.loaded.text is not None:
            await self._outlet.drain_changes()
            await self._keep(self._history.loaded)

    async def _keep(self, loaded: ConfigSnapshot) -> None:
        if loaded.text == self._state.text:
            return
        self._state = ConfigState(key=self._state.key, text=loaded.text)
        try:
            await asyncio.to_thread(self._state_file.save, self._state)
        except OSError as error:
            logger.warning(
                "config_state_write_failed",
                path=str(self._state_file.path),
                reason=error.strerror,
                hint="a change that is made while the source is away would not be told",
            )
