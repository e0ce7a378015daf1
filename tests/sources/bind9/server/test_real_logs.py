"""The logs of a real `named`: policies, refusals, updates, reloads, start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from solowire.sources.bind9.security.refusal_message import Refusal
from solowire.sources.bind9.security.rpz_message import PolicyHit
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.reload_log import ReloadLog
from solowire.sources.bind9.server.server_lines import ServerLines
from solowire.sources.bind9.zones.update_authors import UpdateAuthor, UpdateAuthors, digest_value
from tests.support.guarded_named import GuardedNamed
from tests.support.kept_events import KeptEvents
from tests.support.query_log_agent import follow_log
from tests.support.query_logs import until


class Told:
    def __init__(self) -> None:
        self.hits: list[PolicyHit] = []
        self.refusals: list[Refusal] = []
        self.outcomes: list[bool] = []

    def observe_hit(self, hit: PolicyHit, at: float) -> None:
        self.hits.append(hit)

    def observe_refusal(self, refusal: Refusal, at: float) -> None:
        self.refusals.append(refusal)

    def observe_outcome(self, success: bool, errors: Sequence[str]) -> None:
        self.outcomes.append(success)


@asynccontextmanager
async def following(log: Path, told: Told, authors: UpdateAuthors | None = None) -> AsyncIterator[KeptEvents]:
    """Reads a log from its start, in the block."""
    publisher, stop = KeptEvents(), asyncio.Event()
    lines = ServerLines(ReloadLog(), BindState("ns1"), authors=authors, security=[told], outcomes=[told])
    agent = asyncio.create_task(follow_log(log, lines, publisher, from_start=True, stop=stop))
    try:
        yield publisher
    finally:
        stop.set()
        await agent


@pytest.mark.parametrize("log", ["all.log", "bare.log"])
async def test_policies_refusals_and_updates(tmp_path: Path, log: str) -> None:
    """Each hit is one event, and each refusal and update is told, with all that a channel prints and with nothing."""
    told, authors = Told(), UpdateAuthors()
    authors.has_feed = True
    names = ("evil", "nodata", "a.wild", "drop", "tcp", "pass", "local", "EVIL")

    def ask(named: GuardedNamed) -> None:
        for name in names:
            named.dig(f"{name}.example", "A", "+ignore")
        named.dig("bad.z.example")
        named.dig("z.example", "AXFR")
        named.update("update add new.z.example 60 TXT x", is_signed=False)
        named.update('update add new.z.example 60 TXT "a b"')

    with GuardedNamed(tmp_path) as named:
        async with following(tmp_path / log, told, authors) as publisher:
            await asyncio.to_thread(ask, named)
            await until(lambda: len(told.refusals) >= 2 and len(publisher.of_type("rpz_hit")) >= 9)
            changed = {("new.z.example", "TXT"): frozenset({digest_value("TXT", '"a b"') or b""})}
            author = await authors.find_author("z.example", None, changed, until=asyncio.get_running_loop().time() + 30)
    assert author == UpdateAuthor(client="127.0.0.1", tsig_key="rndc-key")
    hits = publisher.of_type("rpz_hit")
    assert [(hit["query_domain"], hit["action"], hit["trigger"], hit["rule"]) for hit in hits] == [
        ("evil.example", "NXDOMAIN", "QNAME", "evil.example"),
        ("nodata.example", "NODATA", "QNAME", "nodata.example"),
        ("a.wild.example", "NXDOMAIN", "QNAME", "a.wild.example"),
        ("drop.example", "DROP", "QNAME", "drop.example"),
        ("tcp.example", "TCP-ONLY", "QNAME", "tcp.example"),
        ("pass.example", "PASSTHRU", "QNAME", "pass.example"),
        ("local.example", "Local-Data", "QNAME", "local.example"),
        ("EVIL.example", "NXDOMAIN", "QNAME", "EVIL.example"),
        ("bad.z.example", "NXDOMAIN", "IP", "32.66.2.0.192.rpz-ip"),
    ]
    assert {(hit["zone"], hit["client_ip"], hit["server"]) for hit in hits} == {("rpz.malware", "127.0.0.1", "ns1")}
    assert [(refusal.what, refusal.name) for refusal in told.refusals] == [
        ("transfer", "z.example"),
        ("update", "z.example"),
    ]


@pytest.mark.parametrize("log", ["all.log", "bare.log"])
async def test_reloads_and_status(tmp_path: Path, log: str) -> None:
    """A good reload, a refused one with its error lines, a zone that is missing after one, a stop and a start."""
    told = Told()

    def work(named: GuardedNamed) -> None:
        assert named.rndc("reconfig").returncode == 0
        named.conf.write_text(named.make_conf("nonsense 3;\n"))
        assert named.rndc("reload").returncode != 0
        named.conf.write_text(named.make_conf('zone "gone.example" { type primary; file "gone.zone"; };\n'))
        named.rndc("reload")
        named.conf.write_text(named.make_conf())
        named.rndc("reload")
        (named.dir / "rpz.zone").write_text(f"{(named.dir / 'rpz.zone').read_text()}x A 192.0.2\n")
        named.rndc("reload", "rpz.malware")
        (named.dir / "rpz.zone").write_text((named.dir / "rpz.zone").read_text().replace("x A 192.0.2\n", ""))
        named.rndc("reload", "rpz.malware")
        named.stop()
        named.start()

    with GuardedNamed(tmp_path) as named:
        async with following(tmp_path / log, told) as publisher:
            await asyncio.to_thread(work, named)
            await until(lambda: [data["status"] for data in publisher.of_type("bind_status")].count("running") == 2)
    reloads = publisher.of_type("bind_reload")
    assert [(data["success"], data.get("zone")) for data in reloads] == [
        (True, None),
        (False, None),
        (True, None),
        (False, "gone.example"),
        (True, None),
        (False, "rpz.malware"),
        (True, "rpz.malware"),
    ]
    assert [data.get("actor") for data in reloads[:2]] == ["rndc reconfig", "rndc reload"]
    assert "nonsense" in reloads[1]["error"]
    assert "file not found" in reloads[3]["error"]
    assert "rpz.zone:12" in reloads[5]["error"]
    assert told.outcomes == [True, False, True, True]
    assert [data["status"] for data in publisher.of_type("bind_status")] == ["running", "stopped", "running"]
