"""The router's log: what it promises to publishers and shards, in memory and on disk alike.

The last part drives both through whatever Hypothesis can think of: requests, repetitions, commits that fail, restarts;
and compares what is read with what a list says.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from solowire.backplane.messages import PublishedEvent
from solowire.domains.dns.event_types import CATALOG
from solowire.model.events import Delivery, Event, Priority, encode_event, name_state
from solowire.router.log import sqlite_journal
from solowire.router.log.journal import (
    Bounds,
    Journal,
    JournalUnavailable,
    MemoryJournal,
    Record,
    find_last_before,
)
from solowire.router.log.known_ids import MAX_HOLDERS, SHORT_ID, KnownIds
from solowire.router.log.sqlite_journal import SqliteJournal
from solowire.router.log.state_selection import SizedState, choose_states, type_of_state
from tests.support.examples import examples

MakeJournal = Callable[..., Journal]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeJournal]:
    """Makes a journal; its bounds can be chosen."""
    made: list[Journal] = []

    def make(max_events: int = 1000, window: float = 60.0) -> Journal:
        if request.param == "memory":
            is_same = CATALOG.is_same_event
            return MemoryJournal("epoch", max_events=max_events, max_bytes=1_000_000, window=window, is_same=is_same)
        made.append(on_disk(tmp_path / "journal.sqlite3", max_events=max_events, window=window))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


def on_disk(path: Path, max_events: int = 1000, window: float = 60.0, now: float = 0.0) -> SqliteJournal:
    return SqliteJournal(
        path,
        new_epoch="epoch",
        max_age=1e9,
        max_events=max_events,
        max_bytes=2**30,
        window=window,
        now=now,
        is_same=CATALOG.is_same_event,
    )


def event(id: str, user: str | None = None, body: bytes = b"body", state: str | None = None) -> PublishedEvent:
    return PublishedEvent(id, user, body, state)


def told(
    publisher: str | None, id: str, data: bytes = b"{}", user: str | None = None, type: str = "zone_updated"
) -> PublishedEvent:
    """As a gateway sends it on for a publisher."""
    whole = Event(
        id, type, data, Priority.normal, Delivery.durable, "2026-12-01T12:00:00Z", user=user, publisher=publisher
    )
    return PublishedEvent(id, user, encode_event(whole))


def some(count: int, begin: int = 0) -> list[PublishedEvent]:
    return [event(f"id-{n}", body=b"%d" % n) for n in range(begin, begin + count)]


def keep(journal: Journal, events: Sequence[PublishedEvent], now: float = 0.0) -> tuple[list[int], list[int]]:
    """Appends and commits."""
    appended = journal.append(events, now)
    journal.commit(now)
    return appended


def read_all(journal: Journal) -> Sequence[Record]:
    return journal.read(journal.start_offset, 1_000_000)


def offsets(records: Sequence[Record]) -> list[int]:
    return [record.offset for record in records]


# ------------------------------------------------------------------------------------------------- append and commit


def test_an_empty_log_begins_at_offset_one(make: MakeJournal) -> None:
    """A new log holds nothing, stands at 0, and its first event gets offset 1."""
    journal = make()
    assert (journal.epoch, journal.last_offset, journal.start_offset, list(journal.read(0, 10))) == ("epoch", 0, 0, [])
    assert keep(journal, some(1)) == ([1], [])
    assert (journal.last_offset, journal.start_offset) == (1, 0)


def test_nobody_reads_an_event_before_it_is_kept(make: MakeJournal) -> None:
    """The open group has its offsets and is counted, and is not in the log before the commit."""
    journal = make()
    keep(journal, some(2))
    assert journal.append(some(2, begin=2), 0.0).offsets == [3, 4]
    assert (journal.pending_count, journal.last_offset, offsets(read_all(journal))) == (2, 2, [1, 2])
    journal.commit(0.0)
    assert (journal.pending_count, journal.last_offset, offsets(read_all(journal))) == (0, 4, [1, 2, 3, 4])


def test_a_group_takes_several_requests(make: MakeJournal) -> None:
    """Publishers that come together share a commit, each with its own offsets, without a hole between them."""
    journal = make()
    assert journal.append(some(3), 0.0).offsets == [1, 2, 3]
    assert journal.append(some(2, begin=3), 0.0).offsets == [4, 5]
    journal.commit(0.0)
    assert journal.append(some(1, begin=5), 0.0).offsets == [6]
    journal.commit(0.0)
    assert [record.body for record in read_all(journal)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_record_keeps_user_and_body(make: MakeJournal) -> None:
    """What is read is what was published: offset, whose it is, and the bytes, whatever they are."""
    journal = make()
    keep(journal, [event("a", "ann", b"\x00\xff"), event("ü\0", None, b""), event("c", "", b"for nobody")])
    assert list(read_all(journal)) == [
        Record(1, "ann", b"\x00\xff"),
        Record(2, None, b""),
        Record(3, "", b"for nobody"),
    ]


def test_an_empty_batch_changes_nothing(make: MakeJournal) -> None:
    """Publishing nothing is answered with nothing, and a commit of nothing is none."""
    journal = make()
    assert keep(journal, []) == ([], [])
    assert (journal.pending_count, journal.last_offset) == (0, 0)


# -------------------------------------------------------------------------------------------------------- duplicates


def test_a_batch_published_again_is_all_duplicates(make: MakeJournal) -> None:
    """A publisher that repeats a request gets the same offsets, and the log has each event once."""
    journal = make()
    first, _ = keep(journal, some(3))
    assert keep(journal, some(3), 1.0) == (first, [0, 1, 2])
    assert len(read_all(journal)) == 3


def test_a_batch_published_again_before_the_commit_is_all_duplicates(make: MakeJournal) -> None:
    """The open group is looked through as well."""
    journal = make()
    journal.append(some(3), 0.0)
    assert journal.append(some(4), 0.0) == ([1, 2, 3, 4], [0, 1, 2])
    journal.commit(0.0)
    assert offsets(read_all(journal)) == [1, 2, 3, 4]


def test_a_duplicate_within_a_batch_is_named_by_its_index(make: MakeJournal) -> None:
    """The same id twice in one request is one event: the second is a duplicate of the first."""
    journal = make()
    assert keep(journal, [event("a"), event("b"), event("a"), event("c")]) == ([1, 2, 1, 3], [2])
    assert journal.last_offset == 3


def test_a_batch_of_old_and_new_keeps_the_order_of_its_events(make: MakeJournal) -> None:
    """Where some events of a request are known already, the new ones get the next offsets, each at its place."""
    journal = make()
    keep(journal, some(2))
    assert keep(journal, [event("new-1"), event("id-1"), event("new-2"), event("id-0")]) == ([3, 2, 4, 1], [1, 3])


def test_an_id_is_forgotten_after_the_window(make: MakeJournal) -> None:
    """Within the window an id is a duplicate; after the next commit behind it, it is a new event."""
    journal = make(window=10.0)
    keep(journal, [event("a")], 100.0)
    assert keep(journal, [event("a")], 110.0) == ([1], [0])
    journal.commit(110.1)
    assert keep(journal, [event("a")], 110.1) == ([2], [])


def test_a_duplicate_does_not_lengthen_the_window(make: MakeJournal) -> None:
    """The window counts from the event, not from its last repetition, so that it ends for a stubborn publisher."""
    journal = make(window=10.0)
    keep(journal, [event("a")], 0.0)
    keep(journal, [event("a")], 9.0)
    journal.commit(11.0)
    assert keep(journal, [event("a")], 11.0)[1] == []


def test_the_requests_of_a_group_have_windows_of_their_own(make: MakeJournal) -> None:
    """An id is not forgotten with an older one that it shared a commit with."""
    journal = make(window=10.0)
    journal.append([event("a")], 0.0)
    journal.append([event("b")], 5.0)
    journal.commit(5.0)
    journal.commit(12.0)
    assert journal.append([event("b"), event("a")], 12.0) == ([2, 3], [0])


def test_a_duplicate_is_known_after_its_event_was_trimmed(make: MakeJournal) -> None:
    """Idempotence does not depend on how much the log holds."""
    journal = make(max_events=2)
    keep(journal, [event("old")], 0.0)
    keep(journal, some(5), 1.0)
    assert journal.start_offset >= 1
    assert keep(journal, [event("old")], 2.0) == ([1], [0])


def test_the_number_of_ids_is_bounded(make: MakeJournal) -> None:
    """Over MAX_IDS the oldest are forgotten before their time, so that memory has a bound at any rate."""
    with (
        mock.patch("solowire.router.log.known_ids.MAX_IDS", 4),
        mock.patch("solowire.router.log.sqlite_journal.MAX_IDS", 4),
    ):
        journal = make()
        for n in range(6):
            keep(journal, some(1, begin=n))
        assert journal.append(some(6), 0.0) == ([7, 8, 3, 4, 5, 6], [2, 3, 4, 5])


# ------------------------------------------------------------------------------------- one id, and several publishers


def publish(journal: Journal, publisher: str, *events: PublishedEvent, now: float = 0.0) -> tuple[list[int], list[int]]:
    """Appends and commits what a publisher says."""
    appended = journal.append(events, now, publisher)
    journal.commit(now)
    return appended


STEP = b'{"zone":"bank.example","serial":8,"server":"ns1"}'


def test_nobody_keeps_an_event_out_of_the_log_by_taking_its_id_first(make: MakeJournal) -> None:
    """Ids of a zone's changes can be guessed, and any id can be read: another's event with it is an event."""
    journal = make()
    assert publish(journal, "eve", told("eve", "zone-8", b'{"x":1}', "nobody", "custom.x")) == ([1], [])
    assert publish(journal, "agent", told("agent", "zone-8", STEP), told("agent", "else")) == ([2, 3], [])
    assert publish(journal, "agent", told("agent", "zone-8", STEP)) == ([2], [0])
    assert publish(journal, "eve", told("eve", "zone-8", STEP)) == ([1], [0]), "her id, and her event"
    assert offsets(read_all(journal)) == [1, 2, 3]


def test_the_id_is_not_taken_within_a_group_either(make: MakeJournal) -> None:
    """Two publishers whose requests share a commit are two publishers."""
    journal = make()
    assert journal.append([told("eve", "zone-8", b"{}")], 0.0, "eve") == ([1], [])
    assert journal.append([told("agent", "zone-8", STEP)], 0.0, "agent") == ([2], [])
    assert journal.append([told("agent", "zone-8", STEP)], 0.0, "agent") == ([2], [0])
    journal.commit(0.0)
    assert publish(journal, "agent", told("agent", "zone-8", STEP)) == ([2], [0])


def test_nobody_shortens_the_window_of_others(make: MakeJournal) -> None:
    """Over MAX_IDS those of who has most go first: a flood costs its own publisher what is known, and nobody else."""
    with (
        mock.patch("solowire.router.log.known_ids.MAX_IDS", 20),
        mock.patch("solowire.router.log.known_ids.SPARE", 5),
    ):
        journal = make()
        publish(journal, "ann", *some(5))
        for first in range(100, 400, 3):
            publish(journal, "eve", *some(3, begin=first))
        known: KnownIds = journal._ids  # type: ignore[attr-defined]
        assert len(known) <= 20
        assert len(known._requests) <= 40
        assert sum(own.count for own in known._by_publisher.values()) == len(known)
        assert publish(journal, "ann", *some(5)) == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
        assert publish(journal, "eve", *some(3, begin=100))[1] == []
        journal.commit(1e6)
        assert (len(known), len(known._requests), known._by_publisher) == (0, 0, {})


def test_an_id_of_the_same_publisher_is_a_duplicate_whatever_it_says(make: MakeJournal) -> None:
    """That is what an id is for: who repeats it need not say the same."""
    journal = make()
    publish(journal, "ann", told("ann", "a", b'{"n":1}'))
    assert publish(journal, "ann", told("ann", "a", b'{"n":2}', "bob")) == ([1], [0])


@pytest.mark.parametrize(
    "data",
    [
        STEP,
        b'{"zone":"bank.example","serial":8,"server":"ns2"}',
        b'{"server":"ns2","transfer":"axfr","serial_before":6,"zone":"bank.example","serial":8}',
        b'{"zone":"bank.example","serial":8,"server":"ns2","actor":"ann","client":"192.0.2.1"}',
    ],
)
def test_two_sources_of_one_zone_tell_a_change_once(make: MakeJournal, data: bytes) -> None:
    """Who saw it and how, and who is known to have done it, is no other event; nor is what an agent tells again.

    After a restart it may be another user.
    """
    journal = make()
    publish(journal, "eve", told("eve", "zone-8", b'{"zone":"bank.example","serial":9}'))
    assert publish(journal, "ns1", told("ns1", "zone-8", STEP)) == ([2], [])
    assert publish(journal, "ns2", told("ns2", "zone-8", data)) == ([2], [0])


def test_whoever_says_something_else_tells_another_event(make: MakeJournal) -> None:
    """Another value, another user's alone, another type or author, more or less than what was said."""
    journal = make()
    by_ann = STEP[:-1] + b',"actor":"ann"}'
    others = [
        told("eve", "a", by_ann.replace(b"ann", b"bob")),
        told("eve", "a", by_ann, "nobody"),
        told("eve", "a", by_ann, type="zone_deleted"),
        told("eve", "a", by_ann.replace(b'"serial":8', b'"serial":9')),
        told("eve", "a", b'{"server":"ns1"}'),
        told("eve", "a", by_ann[:-1] + b',"message":"x"}'),
    ]
    for number, other in enumerate(others):
        publish(journal, "ns1", told("ns1", f"a{number}", by_ann))
        assert publish(journal, "eve", PublishedEvent(f"a{number}", other.user, other.body))[1] == [], number
    own = [told(f"c{n}", f"c{n}", b'{"server":"a"}', type="custom.x") for n in range(2)]
    publish(journal, "c0", own[0])
    assert publish(journal, "c1", told("c1", "c0", b'{"server":"b"}', type="custom.x"))[1] == [], "no source's event"


