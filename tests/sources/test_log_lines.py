"""The log lines of sources: docs/sources.md has all of them and no other, and each is seen in a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.test_texts import LEVELS, level_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/sources.md"
_NAME = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`")
SAYING = (*LEVELS, "info", "exception")


def find_named(module: Path) -> set[str]:
    """The names of a module's log lines. One that is chosen at run time is called by the name `say`."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        if level_of(node) in SAYING or getattr(node.func, "id", "") == "say":
            found.add(str(node.args[0].value))
    return found


def list_page() -> set[str]:
    """The first column of the page's tables of log lines."""
    found: set[str] = set()
    for table in PAGE.read_text().split("\n\n"):
        lines = table.strip().splitlines()
        if lines and lines[0].startswith("| log line"):
            for line in lines[2:]:
                found |= set(_NAME.findall(line.split("|")[1]))
    return found


CODE = set().union(*(find_named(module) for module in (ROOT / "sources").rglob("*.py")))


def test_the_page_has_the_log_lines_that_the_code_has() -> None:
    """An operator finds each of them there, and looks for none that isn't written any more."""
    assert len(CODE) > 30, "the names are found"
    assert list_page() == CODE


def test_each_log_line_is_seen_in_a_test() -> None:
    """So none is written under another name, or never."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in CODE if f'"{name}"' not in tests} == set()
