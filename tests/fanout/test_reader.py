"""The states of a reader: what may follow what, and what is done in each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.fanout.reader import (
    RECOVERY_SECONDS,
    TRANSITIONS,
    Action,
    FeedHead,
    Reader,
    ReaderState,
    Signal,
    make_counts,
    subtract_counts,
)

counts = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(-3, 3)).map(make_counts)


def action_of(reader: Reader) -> Action:
    """A call, since it changes while nothing is written to it."""
    return reader.next_action


def test_a_reader_that_is_busy_goes_once_around() -> None:
    """Busy, free again, slow, level, and after a while as if nothing had been."""
    reader = Reader(3)
    assert action_of(reader) is Action.share
    reader.leave_head(FeedHead(7, 0, 0, (), False), Signal.busy)
    assert (reader.offset, reader.was_busy, reader.next_action) == (7, True, Action.wait)
    reader.handle(Signal.writable)
    assert action_of(reader) is Action.read
    reader.handle(Signal.overfull)
    assert (reader.state, reader.next_action) == (ReaderState.SLOW, Action.compact)
    reader.handle(Signal.level)
    reader.was_busy = False
    assert (reader.state, reader.next_action) == (ReaderState.RECOVERING, Action.share)
    assert not reader.check_recovered(10.0, is_free=True)
    assert not reader.check_recovered(10.0 + RECOVERY_SECONDS / 2, is_free=True)
    assert reader.check_recovered(10.0 + RECOVERY_SECONDS, is_free=True)
    assert reader.state is ReaderState.CURRENT


def test_a_socket_that_is_found_busy_begins_the_wait_anew() -> None:
    """Who is slow has to be level for all of the time."""
    reader = Reader()
    for signal in (Signal.busy, Signal.writable, Signal.overfull, Signal.level):
        reader.handle(signal)
    assert not reader.check_recovered(0.0, is_free=True)
    assert not reader.check_recovered(0.9, is_free=False)
    assert not reader.check_recovered(1.0, is_free=True)
    assert not reader.check_recovered(1.9, is_free=True)
    assert reader.check_recovered(2.0, is_free=True)


def test_answers_go_before_the_log() -> None:
    """What waits for a reader is sent first, also to one that is closed then."""
    reader = Reader()
    reader.handle(Signal.busy)
    reader.queue_replies(["an answer", iter(["one", "two"])])
    assert action_of(reader) is Action.send_replies
    taken = [reader.take_reply() for _ in range(4)]
    assert taken == [("an answer", False), ("one", True), ("two", True), (None, True)]
    assert (reader.pending_replies, reader.next_action) == ((), Action.wait)
    reader.queue_replies(["another"])
    reader.handle(Signal.lost)
    assert action_of(reader) is Action.send_replies
    reader.take_reply()
    assert action_of(reader) is Action.close


def test_who_is_lost_stays_so() -> None:
    """Whatever comes, what was lost is lost."""
    assert all(states[Signal.lost] is ReaderState.LOST for states in TRANSITIONS.values())
    assert set(TRANSITIONS[ReaderState.LOST]) == set(Signal)
    assert set(TRANSITIONS[ReaderState.LOST].values()) == {ReaderState.LOST}


@pytest.mark.parametrize(("state", "signal"), [(s, n) for s in ReaderState for n in Signal if n not in TRANSITIONS[s]])
def test_what_the_table_does_not_have_is_a_fault(state: ReaderState, signal: Signal) -> None:
    """A signal that can't come in a state says so, and changes nothing."""
    reader = Reader()
    reader.state = state
    with pytest.raises(ValueError, match=rf"{state.name} can't be told: {signal.name}"):
        reader.handle(signal)
    assert reader.state is state


@given(counts, counts)
def test_counts_are_values(some: tuple[tuple[str, int], ...], others: tuple[tuple[str, int], ...]) -> None:
    """What is taken away and put back is the same again, and equal counts are one key."""
    back = subtract_counts(subtract_counts(some, others), subtract_counts((), others))
    assert back == some
    assert {some: 1}[back] == 1