def test_an_id_of_several_publishers_has_a_window_for_each(make: MakeJournal) -> None:
    """Where the first one's is over, the second one's is not."""
    journal = make(window=10.0)
    publish(journal, "eve", told("eve", "a", b"{}"), now=0.0)
    publish(journal, "ann", told("ann", "a", STEP), now=8.0)
    journal.commit(15.0)
    assert publish(journal, "ann", told("ann", "a", STEP), now=15.0) == ([2], [0])
    assert publish(journal, "eve", told("eve", "a", b"{}"), now=15.0) == ([3], [])
    journal.commit(19.0)
    assert publish(journal, "ann", told("ann", "a", STEP), now=19.0) == ([4], [])
    journal.commit(40.0)
    assert len(journal._ids) == 0  # type: ignore[attr-defined]


def test_so_many_publishers_of_one_id_are_remembered(make: MakeJournal) -> None:
    """Over MAX_HOLDERS the oldest is forgotten: what it repeats is a new event, and nobody else's is lost for it."""
    journal = make()
    for n in range(MAX_HOLDERS + 1):
        publish(journal, f"p{n}", told(f"p{n}", "a", b"%d" % n))
    assert publish(journal, "p1", told("p1", "a", b"1")) == ([2], [0])
    assert publish(journal, "p0", told("p0", "a", b"0")) == ([MAX_HOLDERS + 2], [])


