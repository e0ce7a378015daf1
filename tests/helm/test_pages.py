"""The chart's README and schema are those that values.yaml and the models make."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.make_chart_pages import list_pages
from tests.support.chart import CHART


@pytest.mark.parametrize(("path", "text"), list(list_pages()), ids=["README.md", "values.schema.json"])
def test_pages_are_as_they_are_made(path: Path, text: str) -> None:
    """`make chart` makes them anew."""
    assert path.read_text(encoding="utf-8") == text


def test_the_readme_names_every_example() -> None:
    """Whoever reads it finds them."""
    readme = (CHART / "README.md").read_text()
    assert all(f"examples/{path.name}" in readme for path in (CHART / "examples").iterdir())
