"""What the agent keeps on disk, and what it does when that can't be had."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from solowire.errors import BufferFull, ConfigError, PublishRefused
from solowire.sdk.publisher import PublisherStats
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.checkpoint import Checkpoint, CheckpointStore
from solowire.sources.files.file_follower import FileFollower
from solowire.sources.files.log_file import LogFile, Place
from tests.support.query_log_agent import run_bind9
from tests.support.query_logs import until

LINE = "2026-11-23T11:33:34.500Z client @0x7f 127.0.0.1#56031 ({0}): query: {0} IN A +E(0)K (127.0.0.1)\n"


class Gateway:
    """Publishers' other side: it has each id once. accepts: of what is published, so many."""

    def __init__(self) -> None:
        self.events: dict[str, str] = {}
        self.accepts = 1_000_000
        self.sent = 0


class Link:
    """A publisher of one agent. buffer: events that it holds until the gateway accepts them."""

    def __init__(self, gateway: Gateway, buffer: int = 100) -> None:
        self.gateway = gateway
        self.buffer = buffer
        self.held: list[tuple[str, str]] = []
        self.stats = PublisherStats()

    async def publish(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        timestamp: str | None = None,
        source: str | None = None,
    ) -> None:
        assert id is not None
        self.deliver()
        if len(self.held) >= self.buffer:
            raise BufferFull(self.buffer)
        self.held.append((id, data["query_domain"]))
        self.deliver()

    def deliver(self) -> None:
        while self.held and self.gateway.sent < self.gateway.accepts:
            self.gateway.sent += 1
            id, name = self.held.pop(0)
            assert self.gateway.events.setdefault(id, name) == name
            self.stats.accepted += 1

    async def drain(self) -> None:
        while self.held:
            self.deliver()
            await asyncio.sleep(0.005)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def add(log: Path, *names: str) -> None:
    with log.open("a") as file:
        file.write("".join(LINE.format(name) for name in names))


class Agent:
    """`async with Agent(…) as agent:` is ended amid its work at the end of the block, unless it was stopped."""

    def __init__(self, log: Path, link: Link, state: Path, from_start: bool = True) -> None:
        self.stopping = asyncio.Event()
        self._run: Callable[[], Coroutine[Any, Any, None]] = lambda: run_bind9(
            log, link, server="ns1", from_start=from_start, zones=[], stop=self.stopping, state_dir=state
        )

    async def __aenter__(self) -> Agent:
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def stop(self) -> None:
        self.stopping.set()
        await self.task


async def test_from_start_twice_publishes_once(log: Path, state: Path, logged: Callable[[], set[str]]) -> None:
    """--from-start is for a log of which no place is known: what was published isn't published again."""
    gateway = Gateway()
    add(log, "a", "b")
    for names in (["a", "b"], ["a", "b", "c"]):
        async with Agent(log, Link(gateway), state) as agent:
            await until(lambda names=names: list(gateway.events.values()) == names)  # type: ignore[misc]
            await agent.stop()
        assert gateway.sent == len(names)
        assert ("log_file_resumed" in logged()) == (len(names) == 3)
        add(log, "c")


async def test_a_publisher_that_has_stopped_ends_the_agent_also_on_a_quiet_log(log: Path, state: Path) -> None:
    """What was refused is told at once, and not when named writes its next line."""

    class Refused(Link):
        async def drain(self) -> None:
            raise PublishRefused(403, {"detail": "wrong token"})

    add(log, "a")
    async with Agent(log, Refused(Gateway()), state) as agent:
        with pytest.raises(PublishRefused):
            await asyncio.wait_for(agent.task, 30)


async def test_without_from_start_what_is_written_while_it_is_away_is_published(log: Path, state: Path) -> None:
    """The first start begins at the end; each further one where the last one was, though that published nothing."""
    gateway = Gateway()
    add(log, "old")
    async with Agent(log, Link(gateway), state, from_start=False) as agent:
        await until(lambda: any(state.glob("*.json")))
        await agent.stop()
    add(log, "a")
    async with Agent(log, Link(gateway), state, from_start=False):
        await until(lambda: list(gateway.events.values()) == ["a"])


async def test_what_was_not_acknowledged_is_published_again_under_the_same_ids(log: Path, state: Path) -> None:
    """Agents that are killed with events under way, over rotations: the gateway has each once, and in order."""
    gateway = Gateway()
    gateway.accepts = 3
    names = [f"n{number}" for number in range(30)]
    for start in range(0, 30, 5):
        add(log, *names[start : start + 5])
        link = Link(gateway, buffer=4)
        async with Agent(log, link, state):
            await until(lambda link=link: gateway.sent == gateway.accepts)  # type: ignore[misc]
        gateway.accepts += 3
        os.rename(log, f"{log}.{9 - start // 5}")
    gateway.accepts = 1_000_000
    add(log, "last")
    async with Agent(log, Link(gateway), state):
        await until(lambda: "last" in gateway.events.values())
    assert list(gateway.events.values()) == [*names, "last"]


