"""The zones part against real name servers."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.runtime.settings.source_settings import ZonesSettings
from solowire.sources.bind9.zones.observed_change import ObservedChange
from solowire.sources.bind9.zones.update_authors import UpdateAuthor, UpdateAuthors
from solowire.sources.bind9.zones.zones_part import ZonesPart
from tests.support.bind_servers import KEY, ZONE, BindServer
from tests.support.recorded_outlet import RecordedOutlet
from tests.support.system import free_ports
from tests.support.zones_harness import ZonesHarness, shorten, watch_zones


async def update(server: BindServer, *commands: str, **options: Any) -> None:
    await asyncio.to_thread(server.update, *commands, **options)


async def test_each_changed_rrset_is_told_once_with_before_and_after(tmp_path: Path) -> None:
    """Sets of several records, TTLs, names with escapes, wildcards, unknown types, the apex and the SOA."""
    port = free_ports(1)
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}, notify=[port]) as server:
        settings: dict[str, Any] = {"notify": f"127.0.0.1#{port}", "poll_interval_s": 600}
        async with watch_zones(server, tmp_path / "state", **settings) as zones:
            await update(server, "add a.z.example 60 A 192.0.2.7", "add a.z.example 60 A 192.0.2.8")
            await update(server, "delete a.z.example A 192.0.2.7", "add a.z.example 60 A 192.0.2.9")
            await update(server, "add a.z.example 90 A 192.0.2.9")
            await update(server, "delete www.z.example A", "add www.z.example 5 CNAME A.Z.example.")
            await update(server, "add *.z.example 5 TYPE65400 \\# 3 010203")
            await update(server, 'add a\\.b\\@\\000.z.example 5 TXT "x\\"y" "\\200\\;" ""')
            await update(server, "add z.example 300 CAA 0 issue ca.example", "add z.example 300 MX 10 ns.z.example.")
            await update(server, "add z.example 300 SOA ns.z.example. admin.z.example. 9 7200 600 86400 60")
            await update(server, "delete a.z.example")
            await zones.reach(10)
            assert zones.changes() == [
                (2, "created", "a.z.example", "A", None, (60, ("192.0.2.7", "192.0.2.8"))),
                (3, "updated", "a.z.example", "A", (60, ("192.0.2.7", "192.0.2.8")), (60, ("192.0.2.8", "192.0.2.9"))),
                (4, "updated", "a.z.example", "A", (60, ("192.0.2.8", "192.0.2.9")), (90, ("192.0.2.8", "192.0.2.9"))),
                (5, "deleted", "www.z.example", "A", (300, ("192.0.2.1",)), None),
                (5, "created", "www.z.example", "CNAME", None, (5, ("A.Z.example.",))),
                (6, "created", "*.z.example", "TYPE65400", None, (5, ("\\# 3 010203",))),
                (7, "created", "a\\.b\\@\\000.z.example", "TXT", None, (5, ('"x\\"y" "\\200;" ""',))),
                (8, "created", "z.example", "MX", None, (300, ("10 ns.z.example.",))),
                (8, "created", "z.example", "CAA", None, (300, ('0 issue "ca.example"',))),
                (10, "deleted", "a.z.example", "A", (90, ("192.0.2.8", "192.0.2.9")), None),
            ]
            summaries = zones.outlet.of_type("zone_updated")
            assert [(data["serial_before"], data["serial"]) for data in summaries] == [(n, n + 1) for n in range(1, 10)]
            assert summaries[3]["created"] == {"CNAME": 1}
            assert summaries[3]["deleted"] == {"A": 1}
            assert summaries[7]["changed"] == ["rname", "serial", "refresh"]
            assert summaries[7]["before"]["refresh"] == 3600
            assert {event["lane"] for event in zones.outlet.events} == {"changes"}
            assert len({event["id"] for event in zones.outlet.events}) == len(zones.outlet.events)


async def test_what_happened_while_it_was_down_is_told_once_when_it_is_back(tmp_path: Path) -> None:
    """A first start tells nothing; each later one tells the steps since the last."""
    outlet = RecordedOutlet()
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        for serial in (1, 4, 7):
            async with watch_zones(server, tmp_path / "state", outlet=outlet) as zones:
                if serial > 1:
                    await zones.reach(serial)
            for number in range(3):
                await update(server, f"add n{serial + number}.z.example 60 A 192.0.2.7")
    assert [shorten(event)[:3] for event in outlet.events if event["type"] == "record_created"] == [
        (number + 1, "created", f"n{number}.z.example") for number in range(1, 7)
    ]


@pytest.mark.parametrize("ratio", ["unlimited", "1%"])
async def test_edited_zone_files_and_whole_zones_are_told_as_differences(tmp_path: Path, ratio: str) -> None:
    """A reload with ixfr-from-differences, by IXFR, and by AXFR where the server sends the whole zone."""
    options = "ixfr-from-differences yes;"
    with BindServer(
        tmp_path / "ns", zones={"z.example": ZONE}, options=options, ratio=ratio, updates="none;"
    ) as server:
        async with watch_zones(server, tmp_path / "state") as zones:
            edited = ZONE.replace("hostmaster 1 ", "hostmaster 8 ").replace("192.0.2.1", "192.0.2.2")
            server.write_zone("z.example", edited + "new 5 TXT hello\n")
            server.rndc("reload", "z.example")
            await zones.reach(8)
            assert zones.changes() == [
                (8, "created", "new.z.example", "TXT", None, (5, ('"hello"',))),
                (8, "updated", "www.z.example", "A", (300, ("192.0.2.1",)), (300, ("192.0.2.2",))),
            ]
            [summary] = zones.outlet.of_type("zone_updated")
            assert summary["transfer"] == ("ixfr" if ratio == "unlimited" else "axfr")
            assert (summary["serial_before"], summary["serial"]) == (1, 8)


async def test_a_rollback_is_told_and_the_same_serials_again_are_no_duplicates(tmp_path: Path) -> None:
    """Serials that come a second time have other ids; those after them have the usual ones again."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        async with watch_zones(server, tmp_path / "state") as zones:
            expected: list[int] = []
            for _ in range(3):
                await update(server, "add a.z.example 60 A 192.0.2.7")
                expected.append(2)
                await zones.wait_until(lambda: _list_serials(zones) == expected, "told")
                server.stop()
                for journal in server.dir.glob("*.jnl"):
                    journal.unlink()
                server.write_zone("z.example", ZONE)
                server.start()
                expected.append(1)
                await zones.wait_until(lambda: _list_serials(zones) == expected, "rolled back")
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await update(server, "add b.z.example 60 A 192.0.2.7")
            await zones.reach(3)
            ids = [event["id"] for event in zones.outlet.events]
            assert len(set(ids)) == len(ids)
            assert [change[:3] for change in zones.changes()] == [
                (2, "created", "a.z.example"),
                (1, "deleted", "a.z.example"),
            ] * 3 + [(2, "created", "a.z.example"), (3, "created", "b.z.example")]
            rollbacks = [data for data in zones.outlet.of_type("zone_updated") if data.get("rollback")]
            assert [(data["serial_before"], data["serial"]) for data in rollbacks] == [(2, 1)] * 3


