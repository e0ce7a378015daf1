"""`python -m bench` from outside: a case against a real system, and what it says when it can't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import peers
from bench.cases import side_by_side
from bench.machine import LeftOut
from bench.measure import QUICK
from bench.peers.nats import Nats
from bench.report import ROOT, Case, from_json
from bench.server import Server


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_a_case_is_measured_and_written(tmp_path: Path) -> None:
    """A case starts a system, checks that all arrived, and writes the same figures as Markdown and JSON."""
    done = bench("idle_latency", "--quick", "--out", tmp_path / "page.md", "--json", tmp_path / "run.json")
    assert done.returncode in (0, 1), done.stderr  # 1: this machine may be too busy for a target
    [case] = from_json((tmp_path / "run.json").read_bytes())
    [row] = case.rows
    assert 0 < row.measures["p50"].median <= row.measures["p99"].median
    assert row.measures["CPU per event"].median > 0
    assert not [fault for fault in row.faults if "core" not in fault], row.faults
    page = (tmp_path / "page.md").read_text()
    assert page == done.stdout
    assert str(row.measures["p50"]) in page
    assert "| granian |" in page


def test_the_list_names_every_case() -> None:
    """`--list` has a line for each case."""
    names = [line.split()[0] for line in bench("--list").stdout.splitlines()]
    assert {"single", "stream", "feeds", "users", "slow", "shards", "codecs", "storm", "idle"} <= set(names)
    assert {"ingest", "journal", "router", "resume", "peers_single", "peers_stream", "peers_memory"} <= set(names)


def test_an_unknown_case_is_one_line() -> None:
    """A name that is no case ends with status 2 and the names that are."""
    done = bench("no-such-case")
    assert done.returncode == 2
    assert "no such case: no-such-case" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_nothing_was_measured_for_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is 1 where a target could not be held, though no row is void, and 0 where there is none."""
    unheld, empty = Case("unheld", "about"), Case("empty", "about")
    unheld.cannot_hold("2 shards", "events/s", "≥ 1.80", "not measurable")
    monkeypatch.setattr(program, "CASES", {case.name: lambda _, case=case: case for case in (unheld, empty)})
    assert program.run(["unheld"], quick=True, out=None, json=None) == 1
    assert program.run(["empty"], quick=True, out=None, json=None) == 0


class Missing(Nats):
    name = "a server"

    @classmethod
    def prepare(cls) -> None:
        raise LeftOut("it is not to be had")


def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says which peer is missing and why, and shows no row for it."""
    monkeypatch.setattr(peers, "PEERS", (Missing,))
    monkeypatch.setattr(side_by_side, "MEMORY_USERS", 80)
    case: Case = side_by_side.peers_memory(QUICK)
    assert "a server: left out: it is not to be had." in case.remarks
    assert [row.name for row in case.rows] == ["Solowire"]
    assert [(target.found, target.met) for target in case.targets] == [("left out", None)]


def test_a_peer_that_does_not_start_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is installed but ends at once is told with its output, and the others are measured."""

    class Broken(Missing):
        name = "a broken server"

        @classmethod
        def prepare(cls) -> None:
            return

        @classmethod
        def versions(cls) -> dict[str, str]:
            return {}

        def command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit('no licence')"]

    kinds: tuple[type[Server], ...] = (Broken,)
    monkeypatch.setattr(peers, "PEERS", kinds)
    monkeypatch.setattr(side_by_side, "MEMORY_USERS", 80)
    case = side_by_side.peers_memory(QUICK)
    assert any("a broken server" in remark and "no licence" in remark for remark in case.remarks)
    assert [row.name for row in case.rows] == ["Solowire"]
