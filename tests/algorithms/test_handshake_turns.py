"""Whose handshake is next."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from solowire.algorithms.handshake_turns import HandshakeTurns
from solowire.algorithms.token_bucket import Rate

BUDGET = Rate(500.0, 2000.0)


def make_turns(**waiting: str) -> HandshakeTurns[str, str]:
    """Items by address, as letters."""
    turns: HandshakeTurns[str, str] = HandshakeTurns(BUDGET)
    for address, items in waiting.items():
        for item in items:
            turns.add(address, item, item)
    return turns


def take_all(turns: HandshakeTurns[str, str], now: float, cost: float = 0.0) -> str:
    found = ""
    while (turn := turns.take_next(now)) is not None:
        turns.charge(turn[0], now, cost)
        found += turn[1]
    return found


def test_addresses_take_turns_and_each_has_its_own_order() -> None:
    assert take_all(make_turns(a="abc", b="x", c="uv"), 0.0) == "axubvc"


def test_who_waits_already_waits_once() -> None:
    turns = make_turns(a="aab", b="x")
    turns.add("a", "a", "again")
    assert len(turns) == 3
    assert take_all(turns, 0.0) == "axb"


def test_an_address_without_a_budget_rests_and_others_go_on() -> None:
    """It comes back when its budget does, also if it asks for more meanwhile."""
    turns = make_turns(a="abcd")
    assert take_all(turns, 10.0, cost=1.0) == "abc"  # 2 s at once, and the one that makes the debt
    turns.add("b", "x", "x")
    turns.add("a", "e", "e")
    assert turns.next_at() == 12.0
    assert take_all(turns, 10.0) == "x"
    assert take_all(turns, 11.9) == ""
    assert take_all(turns, 12.0, cost=1.0) == "d"
    assert turns.next_at() == 14.0
    assert take_all(turns, 14.0) == "e"
    assert turns.next_at() is None


def test_those_that_are_not_counted_have_no_budget() -> None:
    turns: HandshakeTurns[str, str] = HandshakeTurns(BUDGET)
    for item in "abcdef":
        turns.add("", item, item)
    assert take_all(turns, 0.0, cost=10.0) == "abcdef"


def test_what_is_discarded_leaves_nothing_behind() -> None:
    turns = make_turns(a="abcd", b="x")
    assert take_all(turns, 0.0, cost=1.0) == "axbc"
    for item in "dabx":
        turns.discard("a", item)
        turns.discard("b", item)
    assert len(turns) == 0
    assert turns.next_at() is None
    assert take_all(turns, 1000.0) == ""


class Turns(RuleBasedStateMachine):
    """Whatever comes, leaves and costs: nobody is lost, and nobody waits for another's budget."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: HandshakeTurns[int, int] = HandshakeTurns(BUDGET)
        self.now = 0.0
        self.waiting: dict[int, str] = {}
        self.debt: dict[str, float] = {}
        self.count = 0

    @rule(address=st.sampled_from(["a", "b", "c", ""]))
    def come(self, address: str) -> None:
        self.count += 1
        self.waiting[self.count] = address
        self.turns.add(address, self.count, self.count)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        self.turns.discard(self.waiting.pop(item), item)

    @rule(cost=st.floats(0.0, 3.0))
    def work(self, cost: float) -> None:
        turn = self.turns.take_next(self.now)
        free = {a for a in self.waiting.values() if not self.owes(a)}
        if turn is None:
            assert not free
            return
        address, item = turn
        assert self.waiting.pop(item) == address
        assert not any(other < item and a == address for other, a in self.waiting.items())
        self.turns.charge(address, self.now, cost)
        self.debt[address] = max(self.debt.get(address, 0.0), self.now) + cost / 0.5

    @rule(seconds=st.floats(0.1, 10.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def owes(self, address: str) -> bool:
        return bool(address) and self.debt.get(address, 0.0) - self.now > 4.0 - 1e-3

    @invariant()
    def nobody_is_lost(self) -> None:
        assert len(self.turns) == len(self.waiting)


TestTurns = Turns.TestCase