def test_another_s_event_that_was_trimmed_is_not_the_same(make: MakeJournal) -> None:
    """What can't be compared any more is a new event, of whoever it is not."""
    journal = make(max_events=2)
    publish(journal, "ns1", told("ns1", "a", STEP))
    publish(journal, "ns1", *(told("ns1", f"{n}") for n in range(5)))
    journal.commit(0.0)
    assert publish(journal, "ns1", told("ns1", "a", STEP)) == ([1], [0])
    assert publish(journal, "ns2", told("ns2", "a", STEP)) == ([7], [])


def test_after_a_restart_an_id_is_still_its_publisher_s(tmp_path: Path) -> None:
    """Whose the events on disk are is read from them; those of before publishers were kept are anybody's."""
    path = tmp_path / "journal.sqlite3"
    journal = on_disk(path)
    publish(journal, "eve", told("eve", "a", b"{}"), told("eve", "b", b"{}"))
    publish(journal, "ann", told("ann", "a", STEP))
    publish(journal, "old", told(None, "old", b"{}"))
    journal.close()
    journal = on_disk(path)
    assert publish(journal, "ann", told("ann", "a", b"{}"), told("ann", "b", STEP)) == ([3, 5], [0])
    assert publish(journal, "eve", told("eve", "a", b"[]"), told("eve", "b", b"[]")) == ([1, 2], [0, 1])
    assert publish(journal, "bob", told("bob", "old", STEP)) == ([4], [0])
    journal.close()


