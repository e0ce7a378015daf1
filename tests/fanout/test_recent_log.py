"""The recent log: what it holds, what it forgets, and that it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import OLDER, Entry, RecentLog
from solowire.model.access import View
from solowire.model.events import STATES, STATES_BYTES, Delivery, Event, encode_event
from solowire.protocol.messages import Codec, ReceivedEvent
from tests.support.examples import examples
from tests.support.factories import event


def filled(count: int, size: int = 0, **bounds: Any) -> RecentLog:
    log = RecentLog(catalog=CATALOG, **bounds)
    for offset in range(1, count + 1):
        log.append(offset, encode_event(event(data={"x": "x" * size})))
    return log


def offsets(log: RecentLog, cursor: int) -> list[int]:
    return [entry.offset for entry in log.entries_after(cursor)]


def test_reads_on_from_any_cursor() -> None:
    """A reader gets everything behind its cursor, oldest first, and nothing when it has all."""
    log = RecentLog(catalog=CATALOG)
    for offset in (2, 3, 7, 9):
        log.append(offset, encode_event(event()))
    assert offsets(log, 0) == [2, 3, 7, 9]
    assert offsets(log, 3) == offsets(log, 5) == [7, 9]
    assert offsets(log, 9) == offsets(log, 100) == []


def test_is_bounded_in_events() -> None:
    """The log never holds more events than it may, and its floor says from where on it can be read."""
    log = filled(100, max_events=100)
    log.trim()
    assert (len(log), log.start_offset) == (100, 0)
    log.append(101, encode_event(event()))
    log.trim()
    assert len(log) == 90
    assert log.start_offset == 11
    assert offsets(log, log.start_offset) == list(range(12, 102))


def test_is_bounded_in_bytes() -> None:
    """The log never holds more bytes than it may, however large events are."""
    log = filled(100, size=1000, max_bytes=50_000)
    log.trim()
    assert log.entry_bytes <= 50_000
    assert log.entry_bytes == sum(entry.size for entry in log.entries_after(0))
    assert offsets(log, log.start_offset) == list(range(log.start_offset + 1, 101))


def test_durable_events_stay_for_longer() -> None:
    """What is trimmed is kept if it is durable, within bounds of its own, and what is gone then is told."""
    log, gone = RecentLog(catalog=CATALOG, max_events=100), list[int]()
    for offset in range(1, 301):
        log.append(offset, encode_event(event("custom.a") if offset % 5 == 0 else event("dns_query_log", QUERY)))
        gone += [e.offset for e in log.trim()]
    assert [e.offset for e in log.durable_tail(0, log.start_offset)] == list(range(5, log.start_offset + 1, 5))[
        -(100 // OLDER) :
    ]
    kept = [e.offset for e in log.durable_tail(0, log.start_offset)]
    assert gone + kept == list(range(5, log.start_offset + 1, 5))
    assert [e.offset for e in log.durable_tail(kept[2], kept[5])] == kept[3:6]
    assert offsets(log, log.start_offset) == list(range(log.start_offset + 1, 301))


def test_durable_events_that_stay_for_longer_are_bounded_in_bytes() -> None:
    """However large they are, what has left the log takes no more than its part of the bytes."""
    log = filled(100, size=1000, max_bytes=50_000)
    gone = log.trim()
    kept = log.durable_tail(0, log.start_offset)
    assert 0 < sum(entry.size for entry in kept) <= 50_000 // OLDER
    assert [e.offset for e in [*gone, *kept]] == list(range(1, log.start_offset + 1))


def test_an_event_larger_than_the_log_leaves_it_empty() -> None:
    """One event over the bound is forgotten too, and the floor says that it is."""
    log = filled(1, size=1000, max_bytes=500)
    log.trim()
    assert (len(log), log.start_offset, log.position, log.entry_bytes) == (0, 1, 1, 0)
    assert offsets(log, 0) == []


def test_an_unknown_type_is_skipped() -> None:
    """An event of a type that only a newer process knows is skipped, and the log goes on."""
    log = RecentLog(catalog=CATALOG)
    unknown = msgspec.structs.replace(event(), type="from_the_future")
    assert log.append(1, encode_event(unknown)) is None
    assert log.append(2, encode_event(event())) is not None
    assert offsets(log, 0) == [2]


@pytest.mark.parametrize("body", [b"", b"\xc1", b"not an event", encode_event(event())[:-1], b"\x91" * 50])
def test_what_is_no_event_is_refused(body: bytes) -> None:
    """Bytes that are no event are passed over and counted, once, and leave the log as it was."""
    log = filled(3)
    assert log.append(4, body) is None
    assert log.decode_entry(4, body) is None
    assert (log.position, len(log), log.skipped.totals) == (3, 3, {"event_decode_failed": 1})


def metrics(host: str | None, offset_in_id: int = 0, user: str | None = None) -> bytes:
    return encode_event(event("system_metrics", {"cpu_usage": 1}, key=host, user=user, id=str(offset_in_id)))


def test_knows_the_newest_of_each_state() -> None:
    """Who connects gets the newest value of each thing, also when its event has left the log long ago."""
    log = RecentLog(catalog=CATALOG, max_events=10)
    log.append(1, metrics("ns1"))
    log.append(2, metrics("ns2"))
    log.append(3, metrics("ns1"))
    log.append(4, metrics("ns1", user="alice"))
    for offset in range(5, 50):
        log.append(offset, encode_event(event()))
        log.trim()
    assert log.start_offset > 4
    assert sorted(e.offset for e in log.latest_states()) == [2, 3, 4]


def test_the_states_are_bounded() -> None:
    """A publisher that makes up keys makes the shard forget the state that has been quiet longest, not grow."""
    log = RecentLog(catalog=CATALOG, max_keys=3)
    for offset, host in enumerate(["a", "b", "c", "a", "d", "e"], 1):
        log.append(offset, metrics(host))
    assert [(e.offset, e.event.key) for e in log.latest_states()] == [(4, "a"), (5, "d"), (6, "e")]


def health(publisher: str, key: str, size: int = 0, name: str = "forwarder_health") -> bytes:
    data = {"forwarder_id": key, "status": "healthy", "message": "x" * size}
    return encode_event(
        event(name, data if name == "forwarder_health" else {"status": "running"}, key=key, publisher=publisher)
    )


@pytest.mark.parametrize(("count", "size"), [(12_000, 100), (4_000, 30_000)])
def test_no_publisher_takes_the_present_states_from_others(count: int, size: int) -> None:
    """Made-up keys push out older ones of whoever makes them up, and their bytes do: others' states stay."""
    log = RecentLog(catalog=CATALOG, max_events=1000)
    for offset in range(1, 21):
        log.append(offset, health("honest", f"honest-{offset}"))
    log.append(21, health("eve", "her own", name="bind_status"))
    for offset in range(22, 22 + count):
        log.append(offset, health("eve", f"made-up-{offset}", size))
        log.trim()
    states = log.latest_states()
    assert [entry.offset for entry in states[:21]] == list(range(1, 22))
    assert states[-1].offset == 21 + count
    assert len(states) <= STATES
    assert sum(len(entry.event.data) for entry in states) <= STATES_BYTES
    assert log.forgotten_types == {"forwarder_health"}