async def test_zones_that_are_added_and_removed_are_told_and_a_server_that_is_down_is_not(tmp_path: Path) -> None:
    """rndc addzone and delzone, also while the agent is down; a zone that comes again has events of its own."""
    outlet = RecordedOutlet()
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        settings: dict[str, Any] = {"lists_zones": True, "find_interval_s": 0.2}
        server.write_zone("new", ZONE)
        server.write_zone("other", ZONE)
        addzone = '{ type primary; file "%s.zone"; allow-update { any; }; };'
        async with watch_zones(server, tmp_path / "state", outlet=outlet, **settings) as zones:
            for number in (1, 2):
                server.rndc("addzone", "new.example", addzone % "new")
                await zones.wait_until(lambda: len(outlet.of_type("zone_created")) == number, "created")  # noqa: B023
                await update(server, "add a.new.example 60 A 192.0.2.7", zone="new.example")
                await zones.wait_until(lambda: len(outlet.of_type("zone_updated")) == number, "updated")  # noqa: B023
                server.rndc("delzone", "-clean", "new.example")
                await zones.wait_until(lambda: len(outlet.of_type("zone_deleted")) == number, "deleted")  # noqa: B023
                server.write_zone("new", ZONE)
            server.stop()
            await zones.wait_until(lambda: zones.status.status == "waiting", "it is down")
            assert "is named running" in str(zones.status.reason) or "statistics" in str(zones.status.reason)
            server.start()
            await zones.wait_until(lambda: zones.status.status == "running", "it is back")
        server.rndc("addzone", "other.example", addzone % "other")
        async with watch_zones(server, tmp_path / "state", outlet=outlet, **settings) as zones:
            await zones.wait_until(lambda: len(outlet.of_type("zone_created")) == 3, "created while it was down")
    told = [(event["type"], event["data"]["zone"]) for event in outlet.events]
    of_one = [("zone_created", "new.example"), ("record_created", "new.example"), ("zone_updated", "new.example")]
    assert told == [*of_one, ("zone_deleted", "new.example")] * 2 + [("zone_created", "other.example")]
    assert outlet.of_type("zone_created")[0]["record_count"] == 3
    assert len({event["id"] for event in outlet.events}) == len(told)


