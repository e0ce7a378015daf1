"""What the page says, and what it must not say."""

from __future__ import annotations

import pytest

from bench.cases import streams
from bench.measure import Round, join_slices, make_row, merge_faults, unit_of
from bench.receiver import make_histogram
from bench.registry import QUICK
from bench.report import Case, Measure, Row, Target, from_json, render_markdown, to_json


def case_of(*faults: str) -> Case:
    found = Case("stream", "about", [Row("1 feed", {"p50": Measure.over([1, 2, 3], "ms")}, list(faults))])
    found.hold(found.rows[0], "p50", at_most=5.0)
    return found


def test_a_measure_is_median_and_spread() -> None:
    """The median over rounds with the lowest and the highest, and only the number where they are equal."""
    assert str(Measure.over([30, 10, 12], "µs")) == "12.0 µs [10.0–30.0]"
    assert str(Measure.over([7, 7])) == "7.00"


def test_a_void_row_meets_no_target() -> None:
    """A row with a fault is struck through, gives its reason, and its target is void, not met."""
    assert "| stream, 1 feed: p50 | ≤ 5.00 ms | 2.00 ms [1.00–3.00] | yes |" in render_markdown([case_of()], {})
    page = render_markdown([case_of("an event was lost")], {})
    assert "| 1 feed (void) | ~~2.00 ms [1.00–3.00]~~ |" in page
    assert "Void, 1 feed: an event was lost." in page
    assert "| stream, 1 feed: p50 | ≤ 5.00 ms | 2.00 ms [1.00–3.00] | void |" in page


def test_a_page_has_its_own_head() -> None:
    """Pages other than docs/performance.md bring all that stands above the table, and may name a target."""
    case = case_of()
    case.hold(case.rows[0], "p50", at_most=1.0, called="the answer")
    page = render_markdown([case], {}, "overload")
    assert page.startswith("# Overload\n")
    assert "## Promises\n\n| measure |" in page
    assert "| stream: the answer | ≤ 1.00 ms | 2.00 ms [1.00–3.00] | **no** |" in page
    assert render_markdown([case], {}).startswith("# Performance\n")


def test_a_case_of_targets_alone_has_no_heading() -> None:
    """What a case has found stands in the table of targets; its heading comes only with something beneath it."""
    bare = Case("promises", "", targets=[Target("kept", "0", "0", True)])
    page = render_markdown([bare, case_of()], {})
    assert "| kept | 0 | 0 | yes |" in page
    assert "## promises" not in page
    assert "\n\n## stream\n\nabout\n\n|" in page
    bare.remarks.append("Fault: one.")
    assert "\n\n## promises\n\nFault: one.\n\n## stream\n" in render_markdown([bare, case_of()], {})


def test_notes_stand_below_the_targets() -> None:
    """What was written by hand about the targets comes right after their table, and the cases after it."""
    page = render_markdown([case_of()], {}, notes="## By how much\n")
    assert "| yes |\n\n## By how much\n\n## stream\n" in page


def test_json_comes_back_whole() -> None:
    """What is written for `bench.compare` is read again as it was."""
    assert from_json(to_json([case_of("lost")], {"cpu": "x"})) == [case_of("lost")]


def test_one_void_round_makes_a_row_void() -> None:
    """A fault of any round is the row's; those that differ in numbers only are told once."""
    rounds = [Round({"p50": 1.0}), Round({"p50": 2.0}, ["core full: 91%"]), Round({"p50": 3.0}, ["core full: 99%"])]
    assert make_row("r", rounds, ["p50"]).faults == ["core full: 91% (2 times)"]
    assert merge_faults(["a 1", "b", "a 2"]) == ["a 1 (2 times)", "b"]


def test_slices_have_their_percentiles_together() -> None:
    """Of a fast slice and a smaller slow one, half of all deliveries are fast, and the slowest are the slow slice's."""
    fast = Round({"CPU": 1.0, "p50": 0.0}, [], make_histogram([(1000, 149)]))
    slow = Round({"CPU": 3.0, "p50": 0.0}, [], make_histogram([(9000, 99)]))
    found = join_slices([fast, slow])
    assert found.values["CPU"] == 2.0
    assert [round(found.values[name]) for name in ("p50", "p99", "max")] == [1, 9, 9]


@pytest.mark.parametrize(("faults", "met"), [([], True), (["an event was lost"], None)])
def test_two_shards_are_not_held_to_one_that_is_void(
    faults: list[str], met: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target of two shards is void if the round of one shard, which it is a ratio to, does not count."""

    def most_rounds(_: object, count: int) -> list[Round]:
        return [Round({"events/s": 100.0 * count}, faults if count == 1 else [])]

    monkeypatch.setattr(streams, "SERVER_CORES", frozenset(range(3)))
    monkeypatch.setattr(streams, "_rounds", lambda *_: [Round({"CPU per delivery": 1.0})])
    monkeypatch.setattr(streams, "_most_rounds", most_rounds)
    assert [target.is_met for target in streams.shards(QUICK).targets] == [met]


@pytest.mark.parametrize(
    ("measure", "unit"),
    [
        ("p99", "ms"),
        ("request p50", "ms"),
        ("CPU per event", "µs"),
        ("router CPU per event", "µs"),
        ("server CPU", "%"),
        ("PSS per connection, after a heartbeat", "KB"),
        ("all", "s"),
        ("memory, part 3", "MiB"),
        ("CPU while idle, %", ""),
        ("events/s", ""),
    ],
)
def test_a_measure_has_the_unit_of_its_name(measure: str, unit: str) -> None:
    """A row of any case shows each measure in its unit, but for those that have it in their name."""
    assert unit_of(measure) == unit
