"""Plans: the same from the same seed, within the run, and nothing that a supervisor would rightly give up on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import plan
from tests.chaos.plan import Disturbance

ALL = plan.parse_kinds(",".join(plan.ALL_KINDS))
PLANS = {"seed": st.integers(0, 2**32), "seconds": st.floats(1, 300), "shards": st.integers(1, 4)}


def test_a_seed_is_a_plan() -> None:
    """A failing seed replays; another seed is another plan."""
    assert plan.make(7, 120, 2, ALL) == plan.make(7, 120, 2, ALL)
    assert plan.make(7, 120, 2, ALL) != plan.make(8, 120, 2, ALL)


def test_two_minutes_hold_some_of_each() -> None:
    """Whatever the seed: each kind comes, and dozens in all."""
    for seed in range(20):
        made = plan.make(seed, 120, 2, ALL)
        assert {d.kind for d in made} == {"kill", "stop", "cut", "stall", "start", "end", "drain"}
        assert len(made) > 40


@given(**PLANS)
def test_it_keeps_within_the_run(seed: int, seconds: float, shards: int) -> None:
    """Times grow, and what lasts ends before the run does."""
    made = plan.make(seed, seconds, shards, ALL)
    times = [d.at for d in made]
    assert times == sorted(times)
    assert all(d.at + d.seconds <= seconds + 0.001 for d in made)


@given(**PLANS)
def test_nothing_is_killed_too_often(seed: int, seconds: float, shards: int) -> None:
    """A supervisor gives up on a process that keeps ending."""
    kills: dict[str, list[float]] = {}
    for d in plan.make(seed, seconds, shards, ALL):
        if d.kind == "kill":
            kills.setdefault(d.target, []).append(d.at)
    for times in kills.values():
        assert all(sum(0 <= t - at < 60 for t in times) <= plan.KILLS_A_MINUTE for at in times)


@given(**PLANS)
def test_one_thing_at_a_time_for_a_process(seed: int, seconds: float, shards: int) -> None:
    """No process is signalled while it is stopped, and an extra shard only while it is there."""
    stopped: dict[str, float] = {}
    extra = {f"shard {shards + i}": False for i in range(plan.EXTRA_SHARDS)}
    for d in plan.make(seed, seconds, shards, ALL):
        if d.kind in ("kill", "stop", "end", "drain"):
            assert d.at >= stopped.get(d.target, 0)
        match d.kind:
            case "start":
                assert not extra[d.target]
                extra[d.target] = True
            case "end" | "drain":
                assert extra[d.target]
                extra[d.target] = False
            case _:
                assert extra.get(d.target, True)
        if d.kind == "stop":
            stopped[d.target] = d.at + d.seconds


def test_kinds() -> None:
    """A kind, or a kind for one role."""
    assert plan.parse_kinds("stop:shard, cut") == (("stop", "shard"), ("cut", "shard"), ("cut", "gateway"))
    assert plan.make(1, 60, 2, ()) == ()
    assert {d.target for d in plan.make(1, 60, 2, plan.parse_kinds("kill:router"))} == {"router"}


@pytest.mark.parametrize("text", ["burn", "kill:moon", "cut:router"])
def test_unknown_kinds(text: str) -> None:
    """They are refused by name."""
    with pytest.raises(ValueError, match=text):
        plan.parse_kinds(text)


def test_it_reads_well() -> None:
    """As it stands in the report."""
    assert str(Disturbance(1, "stall", "shard 1", 2.0, 0.5, "up")) == (
        "stall up shard 1 (50% of its connections) for 2.0 s"
    )