async def test_more_than_500_changes_are_told_in_pages(tmp_path: Path) -> None:
    """bulk_started, pages, bulk_completed and the summary; a huge set of records is split over pages, too."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        observed: list[ObservedChange] = []

        async def observe(change: ObservedChange) -> None:
            observed.append(change)

        async with watch_zones(server, tmp_path / "state", observers=[observe]) as zones:
            await update(server, *[f"add n{n}.z.example 60 A 192.0.2.1" for n in range(600)])
            await zones.reach(2)
            [completed] = zones.outlet.of_type("bulk_completed")
            assert (completed["total"], completed["processed"]) == (600, 600)
            pages = zones.outlet.of_type("record_changes")
            assert [page["page"] for page in pages] == list(range(1, pages[0]["pages"] + 1))
            names = [change["name"] for page in pages for change in page["changes"]]
            assert sorted(names) == sorted(f"n{n}.z.example" for n in range(600))
            assert len(observed) == 600
            zones.outlet.events.clear()
            await update(
                server, *[f'add big.z.example 60 TXT "{n:0200}"' for n in range(200)], "add a.z.example 1 A 192.0.2.1"
            )
            await zones.reach(3)
            assert [change[:3] for change in zones.changes()] == [(3, "created", "a.z.example")]
            pages = zones.outlet.of_type("record_changes")
            records = [text for page in pages for change in page["changes"] for text in change["after"]["records"]]
            assert records == [f'"{n:0200}"' for n in range(200)]
            assert [change["part"] for page in pages for change in page["changes"]] == list(range(1, len(pages) + 1))


async def test_the_update_logs_author_is_told(tmp_path: Path) -> None:
    """Client, key and the name that the settings have for it; also to those who observe changes."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        authors = UpdateAuthors({"deploy": "the pipeline"})
        authors.has_feed = True
        observed: list[ObservedChange] = []

        async def observe(change: ObservedChange) -> None:
            observed.append(change)

        async with watch_zones(server, tmp_path / "state", authors=authors, observers=[observe]) as zones:
            authors.note(
                zone="z.example", name="a.z.example", action="add", type="A", value="192.0.2.7",
                client="127.0.0.1", port=1, tsig_key="deploy", now=asyncio.get_running_loop().time(),
            )  # fmt: skip
            await update(server, "add a.z.example 60 A 192.0.2.7", key="deploy")
            await update(server, "add b.z.example 60 A 192.0.2.7")
            await zones.reach(3)
            first, second = zones.outlet.of_type("record_created")
            assert (first["client"], first["tsig_key"], first["actor"]) == ("127.0.0.1", "deploy", "the pipeline")
            assert not {"client", "tsig_key", "actor"} & set(second)
            deploy = UpdateAuthor(client="127.0.0.1", tsig_key="deploy", actor="the pipeline")
            assert [change.author for change in observed] == [deploy, None]
            assert [change.after for change in observed] == [["192.0.2.7"], ["192.0.2.7"]]


async def test_views_are_watched_each_with_its_key(tmp_path: Path, logged: Callable[[], set[str]]) -> None:
    """One name in two views is two zones, whose events name the view and have ids of their own.

    Where no views are named, that a zone is in several is said.
    """
    keys = "".join(f'key "{name}" {{ algorithm hmac-sha256; secret "{KEY}"; }};\n' for name in ("inside", "outside"))
    (tmp_path / "keys").write_text(keys)
    views = "".join(
        f'view "{name}" {{ match-clients {{ key {name}; }}; '
        f'zone "z.example" {{ type primary; file "{name}.zone"; }}; }};\n'
        for name in ("inside", "outside")
    )
    server = BindServer(tmp_path / "ns", more=views)
    server.write_zone("inside", ZONE)
    server.write_zone("outside", ZONE)
    with server:
        settings: dict[str, Any] = {
            "key_file": tmp_path / "keys",
            "views": {"inside": "inside", "outside": "outside"},
            "lists_zones": True,
        }
        async with watch_zones(server, tmp_path / "state", **settings) as zones:
            for view in ("inside", "outside"):
                await update(server, "add a.z.example 60 A 192.0.2.7", key=view)
                await zones.reach(2, view=view)
            created = [event for event in zones.outlet.events if event["type"] == "record_created"]
            assert [event["data"]["view"] for event in created] == ["inside", "outside"]
            assert created[0]["id"] != created[1]["id"]
        assert "zones_in_several_views" not in logged()
        one: dict[str, Any] = {"key_file": tmp_path / "keys", "key": "inside", "lists_zones": True}
        async with watch_zones(server, tmp_path / "one", **one):
            assert {"zones_in_several_views", "zones_held"} <= logged()


