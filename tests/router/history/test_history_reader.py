"""Questions about history at the router: what a part holds, whatever is written, trimmed and lost meanwhile."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from structlog.testing import capture_logs

from solowire.backplane.messages import HistoryBound, HistoryClause, HistoryRequest, HistoryResponse, PublishedEvent
from solowire.model.condition_match import meets_conditions
from solowire.model.events import Delivery, Event, Priority, encode_event
from solowire.router.history import attribute_index, history_reader, index_terms, open_segment
from solowire.router.history.history_reader import HistoryReader
from solowire.router.history.index_terms import TERM_CHARACTERS
from solowire.router.log.journal import Journal, MemoryJournal
from solowire.router.log.sqlite_journal import SqliteJournal
from tests.support.factories import event

ZONES = ["example.com", "a.example.com", "b.a.example.com", "xample.com", "example.org", "."]
TYPES = ["record_updated", "custom.a", "custom.b", "security_alert"]
USERS = ["ann", "bob"]
MAX_EVENTS = 40


class Kept(NamedTuple):
    offset: int
    at: float
    owner: str | None
    event: Event


def make_event(number: int, name: str, zone: str | None) -> Event:
    data: dict[str, Any] = {"zone": zone} if zone is not None else {}
    if name == "record_updated":
        data |= {"name": f"n{number % 3}", "type": "A"}
        data.setdefault("zone", "none.test")
    if name == "security_alert":
        data |= {"alert_type": "x", "severity": ["low", "high"][number % 2], "message": "m"}
    try:
        return event(name, data, id=f"id-{number}")
    except Exception:
        return event("custom.a", {"zone": zone} if zone else {}, id=f"id-{number}")


def is_wanted(made: Event, clauses: list[HistoryClause] | None) -> bool:
    """As the words of HistoryClause have it, by the code that judges live events."""
    return clauses is None or any(
        (
            not clause.types
            or made.type in clause.types
            or ("custom.*" in clause.types and made.type.startswith("custom."))
        )
        and meets_conditions(
            made.attributes, tuple((name, frozenset(values), names) for name, values, names in clause.conditions)
        )
        for clause in clauses
    )


CLAUSES = st.none() | st.lists(
    st.builds(
        HistoryClause,
        st.lists(st.sampled_from([*TYPES, "custom.*"]), max_size=2, unique=True),
        st.lists(
            st.tuples(st.just("zone"), st.lists(st.sampled_from(ZONES), min_size=1, max_size=6), st.just(True)),
            max_size=1,
        )
        | st.just([("severity", ["high"], False)]),
    ),
    max_size=2,
)


class InMemory(RuleBasedStateMachine):
    """A journal and its reader beside a list of all that was ever kept."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch.multiple(
                attribute_index, SEGMENT_EVENTS=8, SEGMENT_BYTES=2000, FEW_PLACES=1, MAX_PLACES=2, MAX_BROAD=3
            ),
            mock.patch.multiple(history_reader, READ_RECORDS=3, STEP_RECORDS=5),
            mock.patch.multiple(index_terms, SHARED_PLACES=3),
            mock.patch.multiple(open_segment, FEW_NAMES=2),
        ]
        for patch in self.patches:
            patch.start()
        self.folder = Path(tempfile.mkdtemp())
        self.index_path: Path | None = self.folder / "index.sqlite3"
        self.log: list[Kept] = []
        self.now = 1000.0
        self.clock = 0.0
        self.journal = self.open_journal()
        self.reader = self.open_reader()

    def open_journal(self) -> Journal:
        self.index_path = None
        return MemoryJournal("epoch", max_events=MAX_EVENTS, max_bytes=10**9, window=0)

    def open_reader(self) -> HistoryReader:
        return HistoryReader(self.journal.open_reader(), "epoch", self.index_path, lambda: self.clock)

    @property
    def start(self) -> int:
        return self.journal.start_offset

    @rule(
        made=st.lists(
            st.tuples(st.sampled_from(TYPES), st.none() | st.sampled_from(ZONES), st.none() | st.sampled_from(USERS)),
            max_size=12,
        ),
        seconds=st.sampled_from([0.0, 1.0]),
    )
    def publish(self, made: list[tuple[str, str | None, str | None]], seconds: float) -> None:
        self.now += seconds
        events = []
        for name, zone, owner in made:
            offset = len(self.log) + 1
            one = make_event(offset, name, zone)
            self.log.append(Kept(offset, self.now, owner, one))
            events.append(PublishedEvent(one.id, owner, encode_event(one)))
        self.journal.append(events, self.now)
        self.journal.commit(self.now)

    @rule(steps=st.integers(1, 6))
    def follow(self, steps: int) -> None:
        for _ in range(steps):
            if not self.reader.follow_log():
                break

    @rule()
    def restart(self) -> None:
        self.reader.close()
        self.reader = self.open_reader()

    @rule(
        user=st.sampled_from([*USERS, "eve"]),
        clauses=CLAUSES,
        since=st.none() | st.integers(0, 50),
        until=st.none() | st.integers(0, 50),
        is_descending=st.booleans(),
        limit=st.integers(1, 7),
    )
    def ask(
        self,
        user: str,
        clauses: list[HistoryClause] | None,
        since: int | None,
        until: int | None,
        is_descending: bool,
        limit: int,
    ) -> None:
        """Bounds are counted back from the newest. All parts together are what is wanted, in order."""
        last = len(self.log)
        low = None if since is None else HistoryBound("epoch", max(0, last - since))
        high = None if until is None else HistoryBound("epoch", max(0, last - until))
        found: list[int] = []
        while True:
            part = self.reader.answer_question(HistoryRequest(1, user, low, high, is_descending, clauses, limit))
            if low is not None and (low.offset or 0) < self.start:
                assert (part.refusal, part.start) == ("retention", self.start)
                return
            assert part.refusal is None
            assert len(part.events) <= limit
            found += [offset for offset, _ in part.events]
            low, high = HistoryBound("epoch", part.start), HistoryBound("epoch", part.end)
            if is_descending:
                high = HistoryBound("epoch", part.reached)
            else:
                low = HistoryBound("epoch", part.reached)
            if (low.offset or 0) >= (high.offset or 0):
                break
        first = self.start if since is None else max(0, last - since)
        end = last if until is None else max(0, last - until)
        wanted = [
            kept.offset for kept in self.log[first:end] if kept.owner in (None, user) and is_wanted(kept.event, clauses)
        ]
        assert found == (wanted[::-1] if is_descending else wanted)

    @rule(back=st.integers(0, 3), until_back=st.integers(0, 3))
    def ask_by_time(self, back: int, until_back: int) -> None:
        since, until = self.now - back, self.now - until_back
        part = self.reader.answer_question(
            HistoryRequest(1, "ann", HistoryBound(at=since), HistoryBound(at=until), False, None, 1000)
        )
        kept = self.log[self.start :]
        if self.start and since <= self.log[self.start - 1].at:
            assert part.refusal == "retention"
            return
        wanted = [k.offset for k in kept if since <= k.at < until and k.owner in (None, "ann")]
        assert [offset for offset, _ in part.events] == wanted

    def teardown(self) -> None:
        self.reader.close()
        self.journal.close()
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.folder)


