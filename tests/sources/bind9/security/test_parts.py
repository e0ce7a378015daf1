"""The parts that publish findings: rules and drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.security import drift_part
from solowire.sources.bind9.security.drift_part import ALERTS, DriftPart
from solowire.sources.bind9.security.pipelines import Pipelines
from solowire.sources.bind9.security.security_part import SecurityPart
from solowire.sources.bind9.security.security_rule import SecurityRule
from solowire.sources.bind9.zones.observed_change import ObservedChange
from solowire.sources.bind9.zones.update_authors import UpdateAuthor
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

KEY = UpdateAuthor(client="192.0.2.7", tsig_key="deploy")


class Part(Protocol):
    async def run(self, status: PartStatus, stop: asyncio.Event) -> None: ...


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[PartStatus]:
    status, stop = PartStatus("x"), asyncio.Event()
    task = asyncio.create_task(part.run(status, stop))
    try:
        yield status
    finally:
        stop.set()
        await task


async def test_a_finding_is_published_at_once_as_critical() -> None:
    """Under ids of its own, and nothing is lost when the part ends."""
    outlet = RecordedOutlet()
    rule = SecurityRule(
        name="flood", kind="query_flood", threshold=3, window_s=10, quiet_s=0.1, event="threat_detected"
    )
    part = SecurityPart([rule], outlet)
    async with running(part) as status:
        for _ in range(5):
            part.observe_query(ObservedQuery(1_796_000_000.0, "192.0.2.1", "www.example", "A"))
        await until(lambda: len(outlet.events) == 2)
        assert status.status == "running"
    began, ended = outlet.events
    assert (began["type"], began["priority"], began["lane"]) == ("threat_detected", "critical", "changes")
    assert began["data"]["client_ip"] == "192.0.2.1"
    assert (began["data"]["action"], ended["data"]["action"]) == ("began", "ended")
    assert began["correlation_id"] == ended["correlation_id"]
    assert began["id"] != ended["id"]


def make_change(number: int = 1, author: UpdateAuthor | None = KEY) -> ObservedChange:
    return ObservedChange(
        event_id=f"e{number}",
        zone="z.example",
        view=None,
        serial_before=1,
        serial=2,
        name=f"n{number}.z.example",
        type="A",
        before=["192.0.2.1"],
        after=["192.0.2.2"],
        author=author,
    )


def make_drift(outlet: RecordedOutlet, *pipelines: str, allows_unknown: bool = False) -> DriftPart:
    return DriftPart(Pipelines(pipelines), outlet, allows_unknown=allows_unknown)


@pytest.mark.parametrize(
    ("pipeline", "author", "is_drift"),
    [
        ("key:deploy", KEY, False),
        ("key:Deploy.", KEY, False),
        ("key:other", KEY, True),
        ("client:192.0.2.0/24", KEY, False),
        ("client:198.51.100.1", KEY, True),
        ("actor:ci", UpdateAuthor(client="192.0.2.7", actor="ci"), False),
        ("actor:ci", UpdateAuthor(client="192.0.2.7"), True),
        ("key:deploy", None, True),
    ],
)
async def test_who_is_a_pipeline(pipeline: str, author: UpdateAuthor | None, is_drift: bool) -> None:
    """By key, address or name; nobody known is drift."""
    outlet = RecordedOutlet()
    await make_drift(outlet, pipeline).observe_change(make_change(author=author))
    assert len(outlet.events) == is_drift


async def test_the_change_is_the_evidence() -> None:
    """At once, critical, and under an id that is the same when the change is told again."""
    outlet = RecordedOutlet()
    part = make_drift(outlet, "key:other")
    await part.observe_change(make_change())
    await make_drift(outlet, "key:other").observe_change(make_change())
    first, second = outlet.events
    assert first["id"] == second["id"]
    assert (first["type"], first["priority"]) == ("security_alert", "critical")
    data = first["data"]
    CATALOG.validate_data(CATALOG["security_alert"], data)
    assert (data["threat_type"], data["zone"], data["client_ip"]) == ("drift", "z.example", "192.0.2.7")
    assert data["details"]["before"] == ["192.0.2.1"]
    assert data["details"]["after"] == ["192.0.2.2"]
    assert data["details"]["tsig_key"] == "deploy"
    assert "deploy" not in data["message"]


async def test_unknown_authors_may_be_allowed() -> None:
    """By a setting, where no update log is read."""
    outlet = RecordedOutlet()
    await make_drift(outlet, "key:other", allows_unknown=True).observe_change(make_change(author=None))
    assert outlet.events == []


async def test_one_author_of_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has some alerts, and one more at the end that counts them all."""
    monkeypatch.setattr(drift_part, "QUIET_S", 0.2)
    outlet = RecordedOutlet()
    part = make_drift(outlet, "key:other")
    async with running(part):
        for number in range(100):
            await part.observe_change(make_change(number))
        await until(lambda: len(outlet.events) == ALERTS + 1)
    data = outlet.events[-1]["data"]
    CATALOG.validate_data(CATALOG["security_alert"], data)
    assert (data["action"], data["count"]) == ("ended", 100)


@pytest.mark.parametrize("entry", ["deploy", "key:", "client:x", "host:a", "client:192.0.2.0/99"])
def test_what_is_no_pipeline_is_refused_by_name(entry: str) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match=r"source\.drift\.pipelines"):
        Pipelines([entry])