async def test_what_the_server_refuses_is_said_with_the_way_out(tmp_path: Path, logged: Callable[[], set[str]]) -> None:
    """Refused transfers, unknown keys, zones that are not loaded: the part waits, and goes on when it is mended."""
    (tmp_path / "keys").write_text(f"hmac-sha256:stranger:{KEY}\n")
    more = 'zone "bad.example" { type primary; file "missing.zone"; };'
    options = "allow-transfer { none; };"
    server = BindServer(tmp_path / "ns", zones={"z.example": ZONE}, options="", more=more)
    with server:
        conf = server.dir / "named.conf"
        text = conf.read_text()
        conf.write_text(text.replace("allow-transfer { any; };", options))
        server.rndc("reconfig")
        async with watch_zones(server, tmp_path / "state", running=False) as zones:
            assert "allow-transfer" in str(zones.status.reason)
            conf.write_text(text)
            server.rndc("reconfig")
            await zones.wait_until(lambda: zones.status.status == "running", "allowed")
            assert {"zone_unreadable", "zone_watched_again"} <= logged()
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await zones.reach(2)
        async with watch_zones(server, tmp_path / "2", running=False, key_file=tmp_path / "keys") as zones:
            assert "doesn't know the key" in str(zones.status.reason)
        async with watch_zones(server, tmp_path / "3", running=False, names=["bad.example"]) as zones:
            assert "SERVFAIL" in str(zones.status.reason)
        many = [f"n{number}.example" for number in range(25)]
        async with watch_zones(server, tmp_path / "5", running=False, names=many) as zones:
            await zones.wait_until(lambda: "zones_unreadable" in logged(), "all of them")
        async with watch_zones(server, tmp_path / "4", running=False, max_zone_records=2) as zones:
            assert "max_zone_records" in str(zones.status.reason)


async def test_what_named_itself_maintains_in_a_signed_zone_is_only_counted(tmp_path: Path) -> None:
    """Signatures and the like are no changes of their own; with the setting empty they are."""
    port = free_ports(1)
    keys = tmp_path / "ns" / "keys"
    keys.mkdir(parents=True)
    more = (
        'zone "z.example" { type primary; file "z.example.zone"; dnssec-policy default; inline-signing yes; '
        f'key-directory "{keys}"; }};'
    )
    server = BindServer(tmp_path / "ns", notify=[port], more=more)
    server.write_zone("z.example", ZONE)
    with server:
        async with watch_zones(server, tmp_path / "state", notify=f"127.0.0.1#{port}") as zones:
            await zones.wait_until(lambda: "RRSIG" in server.dig("z.example", "SOA", "+dnssec"), "signed")
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await zones.wait_until(lambda: bool(zones.changes()), "told")
            assert [change[1:] for change in zones.changes()] == [
                ("created", "a.z.example", "A", None, (60, ("192.0.2.7",)))
            ]
            assert any(data.get("left_out", {}).get("RRSIG") for data in zones.outlet.of_type("zone_updated"))
        async with watch_zones(server, tmp_path / "all", left_out_types=[]) as zones:
            await update(server, "add b.z.example 60 A 192.0.2.7")
            await zones.wait_until(lambda: {"A", "RRSIG"} <= {change[3] for change in zones.changes()}, "told")


async def test_the_root_and_its_zones_are_zones_as_others(tmp_path: Path) -> None:
    """The zone `.` and one with odd names."""
    odd = "a\\.b\\064.example"
    with BindServer(tmp_path / "ns", options="check-names primary ignore;") as server:
        server.more = f'zone "." {{ type primary; file "root"; }}; zone "{odd}" {{ type primary; file "odd"; }};'
        for name in ("root", "odd"):
            (server.dir / name).write_text(ZONE)
        server.write_conf()
        server.rndc("reconfig")
        async with watch_zones(server, tmp_path / "state", names=[".", odd]) as zones:
            await update(server, "add com 60 TXT x", zone=".")
            await zones.reach(2, zone=".")
            await update(server, f"add w.{odd} 60 TXT x", zone=odd)
            await zones.wait_until(lambda: len(zones.changes()) == 2, "told")
            assert [change[2] for change in zones.changes()] == ["com", "w.a\\.b\\@.example"]
            for event in zones.outlet.events:
                CATALOG.validate_data(CATALOG[event["type"]], event["data"])