# --------------------------------------------------------------------------------------------------------- retention


def test_the_number_of_events_is_bounded(make: MakeJournal) -> None:
    """Over its bound the log loses its oldest events, and says so in its floor."""
    journal = make(max_events=10)
    for batch in range(5):
        keep(journal, some(7, begin=batch * 7))
    assert (journal.last_offset, journal.start_offset) == (35, 25)
    assert offsets(read_all(journal)) == list(range(26, 36))


def test_a_batch_larger_than_the_log_keeps_its_end(make: MakeJournal) -> None:
    """A single request beyond the bound is accepted; what does not fit is behind the floor."""
    journal = make(max_events=10)
    assert keep(journal, some(25))[0] == list(range(1, 26))
    journal.commit(0.0)
    assert journal.start_offset == 15
    assert offsets(read_all(journal)) == list(range(16, 26))


def test_the_bytes_in_memory_are_bounded() -> None:
    """Large events push out old ones just as many events do. (On disk it is the file's pages that count.)"""
    journal = MemoryJournal("epoch", max_events=1000, max_bytes=1000, window=60.0)
    for n in range(10):
        keep(journal, [event(f"big-{n}", body=b"x" * 300)])
    assert (journal.last_offset, journal.start_offset) == (10, 7)
    keep(journal, [event("huge", body=b"x" * 2000)])
    assert (journal.last_offset, journal.start_offset, list(read_all(journal))) == (11, 11, [])
    assert keep(journal, [event("small")])[0] == [12]