async def test_what_is_acknowledged_is_written_down_at_once(log: Path, state: Path) -> None:
    """A place is on disk soon after the acknowledgement, and never before it."""
    gateway = Gateway()
    gateway.accepts = 2
    add(log, "a", "b", "c")

    def kept() -> int:
        [path] = state.glob("*.json")
        return msgspec.json.decode(path.read_bytes(), type=Checkpoint).offset

    async with Agent(log, Link(gateway), state):
        await until(lambda: any(state.glob("*.json")) and kept() == 2 * len(LINE.format("a")))
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert kept() == 2 * len(LINE.format("a"))


async def test_lines_that_are_no_queries_move_the_place_too(log: Path, state: Path) -> None:
    """What makes no event isn't read again and again after each start."""
    with log.open("w") as file:
        file.write("no query\n" * 3)
    async with Agent(log, Link(Gateway()), state):
        [path] = await _found(state)
        await until(lambda: msgspec.json.decode(path.read_bytes(), type=Checkpoint).offset == os.path.getsize(log))


async def _found(state: Path) -> list[Path]:
    def look() -> list[Path]:
        return list(state.glob("*.json"))

    await until(lambda: bool(look()))
    return look()


async def test_two_agents_on_one_log_are_refused(log: Path, state: Path) -> None:
    """The second one says who the first is, under whatever name it was given the log; after the first it may."""
    add(log, "a")
    link = log.with_name("link")
    link.symlink_to(log)
    async with Agent(log, Link(Gateway()), state):
        await _found(state)
        with pytest.raises(ConfigError, match=rf"another agent \(process {os.getpid()}\) reads {link} already"):
            await run_bind9(
                link, Link(Gateway()), server="x", from_start=True, zones=[], stop=asyncio.Event(), state_dir=state
            )
    async with Agent(log, Link(Gateway()), state) as agent:
        await asyncio.sleep(0)
        await agent.stop()


async def test_a_link_that_leads_to_another_file_each_day_keeps_its_place(log: Path, state: Path) -> None:
    """The rest of yesterday's file is read, and today's whole, and nothing twice."""
    gateway = Gateway()
    for day, names in enumerate((["a"], ["b", "c"])):
        dated = log.with_name(f"query-2026112{day}.log")
        add(dated, *names)
        os.symlink(dated, log.with_name("new"))
        os.replace(log.with_name("new"), log)
        async with Agent(log, Link(gateway), state) as agent:
            await until(lambda names=names: names[-1] in gateway.events.values())  # type: ignore[misc]
            await agent.stop()
        add(dated, f"late{day}")
    assert list(gateway.events.values()) == ["a", "late0", "b", "c"]
    assert gateway.sent == 4


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": 1}', b"[1]", b'{"format": "x"}'])
async def test_a_damaged_state_is_set_aside_and_said_so(log: Path, state: Path, content: bytes) -> None:
    """A file that holds no place stops nothing, and isn't lost."""
    os.mkdir(state)
    store = CheckpointStore(state, log)
    store.path.write_bytes(content)
    gateway = Gateway()
    add(log, "a")
    with capture_logs() as logs:
        async with Agent(log, Link(gateway), state) as agent:
            await until(lambda: list(gateway.events.values()) == ["a"])
            await agent.stop()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["checkpoint_damaged"]
    assert store.path.with_suffix(".damaged").read_bytes() == content
    assert msgspec.json.decode(store.path.read_bytes(), type=Checkpoint).offset == len(LINE.format("a"))


@pytest.mark.parametrize(
    ("old", "new"), [(b'"length":', b'"length":9'), (b'"offset":', b'"offset":-'), (b'"end":', b'"end":-')]
)
def test_a_state_with_numbers_that_cannot_be(log: Path, state: Path, old: bytes, new: bytes) -> None:
    """One damaged digit is a damaged file, whatever a reader would make of it; one that can't be set aside is said."""
    add(log, *map(str, range(100)))
    store = CheckpointStore(state, log)
    assert store.load_checkpoint() is None
    follower = FileFollower(log, from_start=True)
    follower.read()
    store.save(follower.files.make_checkpoint(follower.current_place(), "ns1"))
    follower.close()
    content = store.path.read_bytes()
    assert old in content
    store.path.write_bytes(content.replace(old, new))
    store.close()
    with capture_logs() as logs:
        assert store.load_checkpoint() is None
    assert [entry["event"] for entry in logs] == ["checkpoint_damaged"]
    store.close()
    aside = store.path.with_suffix(".damaged")
    aside.rename(store.path)
    aside.mkdir()
    with pytest.raises(ConfigError, match=r"can't be set aside: .*--state-dir"):
        store.load_checkpoint()
    store.close()


async def test_a_state_of_a_newer_version_stops_the_start(log: Path, state: Path) -> None:
    """It is left alone, and the message says what to do."""
    os.mkdir(state)
    path = CheckpointStore(state, log).path
    path.write_bytes(b'{"format": 2, "else": []}')
    with pytest.raises(ConfigError, match=r"newer version; run that one, or remove the file"):
        await run_bind9(
            log, Link(Gateway()), server="x", from_start=True, zones=[], stop=asyncio.Event(), state_dir=state
        )
    assert path.read_bytes() == b'{"format": 2, "else": []}'


