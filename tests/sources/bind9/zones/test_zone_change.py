"""Changes of RRsets, their ids, and the events and pages that tell them."""

from __future__ import annotations

import dns.name
import dns.rdata
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import TransferError
from solowire.model.events import Delivery, Event, Priority
from solowire.sources.bind9.zones.change_events import make_change_data, make_pages, make_summary
from solowire.sources.bind9.zones.transfer_reader import SerialStep
from solowire.sources.bind9.zones.update_authors import UpdateAuthor
from solowire.sources.bind9.zones.zone_change import HeldRRsets, RRsetChange, apply_step, list_keys, tally_changes
from solowire.sources.bind9.zones.zone_identity import ERA_S, StepIdentity, ZoneName, begin_era, find_era
from solowire.sources.bind9.zones.zone_record import (
    RRsetKey,
    ZoneRecord,
    decode_owner,
    encode_owner,
    is_serial_before,
    make_record,
    sort_records,
)
from tests.support.examples import examples

Z = ZoneName("z.example")
STEP = StepIdentity(zone=Z, serial_before=1, serial=2)


def record(name: str, type: str, value: str, ttl: int = 60) -> ZoneRecord:
    return make_record(dns.name.from_text(name), dns.rdata.from_text("IN", type, value), ttl)


SOA = record("z.example", "SOA", "ns. h. 1 2 3 4 5")


def make_step(removed: list[ZoneRecord], added: list[ZoneRecord]) -> SerialStep:
    return SerialStep(soa_before=SOA, soa=SOA, newest=SOA, removed=removed, added=added)


ADDRESSES = [record("a.z.example", "A", f"192.0.2.{n}") for n in range(5)]


@given(st.sets(st.sampled_from(ADDRESSES)), st.sets(st.sampled_from(ADDRESSES)))
def test_a_step_leads_from_what_is_held_to_what_is_after_it(before: set[ZoneRecord], after: set[ZoneRecord]) -> None:
    """One change with the whole set before and after, or none."""
    key = ADDRESSES[0].key
    held: HeldRRsets = {key: {found.data: found for found in before}}
    step = make_step(sorted(before - after), sorted(after - before))
    for wanted in list_keys(step):
        held.setdefault(wanted, {})
    changes = apply_step(step, held)
    expected = [] if before == after else [RRsetChange(key, sort_records(before), sort_records(after))]
    assert changes == expected
    assert set(held[key].values()) == after


def test_a_step_that_does_not_fit_leaves_what_is_held() -> None:
    """What is removed must be held, with its TTL; what is added must not be."""
    first, second, *_ = ADDRESSES
    for removed, added in (([second], []), ([first._replace(ttl=1)], []), ([], [first])):
        held: HeldRRsets = {first.key: {first.data: first}}
        with pytest.raises(TransferError) as refused:
            apply_step(make_step(removed, added), held)
        assert refused.value.kind == "not_incremental"
        assert held == {first.key: {first.data: first}}


def test_letters_case_in_names_is_no_change() -> None:
    """As DNS compares them; what is shown is as it was written."""
    before, after = (record("a.z.example", "CNAME", value) for value in ("b.Z.example.", "B.z.example."))
    assert (before.key, before.data) == (after.key, after.data)
    held: HeldRRsets = {before.key: {before.data: before}}
    assert apply_step(make_step([before], [after]), held) == []


labels = st.lists(st.binary(min_size=1, max_size=20), max_size=6)


@given(labels, labels)
@settings(max_examples=examples(300))
def test_owners_sort_as_names_do(one: list[bytes], other: list[bytes]) -> None:
    """The bytes of an owner have the canonical order, and give the name again."""
    names = [dns.name.Name([*found, b""]).canonicalize() for found in (one, other)]
    owners = [encode_owner(name) for name in names]
    assert (owners[0] < owners[1]) == (names[0] < names[1])
    for name, owner in zip(names, owners, strict=True):
        assert dns.name.from_text(decode_owner(owner)) == name


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_serials_wrap_around(serial: int, distance: int) -> None:
    """RFC 1982."""
    later = (serial + distance) % 2**32
    assert is_serial_before(serial, later)
    assert not is_serial_before(later, serial)
    assert not is_serial_before(serial, serial)


def test_ids_differ_by_all_that_a_change_is_and_by_nothing_else() -> None:
    """Zone, view, serial, content and era; not the serial before, except for a rollback."""
    change = RRsetChange(ADDRESSES[0].key, (), (ADDRESSES[0],))
    other = RRsetChange(ADDRESSES[0].key, (), (ADDRESSES[1],))
    steps = [
        STEP,
        msgspec.structs.replace(STEP, zone=ZoneName("y.example")),
        msgspec.structs.replace(STEP, zone=ZoneName("z.example", "inside")),
        msgspec.structs.replace(STEP, serial=3),
        msgspec.structs.replace(STEP, era="again"),
        msgspec.structs.replace(STEP, is_rollback=True),
        msgspec.structs.replace(STEP, is_rollback=True, serial_before=9),
    ]
    ids = [step.make_change_id(found) for step in steps for found in (change, other)]
    assert len(set(ids)) == len(ids)
    assert msgspec.structs.replace(STEP, serial_before=0).make_change_id(change) == STEP.make_change_id(change)


