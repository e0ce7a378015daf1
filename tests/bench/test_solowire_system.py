"""Settings by the names of the revision that is under test, and descriptions of all cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bench import solowire_system
from bench.__main__ import CASES
from bench.cases import backpressure, never_read, overload
from bench.registry import Benchmark
from tests.support.system import run


@pytest.fixture(params=[False, True], ids=["without a page", "with its page"])
def former(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A revision whose settings have their former names."""
    if request.param:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "settings.md").write_text("| `SOLOWIRE_MAX_CONNECTIONS` |\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    solowire_system._read_settings_page.cache_clear()
    yield
    solowire_system._read_settings_page.cache_clear()


def given(settings: Mapping[str, object]) -> dict[str, str]:
    environment = solowire_system.make_environment(settings)
    return {name: value for name, value in environment.items() if name.startswith("SOLOWIRE_")}


@pytest.mark.usefixtures("former")
def test_settings_have_the_names_of_the_revision() -> None:
    """A revision that does not know a setting by its name of today is given it by its former one."""
    settings = {"LISTEN__WRITE_TIMEOUT_S": 7, "LIMITS__MAX_CONNECTIONS": 9, "PORT": 1}
    assert given(settings) == {"SOLOWIRE_STALLED_S": "7", "SOLOWIRE_MAX_CONNECTIONS": "9", "SOLOWIRE_PORT": "1"}


def test_every_setting_of_the_benchmarks_exists(tmp_path: Path) -> None:
    """One that this revision does not know would stop each of its servers."""
    used = [solowire_system.LIMITS, solowire_system.NO_PUBLISH_LIMIT, never_read.SETTINGS, overload.SETTINGS]
    settings = {name: value for some in (*used, backpressure.SETTINGS) for name, value in some.items()}
    done = run("config", cwd=tmp_path, settings=settings)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_case_says_what_it_is(case: Benchmark) -> None:
    """Each has a line for `--list` and, on its page, a description with all constants in their places."""
    assert case.summary.endswith((".", "?"))
    assert case.about
    assert "{" not in case.about.replace("`{}`", "")
