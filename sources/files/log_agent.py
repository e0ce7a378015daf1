"""The loop over one log: lines become events, and the place in the log follows what the gateway has acknowledged.

It reads only as fast as the publisher takes events: while the publisher is full the loop waits and the file is the
buffer, so the agent's memory stays that of one read. A second task writes down the place up to which everything is
acknowledged, as often as that moves, KEEP_S apart at least.

What is published again after a kill is thus what was acknowledged within KEEP_S and the time of one fsync, or was under
way; it has the same ids again, by which the gateway knows it for `duplicate_window_s`.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import BufferFull, ConfigError, PublishRefused
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.checkpoint import Checkpoint, CheckpointStore, name_log
from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.held_file import check_log, explain_way_out
from solowire.sources.files.line_meaning import LineInterpreter
from solowire.sources.files.log_condition import LogCondition, LogKind
from solowire.sources.files.log_file import Line, Place

POLL_S = 0.1
PAUSE_S = 0.01  # at least, between two reads to the end: so that busy logs are read in batches
KEEP_S = 0.05
STOP_S = 5.0  # for which the last events may wait for their acknowledgement
REPORT_S = 60.0
_LINES_AT_ONCE = 250  # before the publisher has its turn, and the path is looked at

logger = structlog.get_logger()


class PublisherCounts(Protocol):
    """Events so far: accepted, and accepted before."""

    accepted: int
    duplicates: int


class EventPublisher(Protocol):
    """What agents need of `solowire.sdk.publisher`.

    `publish` raises BufferFull; `drain` waits for room. It settles events in the order in which it got them.
    """

    @property
    def stats(self) -> PublisherCounts: ...

    async def publish(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
    ) -> object: ...

    async def drain(self) -> object: ...


async def run_log_agent(
    path: Path,
    interpreter: LineInterpreter,
    publisher: EventPublisher,
    *,
    server: str,
    from_start: bool,
    stop: asyncio.Event,
    state_dir: Path,
    acknowledgements: Acknowledgements,
    status: PartStatus,
) -> None:
    """Publish what the lines of a log become, until `stop` is set.

    path: of the log, which need not exist yet. server: the name server's name, the events' `source`. from_start: also
    what the file holds already, if no place is known. state_dir: where the place is kept.
    acknowledgements: the ones that the publisher tells of refused events. status: of the part, kept up to date. Raises
    ConfigError if the file is there and can't be read, or the place can't be kept; PublishRefused if the publisher has
    stopped.
    """
    kind = interpreter.kind
    try:
        check_log(path)
    except OSError as error:  # now: a refused path leaves nothing behind
        raise _make_unreadable_error(kind, path, error) from error
    store = CheckpointStore(state_dir, path)
    watch = DirectoryWatch(path)
    try:
        checkpoint = store.load_checkpoint()
        try:
            follower = FileFollower(path, from_start, checkpoint=checkpoint, watch=watch)
        except OSError as error:
            raise _make_unreadable_error(kind, path, error) from error
        try:
            agent = _LogAgent(
                follower,
                watch,
                interpreter,
                publisher,
                server,
                stop,
                store=store,
                salt=f"{kind.name} {server} {name_log(path)}" if checkpoint is None else checkpoint.salt,
                acknowledgements=acknowledgements,
                status=status,
            )
            agent.save_first_place(checkpoint)
            await agent.run()
        finally:
            follower.close()
    finally:
        watch.close()
        store.close()


def _make_unreadable_error(kind: LogKind, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the {kind.title} {path} can't be read: {error.strerror}; {explain_way_out(error)}")


class _LogAgent:
    def __init__(
        self,
        follower: FileFollower,
        watch: DirectoryWatch,
        interpreter: LineInterpreter,
        publisher: EventPublisher,
        server: str,
        stop: asyncio.Event,
        *,
        store: CheckpointStore,
        salt: str,
        acknowledgements: Acknowledgements,
        status: PartStatus,
    ) -> None:
        self.follower = follower
        self.watch = watch
        self.interpreter = interpreter
        self.kind = interpreter.kind
        self.publisher = publisher
        self.server = server
        self.stop = stop
        self.store = store
        self.salt = salt
        self.acknowledgements = acknowledgements
        self.status = status
        self.condition = LogCondition(follower.path, server, self.clock, interpreter.kind)
        self.saved_place: Place | None = None
        self.trouble = WarningPace()
        self.has_ended = asyncio.Event()
        self.lines = 0
        self.events = 0
        self.skipped = 0
        self.waited_s = 0.0  # seconds, for a publisher that was full
        self.report_at = 0.0

    # ------------------------------------------------------------------------------------------ its life

    def save_first_place(self, checkpoint: Checkpoint | None) -> None:
        """Write down where reading begins, before anything is published. Raises ConfigError if it can't be."""
        place = self.follower.current_place()
        if checkpoint is not None:
            logger.info(
                "log_file_resumed",
                server=self.server,
                log=self.kind.name,
                path=str(self.follower.path),
                offset=0 if place is None else place.offset,
                state=str(self.store.path),
            )
        try:
            self.store.save(self.follower.files.make_checkpoint(place, self.salt))
        except OSError as error:
            raise ConfigError(
                f"the agent's state can't be kept in {self.store.path.parent}: {error.strerror}; choose another "
                "directory with --state-dir"
            ) from None
        self.saved_place = place
        if checkpoint is None:
            self.condition.inspect(self.interpreter.recognizes_line)

    async def run(self) -> None:
        self.report_at = self.clock() + REPORT_S
        keeping = asyncio.create_task(self.keep_saving_place(), name="keep place")
        try:
            await self.read_lines()
            await self.drain_publisher()
        finally:
            self.has_ended.set()  # not cancelled: what it is writing must not come after our last word
            await keeping
            await self.save_place()
            self.check_condition()
            self.report()

    async def read_lines(self) -> None:
        while not self.stop.is_set():
            lines = self.follower.read_lines()
            self.check_condition()
            now = datetime.now(UTC)
            for number, line in enumerate(lines, start=1):
                if not await self.publish_line(line, now):
                    return
                if number % _LINES_AT_ONCE == 0:
                    await asyncio.sleep(0)
                    self.follower.files.hold_new_files()
            if (place := self.follower.current_place()) is not None:
                self.acknowledgements.pass_line(place)
            self.report_if_due()
            await self.wait_for_lines()

    async def drain_publisher(self) -> None:
        """Wait for what is under way; what isn't acknowledged then is read again at the next start."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.publisher.drain()
        except TimeoutError:
            self.settle_acknowledged()
            logger.warning(
                "events_unsent",
                server=self.server,
                events=len(self.acknowledgements),
                hint="the gateway did not take them in time; they are read again at the next start",
            )
        except PublishRefused as refused:
            hint = "they are read again at the next start"
            logger.warning("events_unsent", server=self.server, reason=str(refused), hint=hint)

    # ------------------------------------------------------------------------------------------ reading

    async def publish_line(self, line: Line, now: datetime) -> bool:
        """Publish one line, however long it takes. False if the agent was stopped first."""
        self.lines += 1
        meaning = self.interpreter.interpret_line(line.text, now)
        if meaning.is_known:
            self.condition.match_line()
        else:
            self.condition.skip_line(line.text)
        if (event := meaning.event) is None:
            self.skipped += 1
            self.acknowledgements.pass_line(Place(line.file, line.end))
            return True
        id = line.file.make_event_id(line.start, self.salt)
        data = event.data if "server" in event.data else {"server": self.server, **event.data}
        while True:
            try:
                await self.publisher.publish(event.type, data, id=id, timestamp=event.timestamp, source=self.server)
            except BufferFull:
                if not await self.wait_for_room():
                    return False
            else:
                self.events += 1
                self.acknowledgements.add_event(id, Place(line.file, line.end))
                return True

    async def wait_for_room(self) -> bool:
        """Wait until the publisher has room. False if the agent was stopped first."""
        drained = asyncio.ensure_future(self.publisher.drain())
        begun, waited = self.clock(), self.waited_s
        try:
            while not drained.done():
                if self.stop.is_set():
                    return False
                self.follower.files.hold_new_files()  # the log may be rotated more than once meanwhile
                self.check_condition()
                await self.wait_for_change(drained)
                self.waited_s = waited + self.clock() - begun
                self.report_if_due()
            drained.result()
            return True
        finally:
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)

    async def wait_for_lines(self) -> None:
        """Until there is more to be read, or the publisher has had its turn if there is more already."""
        if self.follower.is_behind:
            await asyncio.sleep(0)
            return
        stopping = asyncio.ensure_future(self.stop.wait())
        drained = asyncio.ensure_future(self.publisher.drain())
        try:
            await self.wait_for_change(stopping)
            if drained.done():
                drained.result()  # a publisher that has stopped is told now, and not with the next line
        finally:
            stopping.cancel()
            drained.cancel()
            await asyncio.gather(stopping, drained, return_exceptions=True)

    async def wait_for_change(self, other: asyncio.Future[Any]) -> None:
        """Until something happens to the log, or `other` is done, or for POLL_S; for PAUSE_S at least."""
        await asyncio.wait({other}, timeout=PAUSE_S)
        if not other.done():
            await self.watch.wait(POLL_S - PAUSE_S, {other})

    # ------------------------------------------------------------------------------------------ its place

    def settle_acknowledged(self) -> None:
        """Take in what the publisher has had acknowledged."""
        stats = self.publisher.stats
        self.acknowledgements.settle_events(stats.accepted + stats.duplicates)

    async def keep_saving_place(self) -> None:
        ended = asyncio.ensure_future(self.has_ended.wait())
        while not ended.done():
            await asyncio.wait({ended}, timeout=KEEP_S)
            await self.save_place()

    async def save_place(self) -> None:
        """Write down the place up to which all is acknowledged, if it has moved."""
        self.settle_acknowledged()
        place = self.acknowledgements.place
        if place is None or place == self.saved_place:
            return
        checkpoint = self.follower.files.make_checkpoint(place, self.salt)
        try:
            await asyncio.to_thread(self.store.save, checkpoint)
        except (OSError, ConfigError) as error:
            if self.trouble.is_due("", self.clock()):
                logger.warning(
                    "checkpoint_write_failed",
                    server=self.server,
                    path=str(self.store.path),
                    reason=error.strerror if isinstance(error, OSError) else str(error),
                    hint="trying on; if the agent were killed now, it would publish again what it has published since",
                )
        else:
            self.saved_place = place

    # ------------------------------------------------------------------------------------------ its reports

    def check_condition(self) -> None:
        """Say how the log is doing, in our own log and in the part's status."""
        self.condition.check(self.follower, self.watch)
        self.status.read_count, self.status.published_count = self.lines, self.events
        if (hindrance := self.condition.hindrance) is None:
            self.status.set_running()
        else:
            self.status.set_waiting(hindrance)

    @staticmethod
    def clock() -> float:
        return asyncio.get_running_loop().time()

    def report_if_due(self) -> None:
        if self.clock() >= self.report_at:
            self.report()
            self.report_at = self.clock() + REPORT_S

    def report(self) -> None:
        """The counts since the agent began.

        skipped: lines that make no event. dropped: lines over 64 KB. passed_over: files that were rotated away before
        they were read; lost_bytes: known to be lost, if any. waited_s: for the gateway, with a full buffer: the log is
        read that much later.
        """
        lost = {"lost_bytes": self.follower.files.lost_bytes} if self.follower.files.lost_bytes else {}
        logger.info(
            "log_file_progress",
            server=self.server,
            log=self.kind.name,
            lines=self.lines,
            events=self.events,
            skipped=self.skipped,
            dropped=self.follower.dropped,
            passed_over=self.follower.files.passed_over,
            **lost,
            waited_s=round(self.waited_s, 1),
        )
