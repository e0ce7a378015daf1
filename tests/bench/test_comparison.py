"""What a comparison with other servers says when one of them is not there, or not to the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from bench import comparison, measure, peers
from bench.cases import side_by_side, side_by_side_users
from bench.comparison import (
    AHEAD_AT_ONCE,
    AHEAD_MERGED,
    OURS_AT_ONCE,
    OURS_MERGED,
    compare_sides,
    connect_sides,
    hold_lead,
)
from bench.machine import Memory
from bench.measure import Round
from bench.publisher import Wire
from bench.receiver import Opened, Plan, Receiver
from bench.registry import AHEAD, Benchmark, Length
from bench.report import Case, render_markdown
from bench.server import Server
from bench.solowire_system import Solowire

RATE = "deliveries per CPU-second"


def rounds(*values: float) -> list[Round]:
    return [Round({RATE: value}) for value in values]


def compared(found: dict[str, list[Round]], wanted: int) -> Case:
    case = Case("peers", "about")
    compare_sides(case, {Solowire.name: rounds(*[80.0] * wanted), **found}, RATE, [RATE], " × 100", wanted)
    return case


def test_the_lead_is_taken_round_by_round() -> None:
    """A peer's row has how often Solowire's figure is its own, with and without Solowire's gathering."""
    case = compared({"NATS": rounds(10.0, 20.0), OURS_AT_ONCE: rounds(40.0, 10.0)}, 2)
    nats = case.row("NATS × 100")
    assert nats is not None
    assert (nats.measures[AHEAD].high, nats.measures[AHEAD].low) == (8.0, 4.0)
    assert (nats.measures[AHEAD_AT_ONCE].high, nats.measures[AHEAD_AT_ONCE].low) == (4.0, 0.5)
    assert not case.is_void


def test_a_second_row_of_ours_has_a_target_of_its_own() -> None:
    """Each lead is held by itself, and one whose row is missing is told as left out, beside the other."""
    case = compared({OURS_MERGED: rounds(20.0), "NATS": rounds(50.0)}, 1)
    hold_lead(case, "NATS", " × 100", at_most=1 / 3)
    hold_lead(case, "NATS", " × 100", AHEAD_MERGED, at_most=0.5)
    hold_lead(case, "NATS", " × 100", AHEAD_AT_ONCE, at_most=0.5)
    assert [(target.found, target.is_met) for target in case.targets] == [
        ("1.60", False),
        ("0.40", True),
        ("left out: its case says why", None),
    ]


def test_a_round_too_few_is_a_fault() -> None:
    """A peer that failed in its third round has no valid row, and no target counts as met by it."""
    case = compared({"NATS": rounds(10.0, 10.0)}, 3)
    hold_lead(case, "NATS", " × 100", at_least=2.0)
    assert case.is_void
    assert case.rows[1].faults == ["it failed after 2 of 3 rounds"]
    assert [target.is_met for target in case.targets] == [None]


def test_a_void_row_of_ours_voids_what_is_compared_with_it() -> None:
    """A lead over a valid row says nothing if it is the lead of a round that does not count; the other lead stands."""
    ours = [Round({RATE: 80.0}, ["an event was lost"])]
    found = {Solowire.name: ours, OURS_AT_ONCE: rounds(40.0), "NATS": rounds(10.0)}
    case = Case("peers", "about")
    compare_sides(case, found, RATE, [RATE], " × 100", 1)
    hold_lead(case, "NATS", " × 100", at_least=2.0)
    hold_lead(case, "NATS", " × 100", AHEAD_AT_ONCE, at_least=2.0)
    assert [target.is_met for target in case.targets] == [None, True]


def test_a_peer_that_is_left_out_keeps_its_target() -> None:
    """The page says that nothing was measured for it, instead of saying nothing."""
    case = compared({"NATS": []}, 2)
    hold_lead(case, "NATS", " × 100", at_least=2.0)
    hold_lead(case, "NATS", " × 100", at_most=1 / 3)
    assert [target.is_met for target in case.targets] == [None, None]
    page = render_markdown([case], {})
    assert f"| peers, NATS × 100: {AHEAD} | ≥ 2.00 | left out: its case says why | void |" in page
    assert f"| peers, NATS × 100: {AHEAD} | ≤ 0.33 | left out: its case says why | void |" in page


class Crowded(Solowire):
    name = "a crowd"
    sockets = 10_000_000


def test_a_peer_that_needs_too_many_sockets_is_left_out_with_the_reason() -> None:
    """The page says in a sentence how many it would need, and how many there may be; nothing is started."""
    case = Case("peers", "about")
    with contextlib.ExitStack() as stack:
        assert connect_sides(stack, case, [Crowded], 1000) == []
    [remark] = case.remarks
    assert remark.startswith("a crowd × 1,000 is left out: 10000000 sockets per user are 10,000,000,000 in one ")
    assert "open files at most" in remark


class Joined(Server):
    def command(self) -> list[str]:
        return []

    def plan(self, user: int) -> list[Plan]:
        return [Plan(user, b""), Plan(user, b"")]

    def wires(self, count: int) -> list[Wire]:
        return []


class Asked:
    """Stands for a receiver, and keeps what it is to open."""

    def open(self, plans: list[Plan]) -> Opened:
        self.plans = plans
        return Opened(True, len(plans), 0.0, [])


def test_a_slow_user_is_slow_on_all_its_sockets() -> None:
    """Each server's users are asked for by number, whatever its adapter."""
    server, asked = Joined(), Asked()
    server.connect(cast(Receiver, asked), 3, 4, slow=lambda n: n == 5)
    server.__exit__()
    assert [(plan.port, plan.slow) for plan in asked.plans] == [(n, n == 5) for n in (4, 4, 5, 5, 6, 6)]