# ------------------------------------------------------------------------------------------------------------- reads


def test_reading_begins_behind_the_cursor_and_ends_at_the_limit(make: MakeJournal) -> None:
    """A reader gets what is behind its cursor, and no more than it asks for."""
    journal = make()
    keep(journal, some(10))
    assert offsets(journal.read(4, 3)) == [5, 6, 7]
    assert offsets(journal.read(8, 100)) == [9, 10]
    assert list(journal.read(10, 5)) == []


@pytest.mark.parametrize("id", ["x" * 128, "\U0001f600" * 128, "é"])
def test_a_long_id_is_known_again_and_takes_no_more_memory_than_a_short_one(make: MakeJournal, id: str) -> None:
    """128 characters may take half a kilobyte each: 2 million of them were 1.6 GB and more of a router's memory."""
    journal = make()
    keep(journal, [event(id)])
    assert list(journal.append([event(id), event(id[:-1] + "y")], 0.0).duplicates) == [0]
    assert all(len(key) <= SHORT_ID for key in journal._ids._places)  # type: ignore[attr-defined]


def test_a_user_s_own_records_are_found(make: MakeJournal) -> None:
    """What is for one user alone is read without everybody else's, between two cursors."""
    journal = make()
    keep(journal, [event(f"{n}", ("ann", "bob", None)[n % 3]) for n in range(12)])
    assert offsets(journal.read_user("ann", 0, 12, 100)) == [1, 4, 7, 10]
    assert offsets(journal.read_user("ann", 1, 9, 100)) == [4, 7]
    assert offsets(journal.read_user("ann", 0, 12, 3)) == [1, 4, 7]
    assert list(journal.read_user("eve", 0, 12, 100)) == []