def test_knows_whether_someone_has_mail() -> None:
    """An event for one user alone is found from any cursor before it, and forgotten when it leaves the log."""
    log = RecentLog(catalog=CATALOG, max_events=10)
    log.append(1, encode_event(event(user="alice")))
    log.append(2, encode_event(event(user="bob")))
    log.append(3, encode_event(event(user="alice")))
    assert log.has_personal_after("alice", 0)
    assert log.has_personal_after("alice", 2)
    assert not log.has_personal_after("alice", 3)
    assert not log.has_personal_after("bob", 2)
    assert not log.has_personal_after("carol", 0)
    for offset in range(4, 12):
        log.append(offset, encode_event(event()))
    log.trim()
    assert log.start_offset == 2
    assert not log.has_personal_after("bob", log.start_offset)
    assert log.has_personal_after("alice", log.start_offset)
    for offset in range(12, 30):
        log.append(offset, encode_event(event()))
        log.trim()
    assert not log.has_personal_after("alice", 0)


def test_a_reset_forgets_everything() -> None:
    """After a log was lost nothing of the old one can be read, and no old state is shown as current."""
    log = filled(11, size=500, max_bytes=12_000)
    log.trim()
    assert len(log.durable_tail(0, 40)) == 2
    log.append(12, metrics("ns1", user="alice"))
    log.reset(40)
    assert log.durable_tail(0, 40) == []
    assert (log.position, log.start_offset, log.entry_bytes, len(log)) == (40, 40, 0, 0)
    assert log.latest_states() == []
    assert not log.has_personal_after("alice", 0)
    log.append(41, encode_event(event()))
    assert offsets(log, 40) == [41]
    for offset in range(42, 60):
        log.append(offset, encode_event(event(data={"x": "x" * 500})))
        log.trim()
    assert len(log.durable_tail(40, log.start_offset)) == 2


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 400)), max_size=60), st.integers(1, 20), st.integers(300, 9000)
)
@settings(deadline=None, max_examples=examples(60))
def test_everything_above_the_floor_is_there(steps: list[tuple[int, int]], max_events: int, max_bytes: int) -> None:
    """Whatever comes, the log holds all that came behind its floor and is within its bounds."""
    log = RecentLog(catalog=CATALOG, max_events=max_events, max_bytes=max_bytes)
    came = []
    offset = 0
    for gap, size in steps:
        offset += gap
        log.append(offset, encode_event(event(data={"x": "x" * size})))
        came.append(offset)
        log.trim()
        assert len(log) <= max_events
        assert log.entry_bytes <= max_bytes
        assert offsets(log, log.start_offset) == [o for o in came if o > log.start_offset]
        assert log.position == offset