class OnDisk(InMemory):
    """The same, and the index is lost, cut, or of another log."""

    def open_journal(self) -> Journal:
        return open_sqlite(self.folder / "journal.sqlite3")

    @rule()
    def lose_index(self) -> None:
        self.reader.close()
        assert self.index_path is not None
        self.index_path.unlink(missing_ok=True)
        self.reader = self.open_reader()

    @rule()
    def damage_index(self) -> None:
        self.reader.close()
        assert self.index_path is not None
        if self.index_path.exists():
            self.index_path.write_bytes(b"this is no index" * 300)
        self.reader = self.open_reader()


def open_sqlite(path: Path, max_events: int = MAX_EVENTS) -> SqliteJournal:
    return SqliteJournal(
        path, new_epoch="epoch", max_age=1e9, max_events=max_events, max_bytes=2**30, window=0, now=0.0
    )


class Unindexed(InMemory):
    """Nothing is looked up by zone: it is judged event by event."""

    def open_reader(self) -> HistoryReader:
        return HistoryReader(
            self.journal.open_reader(), "epoch", self.index_path, lambda: self.clock, frozenset({"zone"})
        )


TestUnindexed = Unindexed.TestCase
TestUnindexed.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


# --------------------------------------------------------------------------------------- what examples show


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    made = open_sqlite(tmp_path / "journal.sqlite3", max_events=1000)
    yield made
    made.close()


def publish(journal: Journal, *events: Event, at: float = 0.0) -> None:
    journal.append([PublishedEvent(one.id, one.user, encode_event(one)) for one in events], at)
    journal.commit(at)


