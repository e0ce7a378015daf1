"""Real DNS queries, end to end: dig asks a real named, and the query is an event at a user of each shard."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.named import Named
from tests.support.system import ANSWER_SECONDS, Session, System, end, run, running

HELLO = {"subscriptions": ["dns_query_log"]}
ZONES = "z.example,sub.z.example"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    with Named(tmp_path_factory.mktemp("named")) as named:
        yield named


@pytest.fixture(scope="module")
def agent(system: System, named: Named) -> Iterator[Path]:
    """`solowire source bind9`, following named's log; what it says on stderr is in the file."""
    output = system.output
    options = ["--query-log", str(named.log), "--server", "ns1", "--zones", ZONES, "--from-start", "--url", system.url]
    process = system.spawn("source", "bind9", *options)
    try:
        yield output
    finally:
        assert end(process) == 0


def until(condition: Callable[[], Any], what: str, seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


async def queries(session: Session, *domains: str) -> list[dict[str, Any]]:
    """The events of these queries, in the order in which they arrive; others, such as named's first ones, pass by."""
    found: list[dict[str, Any]] = []
    while len(found) < len(domains):
        found += [e for e in (await session.hear("events"))["events"] if e["data"]["query_domain"] in domains]
    assert {event["type"] for event in found} == {"dns_query_log"}
    return found


async def test_queries_arrive_at_a_user_of_each_shard(system: System, named: Named, agent: Path) -> None:
    """What dig asks is seen by both users with client, domain and type, once, with the zone that it belongs to."""
    async with (
        system.session(system.token(system.user_on(0, "dns")), HELLO) as first,
        system.session(system.token(system.user_on(1, "dns")), HELLO) as second,
    ):
        asked = {f"q{n}.z.example": kind for n, kind in enumerate(["A", "AAAA", "MX", "TXT"])}
        for name, kind in asked.items():
            named.dig(name, kind)
        here, there = await queries(first, *asked), await queries(second, *asked)
    assert [event["offset"] for event in here] == [event["offset"] for event in there]
    assert {e["data"]["query_domain"]: e["data"]["query_type"] for e in here} == asked
    for event in here:
        assert event["data"]["client_ip"] == "127.0.0.1"
        assert event["data"]["zone"] == "z.example"
        assert event["source"] == "ns1"
        assert abs(time.time() - _unix(event["timestamp"])) < 60


async def test_a_filter_lets_through_one_zone(system: System, named: Named, agent: Path) -> None:
    """A user who filters for a zone gets the queries of that zone alone."""
    hello = HELLO | {"filter": {"zone": ["sub.z.example"]}}
    async with system.session(system.token("zones"), hello) as session:
        named.dig("other.z.example")
        named.dig("mine.sub.z.example")
        events = (await session.hear("events"))["events"]
    assert [event["data"]["query_domain"] for event in events] == ["mine.sub.z.example"]


async def test_queries_arrive_across_a_rotation(system: System, named: Named, agent: Path) -> None:
    """When logrotate renames the log and named opens a new one, what was asked before and after arrives, once each."""
    async with (
        system.session(system.token(system.user_on(0, "turn")), HELLO) as first,
        system.session(system.token(system.user_on(1, "turn")), HELLO) as second,
    ):
        named.dig("ready.z.example")
        await queries(first, "ready.z.example")  # an agent that begins after the rotation would know no older file
        named.dig("before.z.example")
        named.log.rename(named.log.with_suffix(".log.1"))
        named.dig("between.z.example")  # named still writes to the renamed file
        named.reopen()
        names = ["before.z.example", "between.z.example", "after.z.example", "last.z.example"]
        # A reload takes a moment: until the new file has its first query, dig asks again.
        until(lambda: named.dig("after.z.example") and "after.z.example" in named.log.read_text(), "it writes anew")
        named.dig("last.z.example")
        for session in (first, second):
            seen: list[str] = []
            while "last.z.example" not in seen:
                events = (await session.hear("events"))["events"]
                seen += [e["data"]["query_domain"] for e in events if e["data"]["query_domain"] in names]
            assert list(dict.fromkeys(seen)) == names
            assert [seen.count(name) for name in names if name != "after.z.example"] == [1, 1, 1]


async def test_an_agent_without_a_log_waits_for_it(system: System, tmp_path: Path) -> None:
    """The agent may be started before named has written anything."""
    log = tmp_path / "later.log"
    options = ["--query-log", str(log), "--server", "ns2", "--from-start", "--url", system.url]
    process = system.spawn("source", "bind9", *options)
    try:
        async with system.session(system.token("waiting"), HELLO) as session:
            client = "client @0x7f 192.0.2.9#4242 (late.example)"
            log.write_text(f"23-Nov-2026 11:00:00.123 {client}: query: late.example IN A + (127.0.0.1)\n")
            [event] = await queries(session, "late.example")
        assert (event["data"]["client_ip"], event["source"]) == ("192.0.2.9", "ns2")
    finally:
        assert end(process) == 0


LINE = "23-Nov-2026 11:00:00.123 client @0x7f 192.0.2.9#4242 ({0}): query: {0} IN A + (127.0.0.1)\n"


async def test_each_query_is_one_event_over_kills_of_agent_and_gateway(tmp_path: Path) -> None:
    """While agent and gateway are killed amid their work, over rotations and half-written lines, every query becomes
    one event: none is lost, none comes twice, though each agent is told to begin at the start.
    """
    log, names = tmp_path / "query.log", [f"n{number}.example" for number in range(4_000)]
    options = ["--query-log", str(log), "--server", "ns3", "--from-start"]
    found: list[str] = []
    with running(tmp_path / "data", 1, {"SHARD__AGGREGATION__EVENTS_PER_S": 100_000}) as system:
        async with system.session(system.token("counter"), HELLO) as session:
            reading = asyncio.create_task(_read_names(session, found))
            for turn, start in enumerate(range(0, len(names), 500)):
                text = "".join(LINE.format(name) for name in names[start : start + 500])
                agent = system.spawn("source", "bind9", *options, "--url", system.url)
                try:
                    with log.open("a") as file:
                        file.write(text[:-20])
                        file.flush()
                        await _some_events(tmp_path, turn)
                        if turn % 3 == 2:
                            os.kill(system.pid_of("gateway"), signal.SIGKILL)
                        agent.kill()
                        await asyncio.to_thread(agent.wait)  # the session goes on reading
                        file.write(text[-20:])
                    if turn % 2:
                        os.rename(log, f"{log}.{9 - turn}")
                finally:
                    agent.kill()
                    await asyncio.to_thread(agent.wait)
            agent = system.spawn("source", "bind9", *options, "--url", system.url)
            try:
                with log.open("a") as file:
                    file.write(LINE.format("last.example"))
                await reading
            finally:
                assert end(agent) == 0
    assert found == [*names, "last.example"]


async def test_what_was_acknowledged_long_ago_is_not_published_again(tmp_path: Path) -> None:
    """Where the gateway remembers no ids any more (an agent that was away for an hour) the place alone is enough: after
    a kill, and after an end that waited for the last events.
    """
    log, names = tmp_path / "query.log", [f"n{number}.example" for number in range(300)]
    options = ["--query-log", str(log), "--from-start"]
    found: list[str] = []
    with running(tmp_path / "data", 1, {"JOURNAL__DUPLICATE_WINDOW_S": 0}) as system:
        async with system.session(system.token("counter"), HELLO) as session:
            reading = asyncio.create_task(_read_names(session, found))
            for turn in range(3):
                with log.open("a") as file:
                    file.write("".join(LINE.format(name) for name in names[turn * 100 : turn * 100 + 100]))
                agent = system.spawn("source", "bind9", *options, "--url", system.url)
                try:
                    await until_async(lambda: _offset(tmp_path) == os.path.getsize(log))
                finally:
                    agent.send_signal(signal.SIGTERM if turn == 1 else signal.SIGKILL)
                    assert agent.wait() == (0 if turn == 1 else -signal.SIGKILL)
            with log.open("a") as file:
                file.write(LINE.format("last.example"))
            agent = system.spawn("source", "bind9", *options, "--url", system.url)
            try:
                await reading
            finally:
                assert end(agent) == 0
    assert found == [*names, "last.example"]


def _offset(tmp_path: Path) -> int:
    """The place that the agent has written down."""
    for path in (tmp_path / "data" / "sources").glob("*.json"):
        offset: int = msgspec.json.decode(path.read_bytes())["offset"]
        return offset
    return -1


async def _read_names(session: Session, found: list[str]) -> None:
    """All along: who doesn't read gets counts in place of queries."""
    while "last.example" not in found:
        frame = await session.hear("events")
        found += [event["data"]["query_domain"] for event in frame["events"]]


async def _some_events(tmp_path: Path, turn: int) -> None:
    """Until the agent of this turn has written down a place, and a moment more in each turn: amid its work."""
    state = tmp_path / "data" / "sources"
    before = {path: path.stat().st_mtime_ns for path in state.glob("*.json")}
    await until_async(lambda: {path: path.stat().st_mtime_ns for path in state.glob("*.json")} != before)
    await asyncio.sleep(0.02 * turn)


async def until_async(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: "", "must not be empty"),
        (lambda path: str(path), "not a regular file but a directory"),
        (lambda path: str(_made(os.mkfifo, path / "fifo")), "not a regular file but a FIFO"),
        (lambda path: "/dev/null", "not a regular file but a device"),
        (lambda path: str(path / ("x" * 300)), "File name too long"),
        (lambda path: str(_made(lambda loop: loop.symlink_to(loop), path / "loop")), "symbolic links"),
        (lambda path: str(_made(Path.touch, path / "file") / "log"), "Not a directory"),
    ],
)
def test_what_cannot_be_a_log_ends_the_command(tmp_path: Path, make: Callable[[Path], str], says: str) -> None:
    """One line with the fault and the way out, and status 2."""
    done = run("source", "bind9", "--query-log", make(tmp_path), "--token", "x", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert says in line
    assert "name the file" in line


def test_a_second_agent_ends_with_a_clear_error(system: System, agent: Path, named: Named) -> None:
    """It names the process that follows the log already."""
    done = run("source", "bind9", "--query-log", str(named.log), "--data-dir", str(system.data_dir), cwd=agent.parent)
    assert done.returncode == 2
    assert "another agent (process " in done.stderr


def test_a_missing_log_and_a_strange_one_are_said_at_once(system: System, tmp_path: Path) -> None:
    """What is missing and what to do stands on stderr; the agent goes on, and ends when it is asked to."""
    strange = tmp_path / "strange.log"
    strange.write_text("all zones loaded\n" * 100)
    few = tmp_path / "few.log"
    few.write_text("root:x:0\nbin:x:1\n")
    for log, options, says in (
        (tmp_path / "no" / "query.log", [], ["log_file_missing", f"the directory {tmp_path}/no doesn't exist"]),
        (strange, [], ["log_file_unmatched", "all zones loaded"]),
        (few, ["--from-start"], ["log_file_unmatched", "of the 2 lines"]),
        (strange, ["--from-start", "--state-dir", str(tmp_path / "state")], ["log_file_unmatched", "100 lines"]),
    ):
        before = len(system.said())
        process = system.spawn("source", "bind9", "--query-log", str(log), *options, "--url", system.url)
        try:
            until(partial(lambda before, says: _is_said(system.said()[before:], says), before, says), f"{says} is said")
        finally:
            assert end(process) == 0


def _is_said(lines: list[str], words: list[str]) -> bool:
    return any(all(word in line for word in words) for line in lines)


def _made(make: Callable[[Path], Any], path: Path) -> Path:
    make(path)
    return path


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
