"""`python -m bench` from outside: a case against a real system, and what it says when it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import comparison, peers
from bench.cases import side_by_side_users
from bench.machine import LeftOut
from bench.peers.nats import Nats
from bench.registry import QUICK
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
    assert {"peers_storm", "peers_idle", "peers_slow", "peers_users", "peers_ingest"} <= set(names)


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
    found = {case.name: Fixed(case) for case in (unheld, empty)}
    monkeypatch.setattr(program, "CASES", found)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    assert program.run_cases(["unheld"], "performance", quick=True, out=None, json=None) == 1
    assert program.run_cases(["empty"], "performance", quick=True, out=None, json=None) == 0


class Fixed:
    """A benchmark that has found this already."""

    shares_cores = False

    def __init__(self, case: Case) -> None:
        self._case = case

    def __call__(self, length: object) -> Case:
        return self._case


class Missing(Nats):
    name = "a server"

    @classmethod
    def prepare(cls) -> None:
        raise LeftOut("it is not to be had")


@contextmanager
def no_merging() -> Iterator[None]:
    raise LeftOut("the host does not let us")
    yield


@pytest.fixture
def without_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose same-page merging can't be set; and few users."""
    monkeypatch.setattr(side_by_side_users, "merging", no_merging)
    monkeypatch.setattr(side_by_side_users, "MEMORY_USERS", 80)


@pytest.mark.usefixtures("without_merging")
def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says which peer is missing and why, and shows no row for it."""
    monkeypatch.setattr(peers, "PEERS", (Missing,))
    case: Case = side_by_side_users.peers_memory(QUICK)
    assert "a server: left out: it is not to be had." in case.remarks
    assert [row.name for row in case.rows] == ["Solowire"]
    assert [(target.found, target.is_met) for target in case.targets] == [("left out: its case says why", None)] * 2


@pytest.mark.usefixtures("without_merging")
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
    case = side_by_side_users.peers_memory(QUICK)
    assert any("a broken server" in remark and "no licence" in remark for remark in case.remarks)
    assert any(comparison.OURS_MERGED in remark and "does not let us" in remark for remark in case.remarks)
    assert [row.name for row in case.rows] == ["Solowire"]


@pytest.mark.skipif(not os.access("/sys/kernel/mm/ksm/run", os.W_OK), reason="same-page merging can't be set here")
def test_memory_is_shown_with_same_page_merging_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of Solowire's, and in the second something was merged; the host is left as it was."""
    monkeypatch.setattr(peers, "PEERS", ())
    monkeypatch.setattr(side_by_side_users, "MEMORY_USERS", 160)
    before = scanning()
    case = side_by_side_users.peers_memory(QUICK)
    assert [row.name for row in case.rows] == ["Solowire", comparison.OURS_MERGED]
    assert case.rows[1].measures["merged, MB"].median > 0
    assert scanning() == before


def scanning() -> dict[str, str]:
    names = ("run", "pages_to_scan", "sleep_millisecs", "use_zero_pages")
    return {name: Path("/sys/kernel/mm/ksm", name).read_text() for name in names}