def ask(reader: HistoryReader, *clauses: HistoryClause, **more: Any) -> HistoryResponse:
    question = HistoryRequest(1, "ann", None, None, False, list(clauses) or None, 1000)
    for name, value in more.items():
        setattr(question, name, value)
    return reader.answer_question(question)


def offsets(part: HistoryResponse) -> list[int]:
    return [offset for offset, _ in part.events]


def follow(reader: HistoryReader) -> None:
    while reader.follow_log():
        pass


def test_an_attribute_that_is_looked_up_by_from_now_on_is_found_in_what_is_old(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    """The index is made anew: the old one has no word of it, and would say that there is nothing."""
    with mock.patch.multiple(attribute_index, SEGMENT_EVENTS=4):
        publish(journal, *(make_event(n, "custom.a", "example.com" if n % 3 else "other.org") for n in range(1, 11)))
        wanted = HistoryClause(["custom.a"], [("zone", ["other.org"], True)])
        for unindexed in (frozenset({"zone"}), frozenset[str]()):
            reader = HistoryReader(journal.open_reader(), "epoch", tmp_path / "index", lambda: 0.0, unindexed)
            follow(reader)
            assert offsets(ask(reader, wanted)) == [3, 6, 9]
            reader.close()


def test_a_bound_of_another_epoch_or_of_the_future_is_refused(journal: SqliteJournal) -> None:
    """A cursor of a log that was lost, or of what isn't there yet, is never taken for one of this log."""
    publish(journal, event(id="1"))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    assert ask(reader, since=HistoryBound("other", 1)).refusal == "epoch"
    assert ask(reader, until=HistoryBound("other", 1)).refusal == "epoch"
    refused = ask(reader, since=HistoryBound("epoch", 2))
    assert (refused.refusal, refused.end) == ("future", 1)
    reader.close()


def test_after_a_quiet_time_the_last_hour_is_whole(tmp_path: Path) -> None:
    """What was trimmed is older than the question: nothing is missing, though no older record is kept."""
    memory = MemoryJournal("epoch", max_events=2, max_bytes=10**9, window=0)
    for journal in (memory, open_sqlite(tmp_path / "journal.sqlite3", max_events=2)):
        for n, at in enumerate([10.0, 20.0, 90.0, 95.0]):
            publish(journal, event(id=f"{n}"), at=at)
        reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
        for since in (20.1, 50.0, 90.0):
            found = ask(reader, since=HistoryBound(at=since))
            assert (found.refusal, offsets(found)) == (None, [3, 4])
        for since in (10.0, 20.0):
            assert ask(reader, since=HistoryBound(at=since)).refusal == "retention"
        assert offsets(ask(reader, since=HistoryBound(at=91.0))) == [4]
        reader.close()
        journal.close()


def test_an_index_reads_no_more_than_it_finds(journal: SqliteJournal) -> None:
    """Of a thousand events one is read, if one is what is asked for."""
    publish(journal, *(event("custom.a", {"zone": f"z{n}.example"}, id=f"{n}") for n in range(1000)))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    follow(reader)
    assert reader.indexed_offset == 1000
    read = mock.Mock(side_effect=reader._journal.read_at)
    with mock.patch.object(reader._journal, "read_at", read):
        part = ask(reader, HistoryClause(["custom.*"], [("zone", ["z7.example"], True)]))
    assert offsets(part) == [8]
    assert [list(call.args[0]) for call in read.call_args_list] == [[8]]
    reader.close()


def test_what_is_nearly_everywhere_is_looked_up_once(journal: SqliteJournal) -> None:
    """An answer has many parts, and each would find out anew that its condition parts nothing."""
    with mock.patch.multiple(attribute_index, SEGMENT_EVENTS=100, MAX_PLACES=25):
        zones = ("rare.org" if n == 50 else "a.example" for n in range(100))
        publish(journal, *(event("custom.a", {"zone": zone, "n": n}, id=f"{n}") for n, zone in enumerate(zones)))
        reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
        follow(reader)
        index = reader._index
        assert index is not None
        looked_up: list[bytes] = []
        listing = index._list_places

        def list_places(segment: int, first: bytes, below: bytes | None = None) -> Iterator[Sequence[int]]:
            looked_up.append(first)
            return listing(segment, first, below)

        with mock.patch.object(index, "_list_places", list_places):
            everywhere = HistoryClause([], [("zone", ["example"], True)])
            for first in range(0, 99, 33):
                part = ask(reader, everywhere, since=HistoryBound("epoch", first), limit=33)
                assert len(part.events) == 33
            assert len(looked_up) == 1
            # With another condition that parts much, it is that one which finds.
            both = HistoryClause(["custom.*"], [("zone", ["org"], True)])
            assert offsets(ask(reader, both)) == [51]
        reader.close()


def test_others_have_their_turn_between_two_reads(journal: SqliteJournal) -> None:
    """Whatever is asked for: no more than READ_RECORDS are read without a pause."""
    publish(journal, *(event("custom.a", {"zone": "a.example"}, id=f"{n}") for n in range(1000)))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    pauses = mock.Mock()
    question = HistoryRequest(1, "ann", None, None, False, [HistoryClause(["custom.b"])], 1000)
    assert reader.answer_question(question, pauses).events == []
    assert pauses.call_count >= 1000 // history_reader.READ_RECORDS
    reader.close()


@pytest.mark.parametrize("value", ["x" * 1000, "é" * 400, "\0", "a\0b", "%", "'", "😀" * 200])
def test_any_value_is_found(journal: SqliteJournal, value: str) -> None:
    """Whatever a value is made of, and however long it is: an event is found by it."""
    publish(journal, event("custom.a", {"topic": value}, id="1"), event("custom.a", {"topic": "other"}, id="2"))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    follow(reader)
    assert offsets(ask(reader, HistoryClause([], [("topic", [value], False)]))) == [1]
    reader.close()


def test_names_that_are_cut_are_found_with_all_beneath_them(journal: SqliteJournal) -> None:
    """A name longer than a term may be is found by itself, and by every name above it."""
    name = ".".join(["label" * 8] * 5)
    assert len(name) > TERM_CHARACTERS
    publish(journal, event("custom.a", {"zone": f"sub.{name}"}, id="1"))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    follow(reader)
    for zone in (f"sub.{name}", name, "label" * 8, "."):
        assert offsets(ask(reader, HistoryClause([], [("zone", [zone], True)]))) == [1], zone
    reader.close()


def test_what_is_no_event_stops_nothing(journal: SqliteJournal) -> None:
    """A record that can't be decoded is passed over by the index, and the ones behind it are found."""
    journal.append([PublishedEvent("1", None, b"\xff\x00no event"), PublishedEvent("2", None, b"")], 0.0)
    publish(journal, event("custom.a", {"zone": "example.com"}, id="3"))
    reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
    clause = HistoryClause(["custom.a"], [("zone", ["example.com"], True)])
    assert offsets(ask(reader, clause)) == [3]
    follow(reader)
    assert offsets(ask(reader, clause)) == [3]
    reader.close()


def test_an_older_copy_of_the_log_has_its_own_index(tmp_path: Path) -> None:
    """Where a backup has taken the log's place, offsets mean other events: the index of before is not believed."""
    path, index = tmp_path / "journal.sqlite3", tmp_path / "index.sqlite3"
    with mock.patch.object(attribute_index, "SEGMENT_EVENTS", 4):
        journal = open_sqlite(path)
        publish(journal, event(id="0"))
        journal.close()
        shutil.copy(path, tmp_path / "backup")
        journal = open_sqlite(path)
        publish(journal, *(event("custom.a", {"zone": "before.test"}, id=f"b{n}") for n in range(11)), at=1.0)
        reader = HistoryReader(journal.open_reader(), "epoch", index, lambda: 0.0)
        follow(reader)
        reader.close()
        journal.close()
        shutil.copy(tmp_path / "backup", path)
        journal = open_sqlite(path)
        publish(journal, *(event("custom.a", {"zone": "after.test"}, id=f"a{n}") for n in range(11)), at=2.0)
        reader = HistoryReader(journal.open_reader(), "epoch", index, lambda: 0.0)
        follow(reader)
        found = ask(reader, HistoryClause([], [("zone", ["after.test"], True)]))
        assert offsets(found) == list(range(2, 13))
        reader.close()
        journal.close()


def test_an_index_that_fails_is_made_anew_and_questions_are_answered(journal: SqliteJournal, tmp_path: Path) -> None:
    """An error of its disk costs time: each record is looked at, until the index is there again."""
    now = 0.0
    publish(journal, *(event("custom.a", {"zone": f"z{n % 9}.test"}, id=f"{n}") for n in range(100)))
    reader = HistoryReader(journal.open_reader(), "epoch", tmp_path / "index.sqlite3", lambda: now)
    clause = HistoryClause([], [("zone", ["z3.test"], True)])
    with capture_logs() as logs:
        with mock.patch.object(
            attribute_index.AttributeIndex, "add_records", side_effect=sqlite3.OperationalError("full")
        ):
            assert not reader.follow_log()
        assert [line["event"] for line in logs] == ["history_index_lost"]
        assert len(offsets(ask(reader, clause))) == 11
        assert not reader.follow_log()
        assert (reader.indexed_offset, reader.index_error_count) == (0, 1)
        now = history_reader.REBUILD_SECONDS
        follow(reader)
    assert reader.indexed_offset == 100
    assert len(offsets(ask(reader, clause))) == 11
    reader.close()


def test_the_index_is_trimmed_with_the_log(tmp_path: Path) -> None:
    """Segments of which the log has nothing any more go, one with each step, and their room is used again."""
    with mock.patch.object(attribute_index, "SEGMENT_EVENTS", 8):
        journal = open_sqlite(tmp_path / "journal.sqlite3", max_events=20)
        reader = HistoryReader(journal.open_reader(), "epoch", tmp_path / "index.sqlite3", lambda: 0.0)
        for first in range(0, 200, 10):
            publish(journal, *(event("custom.a", {"zone": "z.test"}, id=f"{first + n}") for n in range(10)))
            follow(reader)
        with sqlite3.connect(tmp_path / "index.sqlite3") as db:
            kept = db.execute("SELECT start, last FROM segments").fetchall()
            assert {start for [start] in db.execute("SELECT DISTINCT segment FROM postings")} == {s for s, _ in kept}
        db.close()
        assert kept == [(176, 184), (184, 192), (192, 200)]
        reader.close()
        journal.close()


def test_an_index_that_the_log_has_left_behind_begins_anew(tmp_path: Path) -> None:
    """Where a version without an index has gone on with the log for long, nothing of the old index is of use."""
    with mock.patch.object(attribute_index, "SEGMENT_EVENTS", 8):
        journal = open_sqlite(tmp_path / "journal.sqlite3", max_events=20)
        publish(journal, *(event(id=f"{n}") for n in range(10)))
        reader = HistoryReader(journal.open_reader(), "epoch", tmp_path / "index.sqlite3", lambda: 0.0)
        follow(reader)
        reader.close()
        for first in range(10, 100, 10):
            publish(journal, *(event(id=f"{first + n}") for n in range(10)))
        reader = HistoryReader(journal.open_reader(), "epoch", tmp_path / "index.sqlite3", lambda: 0.0)
        follow(reader)
        assert reader.indexed_offset == 100
        assert len(offsets(ask(reader, HistoryClause(["custom.a"])))) == 20
        reader.close()
        journal.close()


def test_a_segment_that_takes_much_is_sealed_early(journal: SqliteJournal) -> None:
    """A publisher with a new value for each event makes the index no larger in memory, and all is found as before."""
    values = [f"{number}.{'x' * 60}.example" for number in range(500)]
    with mock.patch.object(attribute_index, "SEGMENT_BYTES", 20_000):
        publish(journal, *(event("custom.a", {"zone": value}, id=value) for value in values))
        reader = HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)
        largest = 0
        while reader.follow_log():
            assert reader._index is not None
            largest = max(largest, reader._index._open_segment.byte_count)
        assert largest < 20_000
        assert reader.indexed_offset == 500
        for number in (0, 250, 499):
            found = ask(reader, HistoryClause(["custom.a"], [("zone", [values[number]], True)]))
            assert offsets(found) == [number + 1]
        reader.close()


@pytest.mark.parametrize("length", [1, 60, 10_000])
def test_an_open_segment_knows_what_it_takes(length: int) -> None:
    """Its count is what Python takes for it, nearly: values of all sizes, new ones and known ones."""
    made = [
        encode_event(
            Event(
                id=f"{number}",
                type=f"custom.t{number % 500}",
                data=b"{}",
                priority=Priority.normal,
                delivery=Delivery.durable,
                timestamp="",
                attributes={"server": f"{number:0{length}}", "zone": f"{number // 3:0{length}}", "view": "same"},
            )
        )
        for number in range(1, 2001)
    ]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        segment = open_segment.OpenSegment(0)
        for number, body in enumerate(made, 1):
            segment.add_record(number, None, body)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 * taken <= segment.byte_count <= 1.5 * taken
