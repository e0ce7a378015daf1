"""Real queries by dnstap, end to end: `named` tells the agent, and a user sees the query with what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.named import Named
from tests.support.system import Session, System, end, run

HELLO = {"subscriptions": ["dns_query_log"]}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dnstap") / "dnstap.sock"


@pytest.fixture(scope="module")
def named(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    with Named(tmp_path_factory.mktemp("named"), dnstap=path) as named:
        yield named


async def ask(session: Session, named: Named, name: str) -> dict[str, Any]:
    """The event of a query, which is asked over and over: named connects again when it has something to tell."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        named.dig(name)
        with suppress(TimeoutError):
            for event in (await session.hear("events", seconds=2))["events"]:
                if event["data"]["query_domain"] == name:
                    found: dict[str, Any] = event
                    return found
    raise AssertionError(f"no event of {name}")


async def test_a_query_is_an_event_and_so_is_one_after_the_agent_was_killed(
    system: System, named: Named, path: Path
) -> None:
    options = ["--dnstap", str(path), "--server", "ns1", "--zones", "z.example", "--url", system.url]
    for number, ending in enumerate(("killed", "ended")):
        process = system.spawn("source", "bind9", *options)
        try:
            async with system.session(system.token(f"tap{number}"), HELLO) as session:
                event = await ask(session, named, f"q{number}.z.example")
        finally:
            if ending == "killed":
                process.kill()
                process.wait()
            else:
                assert end(process) == 0
        data = event["data"]
        assert (event["source"], data["server"], data["zone"]) == ("ns1", "ns1", "z.example")
        assert (data["rcode"], data["response_flags"]) == ("NXDOMAIN", "aa rd")
        assert data["duration_ms"] >= 0


def test_both_ways_to_the_same_queries_are_refused(path: Path, tmp_path: Path) -> None:
    both = ["--dnstap", str(path), "--query-log", str(path.with_suffix(".log"))]
    done = run("source", "bind9", *both, "--token", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "name one of them" in done.stderr
