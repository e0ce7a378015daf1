"""The state of a forwarder: it changes as the picture shows, by several results and never by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from solowire.sources.forwarders.forwarder_state import (
    MIN_RESULTS,
    ForwarderLimits,
    ForwarderState,
    ProbeOutcome,
    Status,
    StatusChange,
)

LIMITS = ForwarderLimits(fail_count=3, recover_count=2, loss=20, servfail=20, rtt_ms=100, window_s=60)


def feed(state: ForwarderState, text: str, *, rtt_ms: float = 5.0, at: float = 0.0) -> list[StatusChange]:
    """One probe a second: `.` answered, `x` lost, `s` SERVFAIL, `r` refused."""
    outcomes = {
        ".": ProbeOutcome.answered,
        "x": ProbeOutcome.lost,
        "s": ProbeOutcome.servfail,
        "r": ProbeOutcome.refused,
    }
    changes = []
    for number, letter in enumerate(text):
        outcome = outcomes[letter]
        change = state.note_probe(outcome, at + number, rtt_ms=None if outcome is ProbeOutcome.lost else rtt_ms)
        changes += [change] if change is not None else []
    return changes


def statuses(text: str) -> list[str]:
    return [change.new.value for change in feed(ForwarderState(LIMITS), text)]


def test_it_begins_with_the_first_answer_or_after_some_failures() -> None:
    """One good answer is enough to begin with; for the contrary it takes `fail_count` results."""
    assert statuses(".") == ["healthy"]
    assert statuses("xx") == []
    assert statuses("xxx") == statuses("sss") == statuses("rxs") == ["unhealthy"]


def test_one_lost_datagram_changes_nothing() -> None:
    """Nor do two; three in a row do, and so do as many that resolve nothing."""
    assert statuses(".........x........xx........") == ["healthy"]
    assert statuses(".........xxx") == ["healthy", "unhealthy"]
    assert statuses(".........srs") == ["healthy", "unhealthy"]


def test_it_recovers_by_several_answers_in_a_row() -> None:
    """An answer now and then doesn't; `recover_count` do, and the outage is not held against it."""
    assert statuses(".xxx.x.x") == ["healthy", "unhealthy"]
    assert statuses(".xxx..") == ["healthy", "unhealthy", "healthy"]
    assert statuses(".xxx........") == ["healthy", "unhealthy", "healthy"]


def test_loss_that_goes_on_makes_it_degraded() -> None:
    """A fifth of the window is lost; it is healthy again when the share is well below that."""
    state = ForwarderState(LIMITS)
    changes = feed(state, "....x....x....x..x.." + "." * 60)
    assert [change.new.value for change in changes] == ["healthy", "degraded", "healthy"]
    assert changes[1].reason == "20 % of the probes got no answer"


def test_a_share_of_servfail_makes_it_degraded() -> None:
    """Refusals count with it, though the figure is of SERVFAIL alone."""
    state = ForwarderState(LIMITS)
    assert [change.new.value for change in feed(state, ".....s..r.")] == ["healthy", "degraded"]
    assert state.describe(9.0).servfail == 10.0


def test_slow_answers_make_it_degraded() -> None:
    """The 95th percentile counts; hysteresis keeps it from flapping."""
    state = ForwarderState(LIMITS)
    feed(state, "." * 10)
    changes = [state.note_probe(ProbeOutcome.answered, 10.0, rtt_ms=150.0) for _ in range(2)]
    assert changes[-1] is not None
    assert "150 ms" in changes[-1].reason
    assert state.status is Status.degraded
    between = [
        state.note_probe(ProbeOutcome.answered, 75.0 + n, rtt_ms=85.0) for n in range(20)
    ]  # the slow ones are over
    assert between == [None] * 20
    assert feed(state, "." * 10, at=150.0)[0].new is Status.healthy


