"""Settings by the names of the revision that is under test, and descriptions of all cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import solowire_system
from bench.__main__ import CASES
from bench.registry import Benchmark


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A revision whose settings have their former names."""
    (tmp_path / "solowire").mkdir()
    (tmp_path / "solowire" / "settings.py").write_text("max_connections: int\nstalled_s: float\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    solowire_system._known_settings.cache_clear()
    yield
    solowire_system._known_settings.cache_clear()


@pytest.mark.usefixtures("former")
def test_settings_have_the_names_of_the_revision() -> None:
    """A revision that does not know a setting by its name of today is given it by its former one."""
    environment = solowire_system.make_environment({"WRITE_TIMEOUT_S": 7, "MAX_CONNECTIONS": 9})
    ours = {name: value for name, value in environment.items() if name.startswith("SOLOWIRE_")}
    assert ours == {"SOLOWIRE_STALLED_S": "7", "SOLOWIRE_MAX_CONNECTIONS": "9"}


def test_every_setting_of_the_benchmarks_exists() -> None:
    """One that this revision does not know by any name would stop each of its servers."""
    former = solowire_system.FORMER_NAMES
    names = {*solowire_system.LIMITS, *solowire_system.NO_PUBLISH_LIMIT, *former}
    known = solowire_system._known_settings()
    assert [name for name in names if name not in known and former.get(name) not in known] == []


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_case_says_what_it_is(case: Benchmark) -> None:
    """Each has a line for `--list` and, on its page, a description with all constants in their places."""
    assert case.summary.endswith((".", "?"))
    assert case.about
    assert "{" not in case.about.replace("`{}`", "")
