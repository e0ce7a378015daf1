"""Pacing: what is held back, when it is released, and who may lack it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.conflation import LATE_SECONDS, Conflator, SupersededStates
from solowire.fanout.recent_log import Entry
from solowire.model.events import Delivery, Event, Priority
from solowire.runtime.settings.shard_settings import ConflationSettings


def state(offset: int, key: str = "ns1", **more: Any) -> Entry:
    event = Event(
        id=str(offset),
        type=more.pop("type", "system_metrics"),
        data=b"{}",
        priority=more.pop("priority", Priority.normal),
        delivery=Delivery.state,
        timestamp="",
        key=key,
        **more,
    )
    return Entry(offset, event, CATALOG["system_metrics"])


def test_the_newest_is_released_when_the_interval_ends() -> None:
    """The first goes at once; of those that follow, the newest goes an interval later; those between never."""
    pacing = Conflator(ConflationSettings(interval_s=30.0))
    first, second, third = state(1), state(2), state(3)
    assert pacing.offer(first, 0.0) == (True, None)
    assert pacing.offer(second, 1.0) == (False, None)
    assert pacing.offer(third, 2.0) == (False, None)
    assert (first.is_deferred, second.is_deferred, third.is_deferred) == (False, True, True)
    assert pacing.due_at == 30.0
    assert pacing.due_values(29.9) == []
    assert pacing.due_values(30.0) == [(1, third, 1)]
    assert not third.is_deferred
    assert pacing.due_at is None
    assert pacing.offer(state(4), 40.0)[0] is False
    assert pacing.due_at == 60.0


def test_critical_ones_dont_wait() -> None:
    """A critical value overtakes what waits, and counts as sent."""
    pacing = Conflator(ConflationSettings(interval_s=30.0))
    pacing.offer(state(1), 0.0)
    waiting = state(2)
    pacing.offer(waiting, 1.0)
    assert pacing.offer(state(3, priority=Priority.critical), 20.0) == (True, SupersededStates(waiting, 1))
    assert pacing.offer(state(4), 25.0) == (False, None)
    assert pacing.due_values(30.0) == []
    [(_, released, _)] = pacing.due_values(50.0)
    assert released.offset == 4


def test_the_overtaken_are_told_at_once_where_other_feeds_accept_them() -> None:
    """A value is counted with those of the same feeds; if a filter could tell them apart they are told apart."""
    pacing = Conflator(ConflationSettings(interval_s=30.0))
    made = [state(n, attributes={"host": host}) for n, host in enumerate(("ns1", "ns1", "ns1", "ns2", "ns2"))]
    told = [pacing.offer(entry, float(n))[1] for n, entry in enumerate(made)]
    assert told == [None, None, None, SupersededStates(made[2], 2), None]
    assert pacing.due_values(30.0) == [(1, made[4], 1)]


def test_a_key_waits_once() -> None:
    """However often a critical value comes between, and however many keys are forgotten, little is due."""
    pacing = Conflator(ConflationSettings(interval_s=3600.0), max_keys=10)
    for n in range(1_000):
        pacing.offer(state(2 * n, priority=Priority.critical), float(n))
        pacing.offer(state(2 * n + 1), float(n))
    assert len(pacing._due) == 1
    assert [e.offset for _, e, _ in pacing.due_values(999.0 + 3600.0)] == [1_999]
    for n in range(1_000):
        for offset in (1, 2):
            pacing.offer(state(offset, f"key-{n}"), 5_000.0)
    assert len(pacing._due) <= 20
    assert len(pacing.due_values(5_000.0)) == 990
    assert len(pacing.due_values(5_000.0 + 3600.0)) == 10


@pytest.mark.parametrize(("name", "due"), [("bulk_progress", True), ("system_metrics", False)])
def test_each_type_has_its_interval(name: str, due: bool) -> None:
    """A type whose interval is 0 is never held back."""
    pacing = Conflator(ConflationSettings(interval_s=30.0, type_interval_s={"bulk_progress": 0.0}))
    pacing.offer(state(1, type=name), 0.0)
    assert pacing.offer(state(2, type=name), 0.0)[0] is due


def test_releases_are_numbered() -> None:
    """Who has seen all up to a number gets of each key the newest behind it."""
    pacing = Conflator(ConflationSettings(interval_s=10.0))
    for now in (0.0, 20.0):
        for key in ("a", "b"):
            pacing.offer(state(1, key), now)
            pacing.offer(state(2, key), now + 1)
        pacing.due_values(now + 15)
    assert pacing.newest_release == 4
    assert [number for number, _ in pacing.releases_since(0)] == [3, 4]
    assert [number for number, _ in pacing.releases_since(3)] == [4]
    assert pacing.releases_since(4) == []


def test_only_its_user_has_to_look_for_what_is_its_own() -> None:
    """A release for one user alone is known as such, so that others can share their frames."""
    pacing = Conflator(ConflationSettings(interval_s=10.0), max_keys=2)
    pacing.offer(state(1, user="alice"), 0.0)
    pacing.offer(state(2, user="alice"), 1.0)
    pacing.due_values(10.0)
    assert pacing.has_release_for("alice", 0)
    assert not pacing.has_release_for("alice", 1)
    assert not pacing.has_release_for("bob", 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(0, 7), st.sampled_from([Priority.normal, Priority.critical])),
        max_size=60,
    ),
    st.integers(1, 8),
)
def test_no_key_is_sent_too_often_and_none_loses_its_newest(
    made: list[tuple[int, float, Priority]], max_keys: int
) -> None:
    """Whatever comes, a key is sent once per interval unless critical, its newest in the end, and memory is bounded."""
    pacing = Conflator(ConflationSettings(interval_s=10.0), max_keys=max_keys)
    sent: dict[str, list[tuple[float, Entry]]] = {}
    newest: dict[str, Entry] = {}
    now = 0.0

    def send(entry: Entry) -> None:
        sent.setdefault(entry.event.key or "", []).append((now, entry))

    for offset, (key, pause, priority) in enumerate(made, 1):
        until = now + pause
        while pacing.due_at is not None and pacing.due_at <= until:
            now = max(now, pacing.due_at)
            for _, entry, _ in pacing.due_values(now):
                send(entry)
        now = until
        entry = newest[str(key)] = state(offset, str(key), priority=priority)
        if pacing.offer(entry, now)[0]:
            send(entry)
        assert len(pacing._keys) <= max_keys
        assert len(pacing._released) <= max_keys
    now += 100
    for _, entry, _ in pacing.due_values(now):
        send(entry)
    assert pacing.due_at is None
    for name, entry in newest.items():
        times = [at for at, e in sent[name] if e.event.priority is not Priority.critical]
        assert sent[name][-1][1] is entry
        assert [e.offset for _, e in sent[name]] == sorted(e.offset for _, e in sent[name])
        if max_keys > 5:
            assert all(later - earlier >= 10 - 1e-6 for earlier, later in pairwise(times))


@pytest.mark.parametrize("large", [10, 1000])
def test_what_is_held_back_is_bounded_in_bytes(large: int) -> None:
    """However large values are: those that have been quiet longest go out before their time, and none is lost."""
    size = state(1).size
    pacing = Conflator(ConflationSettings(interval_s=30.0), max_bytes=large * size)
    for n in range(2_000):
        pacing.offer(state(n, f"key-{n}"), 0.0)
        pacing.offer(state(10_000 + n, f"key-{n}"), 1.0)
        assert pacing._held_bytes <= large * size
    early = pacing.due_values(2.0)
    assert 2_000 - large <= len(early) <= 2_002 - 0.95 * large
    assert pacing._released_bytes == sum(e.size for _, e in pacing._released.values()) <= 2 * large * size
    assert len({e.offset for _, e, _ in [*early, *pacing.due_values(100.0)]}) == 2_000
    assert pacing._held_bytes == 0
    assert pacing.newest_forgotten_release == pacing.newest_release - len(pacing._released)


def test_as_many_releases_as_may_be_held_are_known_until_they_are_sent() -> None:
    """All that goes out at once is still there for those who are to get it."""
    size = state(1).size
    pacing = Conflator(ConflationSettings(interval_s=30.0), max_bytes=100 * size)
    for n in range(100):
        pacing.offer(state(n, f"key-{n}"), 0.0)
        pacing.offer(state(1_000 + n, f"key-{n}"), 1.0)
    for _ in range(2):
        seen = pacing.newest_release
        assert len(pacing.due_values(30.0)) == len(pacing.releases_since(seen))


def test_who_comes_back_soon_may_lack_what_was_held_back() -> None:
    """A state that came within an interval of the cursor may have been held back there; an older one was released."""
    pacing = Conflator(ConflationSettings(interval_s=30.0))
    entry = state(5)
    pacing.offer(entry, 1_000.0)
    for n in range(200):
        pacing.mark_position(5 + n, 1_000.0 + n)
    latest = [entry]
    assert list(pacing.possibly_missed(latest, 4)) == []  # it comes with what the client missed
    assert list(pacing.possibly_missed(latest, 5)) == [entry]
    assert list(pacing.possibly_missed(latest, 5 + 30)) == [entry]
    assert list(pacing.possibly_missed(latest, 5 + 30 + int(LATE_SECONDS) + 1)) == []
    assert list(Conflator(ConflationSettings(interval_s=30.0)).possibly_missed(latest, 100)) == [entry]
    assert list(Conflator(ConflationSettings(interval_s=0.0)).possibly_missed(latest, 5)) == []
    assert list(pacing.possibly_missed([state(5, priority=Priority.critical)], 5)) == []


def test_another_log_voids_what_was_held_back() -> None:
    """Nothing of an old epoch is released into a new one."""
    pacing = Conflator(ConflationSettings(interval_s=30.0))
    pacing.offer(state(1), 0.0)
    pacing.offer(state(2), 1.0)
    pacing.reset()
    assert pacing.due_at is None
    assert pacing.due_values(100.0) == []