# ----------------------------------------------------------------------------------------------------- fragments

VIEWER = View(frozenset({"dns.read"}))
QUERY = {"client_ip": "10.0.0.1", "query_domain": "www.example.com", "query_type": "A"}


def entry(published: Event) -> Entry:
    return Entry(5, published, CATALOG[published.type])


@pytest.mark.parametrize(
    ("codec", "decode"), [(Codec.json, msgspec.json.decode), (Codec.msgpack, msgspec.msgpack.decode)]
)
def test_a_fragment_is_the_event(codec: Codec, decode: Any) -> None:
    """A client gets of an event what was published, in either codec."""
    published = event("dns_query_log", QUERY, user="alice", source="bind9", correlation_id="c")
    fragment = entry(published).get_fragment(codec, frozenset())
    assert decode(fragment, type=ReceivedEvent) == ReceivedEvent(
        5, "id", "dns_query_log", "normal", "2026-01-01T00:00:00Z", QUERY, None, "alice", "bind9", "c"
    )


@pytest.mark.parametrize("codec", Codec)
def test_a_fragment_is_redacted(codec: Codec) -> None:
    """An event that is shown to two kinds of users is encoded once for each, with what each may see."""
    one = entry(event("dns_query_log", QUERY))
    hidden = VIEWER.hidden_fields(one.type)
    redacted = one.get_fragment(codec, hidden)
    whole = one.get_fragment(codec, frozenset())
    assert redacted is not None
    assert whole is not None
    assert b"10.0.0.1" not in redacted
    assert b"10.0.0.1" in whole
    assert one.get_fragment(codec, hidden) is redacted


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_a_number_too_long_for_messagepack_is_sent_as_a_float(number: int) -> None:
    """An integer of more than 64 bits, which JSON allows, reaches MessagePack clients as nearly as they can hold it."""
    one = entry(event(data={"n": [number, 7], "x": "y"}))
    fragment = one.get_fragment(Codec.msgpack, frozenset())
    assert isinstance(fragment, bytes)
    assert msgspec.msgpack.decode(fragment, type=ReceivedEvent).data == {"n": [float(number), 7], "x": "y"}
    assert str(number).encode() in (one.get_fragment(Codec.json, frozenset()) or b"")


def test_names_match_themselves_and_what_is_above_them() -> None:
    """A filter for a zone finds the events of all names beneath it, of the root's those of every name."""
    assert entry(event("zone_created", {"zone": "A.Example.com."})).match_terms.get("zone") == (
        ".",
        "com",
        "example.com",
        "a.example.com",
    )
    assert entry(event("zone_created", {"zone": "."})).match_terms.get("zone") == (".",)
    assert entry(event("system_metrics", {"cpu_usage": 1, "host": "ns1.example.com"})).match_terms.get("host") == (
        "ns1.example.com",
    )


