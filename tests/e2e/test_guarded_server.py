"""One `solowire source bind9` with all that watches a server: what a real named does is seen by a user."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guarded_named import SECRET, GuardedNamed
from tests.support.system import Session, System, end, run

Events = list[dict[str, Any]]

SETTINGS = """
[source]
server = "ns1"
[source.server_log]
files = ["{dir}/all.log"]
[source.configuration]
named_conf = "{dir}/named.conf"
[source.statistics]
url = "{statistics}"
[source.queries]
query_log = "{dir}/all.log"
[source.security]
rules = "{dir}/rules.toml"
[source.zones]
address = "127.0.0.1#{port}"
names = ["z.example"]
key_file = "{dir}/rndc.key"
poll_interval_s = 0.5
[source.drift]
pipelines = ["key:deploy"]
"""

RULES = """
[[rule]]
name = "malware"
kind = "policy_hits"
threshold = 3
window_s = 60
event = "threat_detected"

[[rule]]
name = "flood"
kind = "query_flood"
threshold = 50
window_s = 10

[[rule]]
name = "axfr"
kind = "refusals"
refused = ["transfer"]
threshold = 1
window_s = 60
"""


@pytest.fixture
def named(tmp_path: Path) -> Iterator[GuardedNamed]:
    with GuardedNamed(tmp_path) as named:
        yield named


@pytest.fixture
def agent(system: System, named: GuardedNamed) -> Iterator[subprocess.Popen[str]]:
    conf = named.dir / "agent.toml"
    conf.write_text(SETTINGS.format(dir=named.dir, statistics=named.statistics_url, port=named.port))
    (named.dir / "rules.toml").write_text(RULES)
    process = system.spawn("source", "bind9", "--config", str(conf), "--url", system.url)
    yield process
    if process.poll() is None:
        assert end(process) == 0


def test_drift_is_refused_where_nobody_can_tell_who_makes_changes(tmp_path: Path) -> None:
    """Without the update log each change, or none, would be drift."""
    conf = tmp_path / "agent.toml"
    conf.write_text(
        '[source.zones]\naddress = "127.0.0.1"\nnames = ["z"]\n[source.drift]\npipelines = ["key:deploy"]\n'
    )
    done = run("source", "bind9", "--config", str(conf), "--token", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--log" in done.stderr


async def hear_until(session: Session, found: Events, condition: Callable[[Events], bool]) -> None:
    """Collects events until the condition is true of all."""
    while not condition(found):
        found += (await session.hear("events"))["events"]


def of(found: Events, type: str) -> list[dict[str, Any]]:
    return [event["data"] for event in found if event["type"] == type]


def has_part(found: Events, *parts: str) -> bool:
    running = {data["part"] for data in of(found, "source_status") if data["status"] == "running"}
    return set(parts) <= running


async def test_what_a_server_does_is_seen(system: System, named: GuardedNamed, agent: subprocess.Popen[str]) -> None:
    """Policy hits and their threat, a refused transfer, a flood, a reload and its change, drift, figures, a stop."""
    hello = {
        "subscriptions": ["dns.*", "security.*", "system.*"],
        "filter": {"server": ["ns1"]},
    }
    found: Events = []
    async with system.session(system.token("guard"), hello) as session:
        parts = ("query_log", "server_log", "configuration", "statistics", "zones", "security", "drift")
        await hear_until(session, found, lambda found: has_part(found, *parts))

        for _ in range(3):
            await asyncio.to_thread(named.dig, "evil.example")
        await asyncio.to_thread(named.dig, "z.example", "AXFR")
        for number in range(60):
            await asyncio.to_thread(named.dig, f"n{number}.z.example")
        await hear_until(
            session,
            found,
            lambda found: (
                len(of(found, "rpz_hit")) >= 3
                and bool(of(found, "threat_detected"))
                and {"axfr", "flood"} <= {data["category"] for data in of(found, "security_alert")}
            ),
        )

        named.conf.write_text(named.make_conf(f'key "deploy" {{ algorithm hmac-sha256; secret "{SECRET}"; }};\n'))
        await asyncio.to_thread(named.rndc, "reconfig")
        await hear_until(session, found, lambda found: bool(of(found, "config_change")))
        assert of(found, "bind_reload")[-1]["success"]
        assert "deploy" in of(found, "config_change")[0]["diff"]

        await asyncio.to_thread(named.update, "update add new.z.example 60 A 192.0.2.3")
        await hear_until(
            session, found, lambda found: "drift" in {data["category"] for data in of(found, "security_alert")}
        )
        drift = next(data for data in of(found, "security_alert") if data["category"] == "drift")
        assert drift["client_ip"] == "127.0.0.1"
        assert drift["details"]["after"] == ["192.0.2.3"]

        await hear_until(session, found, lambda found: bool(of(found, "dns_query_stats")))
        await asyncio.to_thread(named.stop)
        await hear_until(session, found, lambda found: of(found, "bind_status")[-1]["status"] == "stopped")
    [threat] = of(found, "threat_detected")
    assert (threat["category"], threat["count"], threat["server"]) == ("malware", 3, "ns1")
    assert [data["category"] for data in of(found, "security_alert")].count("flood") == 1
    assert SECRET not in json.dumps(found)