def test_a_reader_follows_the_log_while_it_is_written_and_trimmed(make: MakeJournal) -> None:
    """A reader that was opened before sees what was kept since, and nothing of what is trimmed or not kept yet."""
    journal = make(max_events=5)
    reader = journal.open_reader()
    assert (reader.bounds(), list(reader.read(0, 10, 10)), reader.read_time(1)) == (Bounds(0, 0), [], None)
    keep(journal, some(8), now=3.0)
    journal.append(some(1, begin=8), 4.0)
    assert reader.bounds() == Bounds(3, 8)
    assert offsets(reader.read(0, 100, 3)) == [4, 5, 6]
    assert offsets(reader.read(0, 7, 3, is_descending=True)) == [7, 6, 5]
    assert offsets(reader.read_at([8, 2, 5, 9])) == [8, 5]
    assert (reader.read_time(3), reader.read_time(4)) == (None, 3.0)
    reader.close()


def test_a_reader_knows_when_the_newest_of_what_was_trimmed_was_taken(make: MakeJournal) -> None:
    """Nothing that is gone was taken later, also where the clock was set back; nothing is known before the first."""
    journal = make(max_events=3)
    reader = journal.open_reader()
    assert reader.read_trimmed_at(0) is None
    for n, now in enumerate([1.0, 2.0, 5.0, 4.0, 6.0]):
        keep(journal, some(1, begin=n), now)
    assert (reader.bounds(), reader.read_trimmed_at(2)) == (Bounds(2, 5), 2.0)
    keep(journal, some(2, begin=5), 7.0)
    assert (reader.bounds(), reader.read_trimmed_at(4)) == (Bounds(4, 7), 5.0)
    assert reader.read_trimmed_at(5) is None, "of what else is gone nobody has said anything"
    reader.close()


def test_the_newest_record_of_each_state_is_found(make: MakeJournal) -> None:
    """A shard that starts gets the present value of each state, oldest first, and the newest of them if too many."""
    journal = make()
    for n, state in enumerate(["cpu", None, "disk", "cpu", "net", None]):
        keep(journal, [event(f"{n}", state=state)])
    assert offsets(journal.latest_states(6, 100, 10**6)) == [3, 4, 5]
    assert offsets(journal.latest_states(4, 100, 10**6)) == [3, 4]
    assert len(journal.latest_states(6, 2, 10**6)) == 2


def test_no_type_takes_the_room_of_another_s_states(make: MakeJournal) -> None:
    """Whoever makes up keys, or fills them, takes nothing from others: of what there is too much the oldest goes."""
    journal = make()
    keep(journal, [event("honest", state=name_state("bind_status", "ns1", None))])
    many = [event(f"flood {n:03}", state=name_state("forwarder_health", f"{n}", None)) for n in range(200)]
    keep(journal, many)
    found = offsets(journal.latest_states(201, 50, 10**6))
    assert found == [1, *range(153, 202)]
    size = len(journal.read(0, 2)[1].body)
    found = offsets(journal.latest_states(201, 1000, 20 * size))
    assert found[0] == 1
    assert found[1:] == list(range(202 - len(found) + 1, 202))
    assert 15 <= len(found) <= 20


def test_a_state_that_was_trimmed_is_none(make: MakeJournal) -> None:
    """What is behind the floor can't be had, its present value either."""
    journal = make(max_events=2)
    keep(journal, [event("a", state="old")])
    keep(journal, [event("b", state="new"), event("c")])
    assert offsets(journal.latest_states(3, 10, 10**6)) == [2]


