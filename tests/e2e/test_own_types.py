"""A deployment's own event types, through all processes: judged, filtered and redacted as others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from solowire import Client, Publisher, PublishRefused
from tests.support.system import READY_SECONDS, System, run, running

TYPES = """
[types.deploy_finished]
category = "deploy"
summary = "A deployment has ended."
permission = "custom.read"
attributes = ["service", "zone"]
sensitive = {token = "sensitive.client_ip"}
[types.deploy_finished.schema]
type = "object"
required = ["service"]
additionalProperties = false
properties = {service = {type = "string"}, zone = {type = "string"}, token = {type = "string"}}
[types.deploy_started]
category = "deploy"
permission = "custom.read"
schema = {type = "object"}
"""
LOAD = """
[types.load_measured]
category = "load"
delivery = "telemetry"
schema = {type = "object", properties = {node = {type = "string"}}}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with a catalogue of its own, also named where settings name event types."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "types.toml").write_text(TYPES + LOAD)
    settings = {"CATALOG": directory / "types.toml", "SHARD__AGGREGATION__TYPE_EVENTS_PER_S": '{"load_measured": 50}'}
    with running(directory / "data", shards=1, settings=settings) as system:
        yield system


async def test_own_events_reach_whoever_may_see_them_as_they_may(own: System) -> None:
    """Filter, scope and redaction hold for own types; `/v1/catalog` has them with their schema."""
    async with own.http() as http:
        listed = {t["name"]: t for t in (await http.get("/v1/catalog")).json()["types"]}
    assert listed["deploy_finished"]["schema"]["required"] == ["service"]
    assert listed["deploy_finished"]["attributes"][1] == {
        "name": "zone",
        "fields": ["zone"],
        "hierarchical": True,
        "indexed": True,
    }
    wide = {"subscriptions": ["deploy.*"], "filter": {"service": ["web"]}}
    async with (
        own.session(own.token("ann", "operator"), wide) as operator,
        own.session(own.token("bob", "viewer", scopes={"zones": ["example.org"]}), {"subscriptions": ["*"]}) as viewer,
    ):
        assert operator.welcome["subscriptions"] == ["deploy_finished", "deploy_started"]
        for service, zone in (("dns", "a.example.org"), ("web", "example.com"), ("web", "b.example.org")):
            await own.publish({"type": "deploy_finished", "data": {"service": service, "zone": zone, "token": "t"}})
        seen = [e["data"] for e in await operator.events(2)]
        assert seen == [
            {"service": "web", "zone": "example.com", "token": "t"},
            {"service": "web", "zone": "b.example.org", "token": "t"},
        ]
        hidden = [e["data"] for e in await viewer.events(2)]
        assert hidden == [{"service": "dns", "zone": "a.example.org"}, {"service": "web", "zone": "b.example.org"}]


async def test_data_that_does_not_fit_an_own_schema_is_refused_with_its_path(own: System) -> None:
    """All faults of the request are named, and nothing of it is published."""
    async with own.http(own.token("agent", "publisher")) as http:
        answer = await http.post(
            "/v1/events",
            json=[
                {"type": "deploy_finished", "data": {"service": 7}},
                {"type": "deploy_finished", "data": {"servce": "web"}},
                {"type": "deploy_finishd", "data": {}},
            ],
        )
    assert answer.status_code == 400
    faults = answer.json()["errors"]
    assert [fault["path"] for fault in faults] == ["$.data.service", "$.data", "$.type"]
    assert '7 is not of type "string"' in faults[0]["message"]
    assert "deploy_finished" in faults[2]["hint"]


async def test_the_sdk_speaks_of_own_types(own: System) -> None:
    """One type can be taken out of an own category, and stays out; nothing is warned of that the server knows."""
    async with Client(own.url, own.token("carl", "operator"), subscriptions=["deploy.*"], strict=True) as client:
        await client.unsubscribe(["deploy_started"])
        assert client.subscriptions == ["deploy_finished"]
        await client.subscribe(["deploy_started"], filter={"service": ["web"]})
        await client.unsubscribe(["deploy_started"])
        assert client.subscriptions == ["deploy_finished"]
        connections = client.connections
        os.kill(own.pid_of("shard", "--index", "0"), signal.SIGKILL)
        async with asyncio.timeout(READY_SECONDS):
            while client.connections == connections:
                await asyncio.sleep(0.05)
        assert client.subscriptions == ["deploy_finished"]  # as it came back
    async with Publisher(own.url, own.token("agent", "publisher")) as publisher:
        with pytest.raises(PublishRefused):
            await publisher.publish_and_wait({"type": "deploy_finished", "data": {"service": 1}})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "No such file"),
        ("types = ", "it is not valid TOML"),
        (TYPES.replace("types.deploy_finished", "types.stats"), "types.stats: old frontends take it"),
        (TYPES.replace('"deploy"', '"deploy"\ndelivry = "state"'), "did you mean 'delivery'?"),
    ],
)
def test_a_wrong_file_stops_the_start_with_one_line(text: str | None, fault: str, tmp_path: Path) -> None:
    """Before anything starts, with exit status 2."""
    file = tmp_path / "types.toml"
    if text is not None:
        file.write_text(text)
    ended = run("up", "--data-dir", str(tmp_path / "d"), cwd=tmp_path, settings={"CATALOG": file, "PORT": 0})
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert f"catalog {file}" in ended.stderr
    assert fault in ended.stderr
    assert not (tmp_path / "d" / "journal.sqlite3").exists()