async def test_a_stop_does_not_wait_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    """What could not be told is told at the next start."""

    class AwayOutlet(RecordedOutlet):
        async def drain_changes(self) -> None:
            await asyncio.Event().wait()

    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        async with watch_zones(server, tmp_path / "state"):
            pass
        away = AwayOutlet()
        async with asyncio.timeout(60), watch_zones(server, tmp_path / "state", outlet=away) as zones:
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await zones.reach(2)
        async with watch_zones(server, tmp_path / "state") as zones:
            await zones.reach(2)
            assert [event["id"] for event in zones.outlet.events] == [event["id"] for event in away.events]


async def test_a_file_that_is_damaged_while_it_is_used_is_set_aside(tmp_path: Path) -> None:
    """The part fails once, and its next run begins anew."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        async with watch_zones(server, tmp_path / "state"):
            pass
        [path] = (tmp_path / "state").glob("*.sqlite")
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        with pytest.raises(sqlite3.DatabaseError):
            async with watch_zones(server, tmp_path / "state"):
                pass
        async with watch_zones(server, tmp_path / "state") as zones:
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await zones.reach(2)
        assert path.with_suffix(".damaged").exists()


async def test_a_notify_that_is_lost_is_made_up_for_by_the_poll(tmp_path: Path) -> None:
    """Nobody notifies here."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        async with watch_zones(server, tmp_path / "state", notify=f"127.0.0.1#{free_ports(1)}") as zones:
            await update(server, "add a.z.example 60 A 192.0.2.7")
            await zones.reach(2)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"address": "ns1.example"}, "source.zones.address"),
        ({"names": []}, "--zone-names"),
        ({"names": ["a..b"]}, "no zone's name"),
        ({"left_out_types": ["RRSIGG"]}, "no record type"),
        ({"key": "k"}, "source.zones.key_file"),
        ({"notify": "x"}, "source.zones.notify"),
        ({"notify_from": ["x"]}, "source.zones.notify_from"),
        ({"views": {"inside": "k"}}, "source.zones.views.inside"),
    ],
)
def test_settings_that_cannot_be_are_said_so(tmp_path: Path, wrong: dict[str, Any], fault: str) -> None:
    """One line that names the setting."""
    settings = ZonesSettings(**({"address": "127.0.0.1", "names": ["z.example"]} | wrong))
    with pytest.raises(ConfigError, match=re.escape(fault)):
        ZonesPart(settings, RecordedOutlet(), tmp_path, channel=None, authors=UpdateAuthors())


async def test_a_second_agent_with_the_same_state_is_refused(tmp_path: Path) -> None:
    """Two that would write one file: the second ends with one line."""
    with BindServer(tmp_path / "ns", zones={"z.example": ZONE}) as server:
        async with watch_zones(server, tmp_path / "state"):
            with pytest.raises(ConfigError, match="another agent"):
                async with watch_zones(server, tmp_path / "state"):
                    pass


async def test_a_primarys_and_a_secondarys_agent_tell_the_same_events(tmp_path: Path) -> None:
    """All ids of single steps, summaries and pages are equal, whoever tells them."""
    ports = free_ports(2)
    secondary_port = free_ports(3)
    with BindServer(tmp_path / "one", zones={"z.example": ZONE}, notify=[ports, secondary_port]) as primary:
        more = f'zone "z.example" {{ type secondary; primaries {{ 127.0.0.1 port {primary.port}; }}; file "z.db"; }};'
        second = BindServer(tmp_path / "two", notify=[ports + 1], more=more, options="minimal-responses yes;")
        second.port = secondary_port
        with second:
            async with (
                watch_zones(primary, tmp_path / "state", notify=f"127.0.0.1#{ports}") as here,
                watch_zones(
                    second, tmp_path / "state", notify=f"127.0.0.1#{ports + 1}", outlet=RecordedOutlet("ns2")
                ) as there,
            ):
                await update(primary, *[c for n in range(50) for c in (f"add n{n}.z.example 60 A 192.0.2.7", "send")])
                await update(primary, *[f"add m{n}.z.example 60 A 192.0.2.7" for n in range(1000)])
                served = primary.serial("z.example")
                assert served is not None
                for agent in (here, there):
                    await agent.reach(served)
                ids = [_list_ids(agent) for agent in (here, there)]
                assert ids[0] == ids[1]
                assert len(ids[0]) > 100


def _list_serials(agent: ZonesHarness) -> list[int]:
    return [data["serial"] for data in agent.outlet.of_type("zone_updated")]


def _list_ids(agent: ZonesHarness) -> list[str]:
    return [event["id"] for event in agent.outlet.events if event["type"] != "bulk_progress"]