def test_a_dot_within_a_label_is_none_between_labels() -> None:
    r"""The name `a\.example.com` is not beneath `example.com`, and a user of that zone doesn't see it."""
    assert "example.com" not in entry(event("zone_created", {"zone": r"a\.example.com"})).match_terms.get("zone")


def test_custom_events_have_two_names() -> None:
    """An event of a custom type is found by its own name and by `custom.*`."""
    assert entry(event("custom.deploy")).match_names == ("custom.deploy", "custom.*")
    assert entry(event("system_metrics", {"cpu_usage": 1})).match_names == ("system_metrics",)


def test_readers_who_want_no_telemetry_pass_over_it() -> None:
    """A flood of queries costs who reads record changes nothing; insertions and trimming keep to the same order."""
    log = RecentLog(catalog=CATALOG, max_events=100)
    queries = {"client_ip": "192.0.2.1", "query_domain": "www.example.com", "query_type": "A"}
    for offset in range(2, 90):
        if offset % 10:
            log.append(offset, encode_event(event("dns_query_log", queries)))
        else:
            log.append(offset, encode_event(event("custom.a", {})))
    inserted = log.decode_entry(1, encode_event(event("custom.b", {}, user="ann")))
    assert inserted is not None
    log.insert_entry(inserted)
    assert [e.offset for e in log.entries_after(0, telemetry=False)] == [1, *range(10, 90, 10)]
    assert len(list(log.entries_after(0))) == 89
    for offset in range(90, 200):
        log.append(offset, encode_event(event("custom.c", {})))
    log.trim()
    assert [e.offset for e in log.entries_after(0, telemetry=False)] == [
        e.offset for e in log.entries_after(0) if e.event.delivery is not Delivery.telemetry
    ]
    assert next(log.entries_after(0)).offset > log.start_offset


# ------------------------------------------------------------------------------------------------------ what it takes

MEASURE = """
import gc, sys
from solowire.domains.dns.event_types import CATALOG
from solowire.protocol.messages import Codec
from solowire.model.events import encode_event
from solowire.fanout.recent_log import RecentLog
from solowire.observability.loop_monitor import memory_bytes
from tests.support.factories import event

NAMES = {
    "127 labels": lambda n: ".".join(f"{n:05}") + ".x" * 122,
    "4 labels": lambda n: ".".join([f"{n:07}" * 9] * 3 + [(f"{n:07}" * 9)[:61]]),
    "usual": lambda n: f"host{n}.www.example.com",
}
name, codecs = NAMES[sys.argv[1]], list(Codec)[: int(sys.argv[2])]
log = RecentLog(catalog=CATALOG, max_bytes=2**24, max_events=10**6)
query = {"client_ip": "192.0.2.1", "query_type": "A"}


def fill(first, last):
    for n in range(first, last):
        entry = log.append(n, encode_event(event("dns_query_log", {**query, "query_domain": name(n)}, id=f"id-{n}")))
        assert len(entry.match_terms.get("query_domain")) > 2
        for codec in codecs:
            entry.get_fragment(codec, frozenset())
        log.trim()


fill(1, 200)
gc.collect()
before, counted = memory_bytes(), log.held_bytes
fill(200, 30_000)
gc.collect()
print(memory_bytes() - before, log.held_bytes - counted, max(len(name(n)) for n in range(1, 30_000)))
"""


@pytest.mark.parametrize("codecs", [0, 1, 4])
@pytest.mark.parametrize(("kind", "longest"), [("127 labels", 253), ("4 labels", 253), ("usual", 25)])
def test_what_it_takes_in_memory_is_what_it_counts(kind: str, longest: int, codecs: int) -> None:
    """A process with 30,000 queries grows by no more than twice what the log counts, for the longest names, too."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(codecs)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    grown, counted, characters = map(int, measured.stdout.split())
    assert characters == longest
    assert counted > 2**23
    assert counted / 3 < grown < 2 * counted


def test_sizes_are_measured_however_an_event_is_written() -> None:
    """What a text takes in memory depends on its widest character: what is long is measured, not taken as it came."""
    plain, wide = ("x" * 1000, "x" * 999 + "\N{PILE OF POO}")
    sizes = []
    for topic in (plain, wide):
        entry = RecentLog(catalog=CATALOG).decode_entry(1, encode_event(event(data={"topic": topic})))
        assert entry is not None
        sizes.append(entry.size)
    assert sizes[1] - sizes[0] > 2_900