def test_the_figures_are_those_of_the_window() -> None:
    """Percentiles by nearest rank, shares in percent; what is older than the window is gone."""
    state = ForwarderState(LIMITS)
    for n in range(1, 21):
        state.note_probe(ProbeOutcome.answered, 0.0, rtt_ms=float(n))
    feed(state, "xs", at=1.0, rtt_ms=21.0)
    figures = state.describe(2.0)
    assert (figures.rtt_p50_ms, figures.rtt_p95_ms, figures.rtt_ms) == (11.0, 20.0, 21.0)
    assert (figures.probes_count, round(figures.loss or 0, 2), round(figures.servfail or 0, 2)) == (22, 4.55, 4.55)
    empty = state.describe(1000.0)
    assert (empty.rtt_ms, empty.rtt_p50_ms, empty.loss, empty.probes_count) == (None, None, None, 0)


def test_what_is_in_doubt_is_asked_for_soon() -> None:
    """After a failure, while nothing is known, and while it comes back; not while it stays as it is."""
    state = ForwarderState(LIMITS)
    doubts = [state.is_in_doubt]
    for letter in ".xxxx..":
        feed(state, letter)
        doubts.append(state.is_in_doubt)
    assert doubts == [True, False, True, True, False, False, True, False]


class ForwarderMachine(RuleBasedStateMachine):
    """Whatever comes, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ForwarderState(LIMITS)
        self.now = 0.0
        self.outcomes: list[ProbeOutcome] = []
        self.before = Status.unknown

    @rule(outcome=st.sampled_from(ProbeOutcome), rtt_ms=st.floats(0, 10_000), after=st.floats(0, 90))
    def probe(self, outcome: ProbeOutcome, rtt_ms: float, after: float) -> None:
        self.now += after
        self.outcomes.append(outcome)
        told = self.state.note_probe(outcome, self.now, rtt_ms=None if outcome is ProbeOutcome.lost else rtt_ms)
        self.check(told)
        if told is not None and told.new is Status.unhealthy:
            assert all(each is not ProbeOutcome.answered for each in self.outcomes[-LIMITS.fail_count :])
        if told is not None and told.old is Status.unhealthy:
            assert all(each is ProbeOutcome.answered for each in self.outcomes[-LIMITS.recover_count :])

    @rule(rtt_ms=st.floats(0, 10_000), count=st.integers(1, 30))
    def answers(self, rtt_ms: float, count: int) -> None:
        for _ in range(count):
            self.probe(ProbeOutcome.answered, rtt_ms, 0.0)

    def check(self, told: StatusChange | None) -> None:
        assert (told is None) == (self.state.status is self.before)
        if told is not None:
            assert (told.old, told.new) == (self.before, self.state.status)
            assert told.reason
        self.before = self.state.status

    @invariant()
    def check_figures(self) -> None:
        figures = self.state.describe(self.now)
        for share in (figures.loss, figures.servfail):
            assert share is None or 0 <= share <= 100
        if figures.rtt_p50_ms is not None and figures.rtt_p95_ms is not None:
            assert figures.rtt_p50_ms <= figures.rtt_p95_ms
        failing = self.outcomes[-LIMITS.fail_count :]
        if len(failing) == LIMITS.fail_count and ProbeOutcome.answered not in failing:
            assert self.state.status is Status.unhealthy
        assert self.state.status is not Status.unknown or ProbeOutcome.answered not in self.outcomes


TestForwarderMachine = ForwarderMachine.TestCase


@given(st.lists(st.sampled_from(".x"), min_size=MIN_RESULTS, max_size=200))
def test_it_never_flaps_with_each_result(letters: list[str]) -> None:
    """Between two changes from or to unhealthy there are as many results as it takes."""
    state = ForwarderState(LIMITS)
    last = -LIMITS.recover_count
    for number, letter in enumerate(letters):
        for change in feed(state, letter, at=float(number)):
            if Status.unhealthy in (change.old, change.new) and change.old is not Status.unknown:
                assert number - last >= LIMITS.recover_count
                last = number
