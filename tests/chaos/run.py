"""One run: start everything, disturb it for a while, heal it, wait for the last event, and judge."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import msgspec

from tests.chaos import checker, plan
from tests.chaos.checker import Violation
from tests.chaos.clients import Reader, current_user, population
from tests.chaos.disturb import Disturber
from tests.chaos.load import REQUEST_SECONDS, Ledger, Maker, WatchedPublisher, publish
from tests.chaos.oracle import Who
from tests.chaos.processes import ChaosSystem

PUBLISHERS = 4
WELCOME_SECONDS = 60.0
SETTLE_SECONDS = 60.0
LATE_EVERY = 6
"""Every so manieth client comes for the first time in the midst of it."""

SHOWN_LINES = 40

log = logging.getLogger("tests.chaos.run")


class Options(msgspec.Struct, frozen=True):
    """seconds: of disturbance. rate: events a second, of all publishers together. kinds: see `plan.FAMILIES`."""

    seed: int
    seconds: float = 120.0
    clients: int = 30
    shards: int = 2
    rate: float = 200.0
    kinds: str = ",".join(plan.ALL_KINDS)

    @property
    def command(self) -> str:
        """What makes this run again."""
        return (
            f"python -m tests.chaos --seed {self.seed} --seconds {self.seconds:g} --clients {self.clients} "
            f"--shards {self.shards} --rate {self.rate:g} --kinds {self.kinds}"
        )


class Report(msgspec.Struct):
    """What came of a run. directory: where its logs are. delays: seconds from acknowledgement to arrival, of all."""

    options: Options
    directory: Path
    disturbances: dict[str, int] = {}
    failed_disturbances: list[str] = []
    acknowledged: int = 0
    unsettled: int = 0
    sent_again: int = 0
    known_already: int = 0
    checked: int = 0
    delays: list[float] = []
    reconnections: int = 0
    silences: list[float] = []
    settled_after: float = 0.0
    violations: list[Violation] = []
    notes: list[str] = []
    around: list[str] = []

    @property
    def ok(self) -> bool:
        return not self.violations and not self.notes

    def __str__(self) -> str:
        made = ", ".join(f"{count} {kind}" for kind, count in sorted(self.disturbances.items())) or "none"
        counts = Counter(violation.kind for violation in self.violations)
        silences = self.silences or [0.0]
        delays = [*statistics.quantiles(self.delays or [0.0, 0.0], n=100), max(self.delays, default=0.0)]
        lines = [
            f"seed {self.options.seed}: {'kept' if self.ok else 'BROKEN'}",
            f"  disturbances     {made}",
            f"  events           {self.acknowledged} acknowledged, {self.unsettled} not; {self.sent_again} requests "
            f"were sent again, {self.known_already} of their events were known already",
            f"  deliveries       {self.checked} checked; {self.reconnections} reconnections",
            f"  after the ack    {delays[49]:.2f} s median, {delays[98]:.2f} s p99, {delays[-1]:.1f} s at most",
            "  violations       " + ", ".join(f"{counts[kind]} {kind}" for kind in checker.KINDS),
            f"  without delivery {statistics.median(silences):.1f} s at the median, {max(silences):.1f} s at the worst",
            f"  caught up        {self.settled_after:.1f} s after the last disturbance",
        ]
        lines += [f"  not as planned   {text}" for text in self.failed_disturbances]
        if not self.ok:
            lines += [f"  ! {note}" for note in self.notes]
            lines += self.around[:SHOWN_LINES]
            if len(self.around) > SHOWN_LINES:
                lines.append(f"    … {len(self.around) - SHOWN_LINES} more lines in violations.txt")
            lines += [f"  logs             {self.directory}", f"  again            {self.options.command}"]
        return "\n".join(lines)


async def run(options: Options, directory: Path, disturbances: tuple[plan.Disturbance, ...] | None = None) -> Report:
    """directory: an empty one with a short path; it is left to the caller to remove. disturbances: instead of those
    that the seed makes. Raises ValueError for options that don't fit.
    """
    if disturbances is None:
        disturbances = plan.make(options.seed, options.seconds, options.shards, plan.parse_kinds(options.kinds))
    system = ChaosSystem(directory, options.shards, plan.EXTRA_SHARDS, options.seed)
    report = Report(options, directory)
    with _logged(directory / "chaos.log"):
        log.info("%s", options.command)
        try:
            await system.begin()
            await _Run(options, disturbances, system, report).run()
        finally:
            report.notes += await system.finish()
    return report


class _Run:
    def __init__(
        self, options: Options, disturbances: tuple[plan.Disturbance, ...], system: ChaosSystem, report: Report
    ) -> None:
        self._options = options
        self._plan = disturbances
        self._system = system
        self._report = report
        self._began: float | None = None
        self._ledger = Ledger()
        self._publishers: list[WatchedPublisher] = []
        self._token_seconds = options.seconds + 600
        self._gateways = [system.link_url(f"gateway {i}") for i in range(plan.GATEWAYS)]
        self._disturber = Disturber(system, self._token("chaos", "admin"), self._clock)
        self._readers = [
            Reader(who, self._gateways[i % plan.GATEWAYS], self._token_of(who), self._clock, self._ledger.made)
            for i, who in enumerate(population(options.clients))
        ]

    async def run(self) -> None:
        early = [reader for number, reader in enumerate(self._readers) if number % LATE_EVERY]
        late = self._readers[::LATE_EVERY]
        reading = [asyncio.create_task(reader.run(), name=reader.who.user) for reader in early]
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                for reader in early:
                    await reader.entered()
            self._began = time.monotonic()
            chance = Random(f"{self._options.seed} late")
            for reader in late:
                after = chance.uniform(0, self._options.seconds)
                reading.append(asyncio.create_task(reader.run(after), name=reader.who.user))
            await self._load()
        finally:
            for task in reading:
                task.cancel()
            faults = await asyncio.gather(*reading, return_exceptions=True)
        self._report.notes += [f"a client failed: {fault!r}" for fault in faults if isinstance(fault, Exception)]
        self._judge()

    async def _load(self) -> None:
        """The disturbances under load; returns when all clients have what they must have, or never will."""
        stop = asyncio.Event()
        users = [reader.who.user for reader in self._readers]
        async with AsyncExitStack() as stack:
            publishing = []
            for number in range(PUBLISHERS):
                publisher = WatchedPublisher(
                    self._gateways[number % plan.GATEWAYS],
                    self._token(f"publisher-{number}", "publisher"),
                    self._ledger,
                    self._clock,
                    timeout=REQUEST_SECONDS,
                )
                await publisher.__aenter__()
                stack.push_async_callback(publisher.close)  # leaving it would wait for what a fault still holds up
                self._publishers.append(publisher)
                maker = Maker(self._options.seed, f"p{number}", users)
                rate = self._options.rate / PUBLISHERS
                publishing.append(asyncio.create_task(publish(publisher, maker, rate, stop, self._clock)))
            try:
                await self._disturber.run(self._plan)
                await asyncio.sleep(self._options.seconds - self._clock())
            finally:
                stop.set()
                healed = self._clock()
                log.info("the disturbances are over")
                _, late = await asyncio.wait(publishing, timeout=SETTLE_SECONDS)
                for task in late:
                    task.cancel()
                faults = await asyncio.gather(*publishing, return_exceptions=True)
        if late:
            self._report.notes.append(f"{len(late)} publishers were not done {SETTLE_SECONDS:g} s after the last fault")
        self._report.notes += [f"a publisher failed: {fault!r}" for fault in faults if isinstance(fault, Exception)]
        await self._caught_up()
        self._report.settled_after = self._clock() - healed

    async def _caught_up(self) -> None:
        """Waits until every client has got the last event that it must get."""
        deadline = self._clock() + SETTLE_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                for reader in self._readers:
                    await reader.entered()
        last = [(reader, self._last_due(reader)) for reader in self._readers]
        while late := [(r, due) for r, due in last if not _reached(r, due) and not r.story.ended]:
            if self._clock() > deadline:
                where = ", ".join(f"{r.who.user} at {r.farthest[1]} of {due[1]}" for r, due in late[:5])
                self._report.notes.append(f"{len(late)} clients did not catch up in {SETTLE_SECONDS:g} s: {where}")
                return
            await asyncio.sleep(0.05)

    def _last_due(self, reader: Reader) -> tuple[str, int]:
        story, ledger = reader.story, self._ledger
        due = checker.expected(story.who, story.epoch, story.cursor, ledger.made, ledger.acks)
        last = max(due.values(), key=lambda ack: (ack.at, ack.offset), default=None)
        return (story.epoch, story.cursor) if last is None else (last.epoch, last.offset)

    def _judge(self) -> None:
        report, ledger, disturber = self._report, self._ledger, self._disturber
        report.disturbances = disturber.counts()
        report.failed_disturbances = [str(h) for h in disturber.happened if h.outcome]
        report.acknowledged = len(ledger.acks)
        report.unsettled = len(ledger.made) - len(ledger.acks)
        report.sent_again = sum(publisher.stats.retries for publisher in self._publishers)
        report.known_already = sum(publisher.stats.duplicates for publisher in self._publishers)
        report.violations = ledger.violations + checker.check_acks(ledger.made, ledger.acks)
        for reader in self._readers:
            arrivals = reader.story.arrivals
            report.checked += len(arrivals)
            report.delays += [max(a.at - ledger.acks[a.id].at, 0.0) for a in arrivals if a.id in ledger.acks]
            report.reconnections += max(len(reader.visits) - 1, 0)
            report.silences.append(reader.longest_silence(self._options.seconds))
            report.violations += checker.check(reader.story, ledger.made, ledger.acks)
        report.violations.sort(key=lambda violation: violation.at)
        report.around = list(self._explained())
        if report.violations:
            (report.directory / "violations.txt").write_text(
                "\n".join([*report.around, "", *map(str, report.violations), ""])
            )

    def _explained(self) -> Iterator[str]:
        """The first violation of each kind and client, as far as they are shown, and what was going on then."""
        visits = {reader.who.user: reader.visits for reader in self._readers}
        alike = Counter((violation.kind, violation.user) for violation in self._report.violations)
        for violation in self._report.violations:
            more = alike.pop((violation.kind, violation.user), 0) - 1
            if more < 0:
                continue  # the first of its kind and client was shown
            yield f"  ! {violation}{f' (and {more} more of this client)' if more else ''}"
            for visit in [v for v in visits.get(violation.user, []) if v.at <= violation.at][-2:]:
                yield f"      {visit}"
            for happened in self._disturber.around(violation.at):
                yield f"      {happened}"

    def _clock(self) -> float:
        """Seconds of the run: since the disturbances began, 0 before."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def _token(self, user: str, role: str, **claims: object) -> str:
        return self._system.token(user, role, self._token_seconds, **claims)

    def _token_of(self, who: Who) -> str:
        return self._token(who.user, who.role, **({"scopes": {"zones": list(who.zones)}} if who.zones else {}))


def _reached(reader: Reader, due: tuple[str, int]) -> bool:
    epoch, offset = reader.farthest
    return epoch == due[0] and offset >= due[1]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What the harness and the SDK's clients say goes to a file, each line with its client."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(user)-9s %(name)s %(message)s"))
    handler.addFilter(_with_user)
    loggers = [logging.getLogger(name) for name in ("solowire.client", "solowire.publisher", "tests.chaos")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def _with_user(record: logging.LogRecord) -> bool:
    record.user = current_user.get()
    return True