def test_an_era_ends_with_its_serials_or_its_time() -> None:
    """Serials that were there before have marked ids; those after them never."""
    era = begin_era(Z, None, 6, 4, 1000.0)
    assert find_era(era, 5, 1001.0) == find_era(era, 6, 1001.0) == era
    assert find_era(era, 7, 1001.0) is None
    assert find_era(era, 5, 1000.0 + ERA_S) is None
    again = begin_era(Z, era, 5, 4, 1002.0)
    assert again.mark != era.mark
    assert again.serial == 6


texts = st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True)


@given(st.lists(st.tuples(texts, st.booleans(), st.booleans()), max_size=12), st.sampled_from([4096, 24_000]))
@settings(max_examples=examples(100), deadline=None)
def test_pages_hold_all_records_in_order_within_their_size(
    sets: list[tuple[list[int], bool, bool]], page_bytes: int
) -> None:
    """Whatever the sets' sizes are; and the catalogue takes each page."""
    changes = []
    for number, (sizes, was, stays) in enumerate(sets):
        records = sort_records(
            record(f"n{number}.z.example", "TXT", '"' + ";" * 200 + f'" "{size}" "{"x" * (size // 2)}"')
            for size in sizes
        )
        before, after = (records if was else ()), (records[:-1] if stays and was else records)
        changes.append(RRsetChange(records[0].key, before, after))
    pages = list(make_pages(changes, page_bytes))
    assert all(len(msgspec.json.encode(page)) <= page_bytes for page in pages)
    for side in ("before", "after"):
        told = [
            (item["name"], text) for page in pages for item in page for text in item.get(side, {}).get("records", [])
        ]
        assert len(told) == sum(len(getattr(change, side)) for change in changes)
        assert told == sorted(told, key=lambda each: int(each[0].split(".")[0][1:]))
    for number, page in enumerate(pages, start=1):
        data = {"zone": "z.example", "operation_id": "x", "page": number, "pages": len(pages), "changes": page}
        CATALOG.validate_data(CATALOG["record_changes"], data)


def test_a_record_that_is_longer_than_an_event_is_cut_and_says_so() -> None:
    """No value is longer than a page."""
    long = record("a.z.example", "TYPE65400", "\\# 60000 " + "ab" * 60000)
    change = RRsetChange(long.key, (), (long,))
    data = make_change_data(STEP, change, None, 24_000)
    assert data["after"]["truncated"]
    assert data["value"].endswith("…")
    both = RRsetChange(long.key, (long,), (long._replace(ttl=1),))
    for page in make_pages([both], 4096):
        assert len(msgspec.json.encode(page)) <= 4096


def test_events_are_what_the_catalogue_says() -> None:
    """Changes and summaries fit their types."""
    old, new = ADDRESSES[:2]
    author = UpdateAuthor(client="192.0.2.1", tsig_key="k")
    change = RRsetChange(old.key, (old,), (new,))
    data = make_change_data(STEP, change, author, 24_000)
    CATALOG.validate_data(CATALOG["record_updated"], data)
    assert (data["value"], data["client"]) == ("192.0.2.1", "192.0.2.1")
    signature = RRsetChange(RRsetKey(old.owner, 46), (), (old,))
    tally = tally_changes([change, signature], frozenset({"RRSIG"}))
    summary = make_summary(STEP, tally, SOA, SOA, author, transfer="ixfr", operation_id=None)
    CATALOG.validate_data(CATALOG["zone_updated"], summary)
    assert (summary["updated"], summary["left_out"], tally.total) == ({"A": 1}, {"RRSIG": 1}, 1)


def as_told(type: str, data: dict[str, object], server: str) -> Event:
    whole = msgspec.json.encode({"server": server, **data})
    return Event("id", type, whole, Priority.normal, Delivery.durable, "2026-12-01T12:00:00Z", publisher=server)


def test_what_two_servers_sources_tell_of_one_change_is_the_same() -> None:
    """Their ids are, and the router compares what another publisher says under an id: only one may know the author."""
    author = UpdateAuthor(client="192.0.2.1", tsig_key="k", actor="dhcp")
    skipped = StepIdentity(zone=Z, serial_before=0, serial=2)
    change = RRsetChange(ADDRESSES[0].key, (ADDRESSES[0],), (ADDRESSES[1],))
    other = RRsetChange(ADDRESSES[0].key, (ADDRESSES[0],), (ADDRESSES[2],))
    assert STEP.make_change_id(change) == skipped.make_change_id(change)
    first = as_told("record_updated", make_change_data(STEP, change, author, 24_000), "ns1")
    assert CATALOG.is_same_event(
        first, as_told("record_updated", make_change_data(skipped, change, None, 24_000), "ns2")
    )
    assert not CATALOG.is_same_event(
        first, as_told("record_updated", make_change_data(STEP, other, author, 24_000), "ns2")
    )
    tally = tally_changes([change], frozenset())
    ixfr, axfr = (
        make_summary(STEP, tally, SOA, SOA, who, transfer=transfer, operation_id="o")
        for who, transfer in ((author, "ixfr"), (None, "axfr"))
    )
    assert CATALOG.is_same_event(as_told("zone_updated", ixfr, "ns1"), as_told("zone_updated", axfr, "ns2"))
    assert not CATALOG.is_same_event(
        as_told("zone_updated", ixfr, "ns1"), as_told("zone_updated", axfr | {"serial": 3}, "ns2")
    )