class Paced:
    """Stands for a load by the clock, and keeps what it was asked for."""

    asked: ClassVar[list[tuple[float, ...]]] = []

    def __init__(self, per_second: float, *_: object) -> None:
        self.per_second = per_second

    def send(self, _: object, __: object, ___: object, count: int) -> Round:
        self.asked.append((count,))
        return Round({"CPU per event": 2000.0})

    def run(self, _: object, __: object, ___: object, seconds: float, rate: float) -> Round:
        self.asked.append((self.per_second, seconds, rate))
        return Round({"CPU per event": 500.0})


class Stalled(Joined):
    """A server that has cut off most of the slow ones and grows by a megabyte at a look, with a receiver of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[int] = []
        self.looks = 0

    def connect(self, receiver: Receiver, users: int, *_: object, **__: object) -> list[Opened]:
        self.came.append(users)
        return []

    def memory(self) -> Memory:
        self.looks += 1
        return Memory(10**6 * self.looks, 0, 0)

    def counts(self) -> Any:
        return SimpleNamespace(slow=50)

    def close_all(self) -> None:
        self.came.append(-1)


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stalled]:
    """One server, which stands for Solowire, and no real load."""
    server = Stalled()
    side = comparison.Side(Solowire.name, server, cast(Receiver, server))
    monkeypatch.setattr(peers, "PEERS", ())
    monkeypatch.setattr(side_by_side, "connect_sides", lambda *_, **__: [side])
    monkeypatch.setattr(comparison, "publishing", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(comparison, "Stream", Paced)
    monkeypatch.setattr(comparison, "SERVER_CORES", frozenset([0]))
    monkeypatch.setattr(Paced, "asked", [])
    yield server
    server.__exit__()


def test_a_server_is_given_what_it_can_do(stalled: Stalled) -> None:
    """The first round knows nothing; those after it are as long as asked for at the rate that the last one showed."""
    side = comparison.Side("a server", stalled, cast(Receiver, stalled))
    rates: dict[str, float] = {}
    for per_second in (100, 1000, 5000):
        comparison.stream_round(side, "a server", stalled.addressed, per_second, 10, 3.0, rates)
    assert Paced.asked == [(100,), (1000, 3.0, 500.0), (5000, 3.0, 2000.0)]


def test_slow_readers_come_for_a_round_alone(stalled: Stalled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round has slow readers anew, and says how many were cut off and by how much the server grew."""
    kept: dict[str, list[Round]] = {}
    monkeypatch.setattr(side_by_side, "compare_sides", lambda _, found, *__: kept.update(found))
    monkeypatch.setattr(side_by_side, "GONE_S", 0.0)
    side_by_side.peers_slow(Length(2, 0.1, 1, is_quick=True))
    assert stalled.came == [1000, -1] * 3
    values = [(one.values["slow ones cut off"], one.values["PSS growth, MB"]) for one in kept[Solowire.name]]
    assert values == [(150.0, 1.0)] * 2


def test_a_round_of_single_events_is_long_enough_to_be_judged(
    stalled: Stalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least twenty events, and as many as a server does in a second, so that a full core can be seen."""
    asked: list[int] = []

    def one(*arguments: Any) -> Round:
        asked.append(arguments[3])
        return Round({"events/s": 70.0, "deliveries per CPU-second": 1.0})

    monkeypatch.setattr(side_by_side, "single_round", one)
    monkeypatch.setattr(
        side_by_side, "WriteBaseline", lambda _: contextlib.nullcontext(SimpleNamespace(run=lambda *_: 1.0))
    )
    monkeypatch.setattr(stalled, "wires", lambda _: [SimpleNamespace(close=lambda: None)])
    monkeypatch.setattr(stalled, "last_frame", lambda: b"", raising=False)
    side_by_side.peers_single(Length(1, 0.1, 1, is_quick=True))
    assert asked == [20, 70] * 2


ROUNDS: dict[Benchmark, list[str]] = {
    side_by_side.peers_slow: ["events/s", "deliveries per CPU-second", "p99", "slow ones cut off", "PSS growth, MB"],
    side_by_side.peers_users: ["events/s", "CPU per event", "p50", "p99"],
    side_by_side.peers_ingest: ["events/s", "CPU per event", "request p50", "request p99"],
    side_by_side_users.peers_storm: ["users/s", "CPU per user", "p50", "p99", "sockets per user"],
    side_by_side_users.peers_idle: ["CPU of users, %", "CPU while idle, %", "heartbeats per user"],
}


@pytest.mark.parametrize("run", ROUNDS, ids=lambda run: run.name)
def test_a_comparison_is_measured(run: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any other server there is a row of ours with all that the case shows, and nothing was lost."""
    monkeypatch.setattr(peers, "PEERS", ())
    monkeypatch.setattr(measure, "MAX_LATE_MS", float("inf"))  # the tests beside this one have the cores, too
    monkeypatch.setattr(side_by_side, "USERS", 50)
    monkeypatch.setattr(side_by_side_users, "STORM_USERS", 250)
    for name in ("QUICK_IDLE_S", "FIRST_ASKED_S", "GONE_S"):
        monkeypatch.setattr(side_by_side_users, name, 0.5)
    case = run(Length(1, 0.3, 5, is_quick=True))
    [line] = case.rows
    assert set(ROUNDS[run]) <= set(line.measures)
    assert AHEAD not in line.measures or line.measures[AHEAD].median == 1.0
    assert not [fault for fault in line.faults if "core" not in fault], line.faults