def test_a_word_is_remembered(make: MakeJournal) -> None:
    """The router's own words are kept by name, the last one of each."""
    journal = make()
    assert journal.get_metadata_item("ring") is None
    journal.put_metadata_item("ring", b"1")
    journal.put_metadata_item("other", b"")
    journal.put_metadata_item("ring", b"\x00two")
    assert (journal.get_metadata_item("ring"), journal.get_metadata_item("other")) == (b"\x00two", b"")


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12), st.integers(1, 20))
def test_every_id_has_one_offset_and_every_offset_one_event(batches: list[list[int]], max_events: int) -> None:
    """Whatever is repeated in whatever order: one id, one offset; offsets without holes; the newest ones readable."""
    journal = MemoryJournal("epoch", max_events=max_events, max_bytes=10**6, window=1e9)
    offset_of: dict[int, int] = {}
    for batch in batches:
        given_offsets, duplicates = keep(journal, [event(str(n), body=b"%d" % n) for n in batch])
        for index, (n, offset) in enumerate(zip(batch, given_offsets, strict=True)):
            assert (n in offset_of) == (index in duplicates)
            assert offset_of.setdefault(n, offset) == offset
    assert sorted(offset_of.values()) == list(range(1, journal.last_offset + 1))
    readable = read_all(journal)
    assert offsets(readable) == list(range(journal.start_offset + 1, journal.last_offset + 1))
    assert all(offset_of[int(record.body)] == record.offset for record in readable)
    assert len(readable) == min(max_events, journal.last_offset)


# ------------------------------------------------------------------------------------------- whatever comes, in a model


class Kept(NamedTuple):
    at: float
    id: str
    record: Record
    state: str | None
    publisher: str


EVENTS = st.lists(
    st.builds(
        event,
        st.integers(0, 40).map(str) | st.text(max_size=3),
        st.none() | st.sampled_from(["ann", "bob"]),
        st.binary(max_size=5) | st.integers(2000, 9000).map(bytes),  # some larger than SQLite's pages
        st.none() | st.sampled_from(["cpu", "disk", "net"]),
    ),
    max_size=8,
)
MAX_EVENTS, WINDOW, TAIL = 20, 10.0, 7


