"""Two revisions side by side: the ratios, and what may be said of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import checked_out, compare, judged
from bench.report import ROOT, Case, Measure, Row


def turn(value: float, *, measure: str = "CPU per frame", void: bool = False) -> list[Case]:
    row = Row("1 feed", {measure: Measure(value, value, value, "µs")}, ["lost"] if void else [])
    return [Case("single", "", [row])]


def test_the_ratio_is_of_medians() -> None:
    """The table holds each measure's median of both, and this over base with the range that the turns allow."""
    lines, void = compare([turn(10), turn(11), turn(12)], [turn(5), turn(5.5), turn(6)])
    assert lines[2] == "| single | 1 feed | CPU per frame | 11 | 5.5 | 0.50 [0.42–0.60] | better |"
    assert not void


def test_nothing_is_said_of_void_rows() -> None:
    """A row that was void in one turn is no proof of anything, and the comparison says so."""
    lines, void = compare([turn(10), turn(11)], [turn(5), turn(5, void=True)])
    assert lines[2].endswith("| void |")
    assert void


@pytest.mark.parametrize(
    ("base", "this", "told"),
    [
        ((0, 0), (3, 4), "| 0 | 3.5 | – | **worse** |"),
        ((0, 0), (0, 4), "| 0 | 2 | – |  |"),
        ((0, 0), (0, 0), "| 0 | 0 | – |  |"),
        ((3, 4), (0, 0), "| 3.5 | 0 | 0.00 [0.00–0.00] | better |"),
        ((0,), (3,), "| 0 | 3 | – |  |"),
    ],
)
def test_what_comes_from_nothing_is_told(base: tuple[float, ...], this: tuple[float, ...], told: str) -> None:
    """Where the base has 0 there is no ratio, but the line is there, and more of a mishap in every turn is worse."""
    lines, _ = compare(*([turn(value, measure="lost") for value in side] for side in (base, this)))
    assert lines[2] == f"| single | 1 feed | lost {told}"


def test_rows_of_one_side_alone_are_listed() -> None:
    """What one of the two revisions did not show does not vanish: a row whole, a measure with its row's name."""
    one = Measure(1, 1, 1)
    base = [Case("codecs", "", [Row("json", {"p50": one, "p99": one}), Row("text", {"p50": one, "p99": one})])]
    this = [Case("codecs", "", [Row("json", {"p50": one, "max": one}), Row("deflate", {"p50": one})])]
    lines, _ = compare([base], [this])
    assert lines[3:] == [
        "\nOnly in base: codecs, json: p99.",
        "\nOnly in base: codecs, text.",
        "\nOnly in this: codecs, json: max.",
        "\nOnly in this: codecs, deflate.",
    ]


@pytest.mark.parametrize(
    ("measure", "ratio", "low", "high", "word"),
    [
        ("CPU per frame", 1.5, 1.2, 1.8, "**worse**"),
        ("CPU per frame", 1.5, 0.9, 1.8, ""),
        ("CPU per frame", 1.04, 1.01, 1.06, ""),
        ("deliveries per CPU-second", 1.5, 1.2, 1.8, "better"),
        ("events/s", 0.5, 0.4, 0.6, "**worse**"),
        ("load core", 0.5, 0.4, 0.6, ""),
        ("99 %", 0.5, 0.4, 0.6, "better"),
        ("of it for the ticket, µs", 1.5, 1.2, 1.8, "**worse**"),
        ("frames per event", 0.5, 0.4, 0.6, ""),
        ("slow ones cut off", 1.5, 1.2, 1.8, "**worse**"),
    ],
)
def test_a_word_needs_a_difference(measure: str, ratio: float, low: float, high: float, word: str) -> None:
    """Better or worse is said only where the turns do not overlap, and by what the measure is."""
    assert judged(measure, ratio, low, high) == word


def test_servers_are_the_bases() -> None:
    """What a run of the base starts imports the base's sources, and the work tree is gone in the end."""
    with checked_out("HEAD") as tree:
        done = subprocess.run(
            [sys.executable, "-c", "import solowire, workers; print(solowire.__file__); print(workers.__file__)"],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(Path(line).is_relative_to(tree) for line in done.stdout.split())
    assert not tree.exists()
    listed = subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True)
    assert str(tree) not in listed.stdout


def test_an_unknown_revision_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Git's word, and status 2."""
    with pytest.raises(SystemExit) as ended, checked_out("no-such-revision"):
        pass
    assert ended.value.code == 2
    assert "no-such-revision" in capsys.readouterr().err
