"""The held zones on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import dns.name
import dns.rdata
import pytest

from solowire.errors import ConfigError
from solowire.sources.bind9.zones.zone_identity import ZoneEra, ZoneName
from solowire.sources.bind9.zones.zone_record import RRsetKey, ZoneRecord, make_record
from solowire.sources.bind9.zones.zone_store import HeldZone, ZoneStore

Z = ZoneName("z.example")


def record(name: str, type: str, value: str, ttl: int = 60) -> ZoneRecord:
    return make_record(dns.name.from_text(name), dns.rdata.from_text("IN", type, value), ttl)


SOA = record("z.example", "SOA", "ns. h. 1 2 3 4 5")


def hold(store: ZoneStore, *records: ZoneRecord, name: ZoneName = Z) -> HeldZone:
    """A zone with these records."""
    [zone] = store.add_zones([name], is_new=False)
    content = store.begin_content()
    store.add_records(content, records)
    return store.replace_content(zone, content, SOA, None)


def test_what_is_held_is_there_again(tmp_path: Path) -> None:
    """Zones with their eras and records, after the process has ended."""
    store = ZoneStore(tmp_path, "127.0.0.1#53")
    zone = hold(store, record("a.z.example", "CNAME", "B.z.example."))
    added = record("a.z.example", "CNAME", "C.z.example.", 5)
    era = ZoneEra("mark", 7, 1.5)
    zone = store.save_steps(zone, {added.key: {added.data: added}}, SOA, era)
    store.close()
    store = ZoneStore(tmp_path, "127.0.0.1#53")
    assert store.list_zones() == [zone]
    assert zone.content is not None
    assert store.read_rrsets(zone.content, [added.key]) == {added.key: {added.data: added}}
    store.close()


def test_whole_zones_are_compared_as_sets_of_records(tmp_path: Path) -> None:
    """Created, updated and deleted sets in canonical order, in pages; case in names is no change."""
    store = ZoneStore(tmp_path, "x")
    same = record("s.z.example", "CNAME", "T.z.example.")
    old = [record("b.z.example", "A", f"192.0.2.{n}") for n in (1, 2)]
    gone = record("c.z.example", "TXT", "x")
    zone = hold(store, same, *old, gone)
    content = store.begin_content()
    new = [old[0]._replace(ttl=9), old[1]._replace(ttl=9)]
    fresh = record("a.z.example", "A", "192.0.2.1")
    store.add_records(content, [record("S.z.example", "CNAME", "t.Z.example."), *new, fresh])
    assert zone.content is not None
    tally = store.compare_content(zone.content, content, frozenset({"TXT"}))
    assert (dict(tally.created), dict(tally.updated), dict(tally.deleted)) == ({"A": 1}, {"A": 1}, {})
    assert (dict(tally.left_out), tally.total) == ({"TXT": 1}, 2)
    changes = store.read_changes(zone.content, content, None, 2)
    assert [(change.key.owner, change.action) for change in changes] == [
        (fresh.owner, "created"),
        (old[0].owner, "updated"),
    ]
    assert (changes[1].before, changes[1].after) == (tuple(old), tuple(new))
    [last] = store.read_changes(zone.content, content, changes[-1].key, 2)
    assert (last.key, last.action) == (gone.key, "deleted")
    assert store.read_changes(zone.content, content, last.key, 2) == []
    store.close()


def test_what_was_half_loaded_is_removed_and_what_is_held_is_not(tmp_path: Path) -> None:
    """As after a kill in the middle of a transfer."""
    store = ZoneStore(tmp_path, "x")
    first = record("a.z.example", "A", "192.0.2.1")
    zone = hold(store, first)
    half = store.begin_content()
    store.add_records(half, [first])
    store.close()
    store = ZoneStore(tmp_path, "x")
    store.remove_leftovers()
    assert zone.content is not None
    assert (store.count_records(zone.content), store.count_records(half)) == (1, 0)
    store.close()


def test_a_zone_that_comes_again_has_the_era_of_its_end(tmp_path: Path) -> None:
    """What is gone has no records; what comes again is new."""
    store = ZoneStore(tmp_path, "x")
    first = record("a.z.example", "A", "192.0.2.1")
    zone = hold(store, first)
    era = ZoneEra("mark", 1, 1.0)
    store.mark_gone(zone, era)
    [gone] = store.list_zones()
    assert (gone.is_gone, gone.content, gone.era) == (True, None, era)
    [again] = store.add_zones([Z], is_new=True)
    assert (again.is_gone, again.is_new, again.era, again.number) == (False, True, era, zone.number)
    assert not store.mark_told(again).is_new
    store.remove_zone(again)
    assert store.list_zones() == []
    store.close()


def test_a_file_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    """Held by another, of a newer version, in a directory that is none."""
    store = ZoneStore(tmp_path, "x")
    with pytest.raises(ConfigError, match="another agent"):
        ZoneStore(tmp_path, "x")
    path = store.path
    store.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        ZoneStore(tmp_path, "x")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state-dir"):
        ZoneStore(tmp_path / "file", "x")


def test_a_damaged_file_is_set_aside(tmp_path: Path, logged: Callable[[], set[str]]) -> None:
    """And a new one is begun."""
    path = tmp_path / "zones-x.sqlite"
    path.write_bytes(b"no database " * 1000)
    store = ZoneStore(tmp_path, "x")
    assert store.list_zones() == []
    assert path.with_suffix(".damaged").exists()
    assert "zone_state_damaged" in logged()
    store.close()


def test_a_set_of_records_that_is_not_held_is_empty(tmp_path: Path) -> None:
    """As a step needs it that creates one."""
    store = ZoneStore(tmp_path, "x")
    zone = hold(store)
    key = RRsetKey(b"example\0z", 1)
    assert zone.content is not None
    assert store.read_rrsets(zone.content, [key]) == {key: {}}
    store.close()