async def test_a_state_directory_that_cannot_be_is_a_configuration_error(log: Path, tmp_path: Path) -> None:
    """A file in its place is named, with the way out."""
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"can't be kept in {bad}: .*--state-dir"):
            await run_bind9(
                log, Link(Gateway()), server="x", from_start=True, zones=[], stop=asyncio.Event(), state_dir=bad
            )


async def test_a_full_disk_is_said_and_stops_nothing(log: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the place can't be written down, publishing goes on; the old place is still there."""
    gateway = Gateway()
    add(log, "a")
    with capture_logs() as logs:
        async with Agent(log, Link(gateway), state) as agent:
            [path] = await _found(state)
            await until(lambda: msgspec.json.decode(path.read_bytes(), type=Checkpoint).offset > 0)
            before = path.read_bytes()

            def fail(file: int) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "fsync", fail)
            add(log, "b", "c")
            await until(lambda: any(entry["event"] == "checkpoint_write_failed" for entry in logs))
            assert path.read_bytes() == before
            monkeypatch.undo()
            await until(lambda: path.read_bytes() != before)
            await agent.stop()
    assert list(gateway.events.values()) == ["a", "b", "c"]


@pytest.mark.parametrize("what", ["directory", "lock"])
async def test_a_state_that_is_removed_while_the_agent_runs(what: str, log: Path, state: Path) -> None:
    """It is made again with the next place, with a lock that keeps a second agent away."""

    def remove() -> None:
        if what == "directory":
            shutil.rmtree(state)
        else:
            for lock in state.glob("*.lock"):
                lock.unlink()

    def is_back() -> bool:
        return bool(list(state.glob("*.json"))) and bool(list(state.glob("*.lock")))

    gateway = Gateway()
    async with Agent(log, Link(gateway), state) as agent:
        add(log, "a")
        await until(lambda: len(gateway.events) == 1)
        await until(is_back)
        remove()
        add(log, "b")
        await until(is_back)
        with pytest.raises(ConfigError, match="another agent"):
            CheckpointStore(state, log).load_checkpoint()
        await agent.stop()
    async with Agent(log, Link(gateway), state) as agent:
        add(log, "c")
        await until(lambda: len(gateway.events) == 3)
        await agent.stop()


@pytest.mark.parametrize(("kind", "way_out"), [("directory", "the file in it"), ("FIFO", "keeps nothing")])
def test_a_log_that_is_no_file(kind: str, way_out: str, log: Path, state: Path) -> None:
    """It is refused with what to do, and no lock is left behind."""
    if kind == "FIFO":
        os.mkfifo(log)
    else:
        log.mkdir()
    with pytest.raises(ConfigError, match=f"not a regular file but a {kind}; .*{way_out}"):
        asyncio.run(Agent(log, Link(Gateway()), state)._run())
    assert not state.exists()


def test_the_state_is_closed_to_others(log: Path, state: Path) -> None:
    """Modes 0700 and 0600: a log's path and form are nobody else's business."""
    store = CheckpointStore(state, log)
    assert store.load_checkpoint() is None
    store.save(Checkpoint(path=str(log), salt="s", file=None, offset=0, modified_ns=0, finished=[]))
    assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}
    assert state.stat().st_mode & 0o777 == 0o700
    store.close()
    store.close()


@given(st.data())
def test_the_place_never_passes_an_event_that_is_not_settled(data: st.DataObject) -> None:
    """Whatever is accepted and refused, in whichever order that is heard, the place is behind the settled prefix."""
    acknowledgements = Acknowledgements()
    file = LogFile(1, 2)
    draw: Any = data.draw
    kinds = draw(st.lists(st.sampled_from(["event", "refused", "none"]), max_size=12))
    for number, kind in enumerate(kinds, start=1):
        place = Place(file, number)
        if kind == "none":
            acknowledgements.pass_line(place)
        else:
            acknowledgements.add_event(f"{number}", place)
    settled: set[int] = set()
    accepted = 0
    left = [number for number, kind in enumerate(kinds, start=1) if kind == "event"]
    refused = draw(st.permutations([number for number, kind in enumerate(kinds, start=1) if kind == "refused"]))
    while left or refused:
        # A refusal may be heard before what comes before it is accepted, and not after what comes behind it is.
        due = [number for number in refused if not left or number < left[0]]
        if refused and (due or draw(st.booleans())):
            number = due[0] if due else refused[-1]
            refused.remove(number)
            acknowledgements.refuse_event(f"{number}")
        else:
            number = left.pop(0)
            accepted += 1
        settled.add(number)
        acknowledgements.settle_events(accepted)
        prefix = 0
        for number, kind in enumerate(kinds, start=1):
            if kind != "none" and number not in settled:
                break
            prefix = number
        reached = 0 if acknowledgements.place is None else acknowledgements.place.offset
        assert reached <= prefix
        assert any(kind != "none" for kind in kinds[reached:prefix]) is False
    assert len(acknowledgements) == 0
    assert acknowledgements.place == (Place(file, len(kinds)) if kinds else None)