class InMemory(RuleBasedStateMachine):
    """A journal beside a list of all that was ever kept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.log: list[Kept] = []
        self.group: list[Kept] = []
        self.known: dict[tuple[str, str | None], tuple[float, int]] = {}  # None: whose they are is not known any more
        self.notes: dict[str, bytes] = {}
        self.journal: Journal = self.begin()

    def begin(self) -> Journal:
        return MemoryJournal("epoch", max_events=MAX_EVENTS, max_bytes=10**9, window=WINDOW)

    @property
    def kept(self) -> list[Record]:
        return [kept.record for kept in self.log[-MAX_EVENTS:]]

    @rule(events=EVENTS, publisher=st.sampled_from(["p", "q"]))
    def append(self, events: list[PublishedEvent], publisher: str) -> None:
        expected: tuple[list[int], list[int]] = ([], [])
        for index, e in enumerate(events):
            known = self.known.get((e.id, publisher)) or self.known.get((e.id, None))
            if known is not None:
                expected[1].append(index)
            else:
                offset = len(self.log) + len(self.group) + 1
                self.group.append(Kept(self.now, e.id, Record(offset, e.user, e.body), e.state, publisher))
                known = self.known[e.id, publisher] = (self.now, offset)
            expected[0].append(known[1])
        assert self.journal.append(events, self.now, publisher) == expected

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 30.0]))
    def commit(self, seconds: float) -> None:
        self.now += seconds
        self.journal.commit(self.now)
        self.log += self.group
        self.group = []
        self.known = {id: known for id, known in self.known.items() if known[0] >= self.now - WINDOW}

    @rule(name=st.sampled_from(["ring", "x"]), value=st.binary(max_size=3))
    def note(self, name: str, value: bytes) -> None:
        self.journal.put_metadata_item(name, value)
        self.notes[name] = value

    @rule(back=st.integers(0, MAX_EVENTS + 5), limit=st.integers(1, 30))
    def read(self, back: int, limit: int) -> None:
        after = max(len(self.log) - back, self.journal.start_offset)
        assert list(self.journal.read(after, limit)) == [r for r in self.kept if r.offset > after][:limit]

    @rule(after=st.integers(0, 60), more=st.integers(0, 60), limit=st.integers(1, 9), is_descending=st.booleans())
    def read_beside(self, after: int, more: int, limit: int, is_descending: bool) -> None:
        """As another thread reads it."""
        reader = self.journal.open_reader()
        upto = after + more
        with reader.hold():
            kept = [kept for kept in self.log[-MAX_EVENTS:] if after < kept.record.offset <= upto]
            wanted = [kept.record for kept in (kept[::-1] if is_descending else kept)]
            assert list(reader.read(after, upto, limit, is_descending=is_descending)) == wanted[:limit]
            assert list(reader.read_at(range(after + 1, upto + 1))) == [kept.record for kept in kept]
            assert [reader.read_time(kept.record.offset) for kept in kept] == [kept.at for kept in kept]
            whole = self.log[-MAX_EVENTS:]
            assert reader.bounds() == Bounds(self.journal.start_offset, len(self.log))
            for at in {kept.at for kept in whole} | {0.0, 1e9}:
                before = [kept.record.offset for kept in whole if kept.at < at]
                assert find_last_before(reader, at) == (before[-1] if before else self.journal.start_offset)
        reader.close()

    @rule(user=st.sampled_from(["ann", "bob", "eve"]), after=st.integers(0, 60), more=st.integers(0, 60))
    def read_personal(self, user: str, after: int, more: int) -> None:
        found = [r for r in self.kept if r.user == user and after < r.offset <= after + more]
        assert list(self.journal.read_user(user, after, after + more, 5)) == found[:5]

    @rule(back=st.integers(0, 10), limit=st.integers(1, 5))
    def states(self, back: int, limit: int) -> None:
        upto = len(self.log) - back
        newest = {kept.state: kept.record for kept in self.log if kept.state is not None}
        found = {r.offset: (s, r) for s, r in newest.items() if self.journal.start_offset < r.offset <= upto}
        sized = [SizedState(at, type_of_state(s), len(r.body)) for at, (s, r) in found.items()]
        expected = [found[at][1] for at in choose_states(sized, limit, 40)]
        assert list(self.journal.latest_states(upto, limit, 40)) == expected

    @invariant()
    def stands_where_it_should(self) -> None:
        journal = self.journal
        assert (journal.epoch, journal.last_offset, journal.pending_count) == ("epoch", len(self.log), len(self.group))
        assert journal.start_offset == max(0, len(self.log) - MAX_EVENTS)
        assert {name: journal.get_metadata_item(name) for name in self.notes} == self.notes


class OnDisk(InMemory):
    """The same, and the disk fills up, and the process starts again."""

    def begin(self) -> Journal:
        self.patch = mock.patch.multiple(sqlite_journal, TAIL_RECORDS=TAIL)
        self.patch.start()
        self.folder = Path(tempfile.mkdtemp())
        return self.open()

    def open(self) -> Journal:
        return on_disk(self.folder / "journal.sqlite3", MAX_EVENTS, WINDOW, self.now)

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """The open group is lost, nothing else is; ids are known again as far as their records are kept."""
        before = self.journal
        if not clean:  # what a killed process leaves behind: a WAL that was not copied into the file
            aside = self.folder / "aside"
            shutil.copytree(self.folder, aside)
            before.close()
            for part in aside.iterdir():
                part.replace(self.folder / part.name)
            aside.rmdir()
        before.close()
        self.group = []
        self.journal = self.open()
        self.known = {
            (kept.id, None): (kept.at, kept.record.offset)
            for kept in self.log[-MAX_EVENTS:]
            if kept.at >= self.now - WINDOW
        }

    @precondition(lambda self: self.group)
    @rule()
    def commit_without_room(self) -> None:
        """The group is forgotten, its ids too, and everything else stays as it is."""
        with no_room(), capture_logs(), pytest.raises(JournalUnavailable):
            self.journal.commit(self.now)
        for kept in self.group:
            del self.known[kept.id, kept.publisher]
        self.group = []
        self.now += 2.0  # for a moment nothing is trimmed

    def teardown(self) -> None:
        self.journal.close()
        self.patch.stop()
        shutil.rmtree(self.folder)


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can be written: what a full disk is to SQLite, with another number of the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)
