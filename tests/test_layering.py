"""What import contracts (pyproject.toml) can't say: clocks that are read, `websockets`' I/O, names.

The rooms are those of the contract on decisions, so that there is one list.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slow_files import SLOW_FILES

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("gateway", "router", "workers", "sources")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
[PURE] = [c["source_modules"] for c in CONTRACTS if c["name"].startswith("Decisions")]
NOT_PURE = (
    "solowire.auth.key_source",
    "solowire.gateway.publish.parser_turns",
    "solowire.workers.history.history_api",
)
"""As the contract's exceptions say."""

SANS_IO = frozenset(
    f"websockets.{name}"
    for name in ("datastructures", "exceptions", "frames", "headers", "http11", "server", "speedups", "typing", "utils")
)
"""Parts of `websockets` that are bytes in and bytes out, which a decision may use."""
IMPORTERS = frozenset({"import_module", "__import__"})
UNSEEN = "what no contract would see"
CLOCKS = frozenset({"now", "utcnow", "today"})

RINGS = ("ring", "ping", "logging", "encoding", "listing", "finding", "framing", "meaning", "startdraining")
CLAUSES = frozenset({"What", "Who", "Whom", "Whose", "Whether", "How", "When", "Where", "Which"})


def module_of(path: Path) -> str:
    """The name by which the file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "solowire" else ("solowire", *parts))


FILES = {module_of(p): p for top in ("solowire", *ROLES) for p in sorted((ROOT / top).rglob("*.py"))}


def is_pure(module: str) -> bool:
    return module not in NOT_PURE and any(module == room or module.startswith(f"{room}.") for room in PURE)


def faults(text: str) -> list[str]:
    """What the rules have against a pure module with this text; [] if nothing."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            found.append(f"line {node.lineno} reads a clock")
        found += [
            f"line {getattr(node, 'lineno', 0)} imports {name}" for name in imported(node) if not is_allowed(name)
        ]
    return found


def is_allowed(name: str) -> bool:
    return (name != UNSEEN and name.split(".")[0] != "websockets") or ".".join(name.split(".")[:2]) in SANS_IO


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTERS:
        yield UNSEEN


@pytest.mark.parametrize("module", sorted(filter(is_pure, FILES)))
def test_decisions_read_no_clock(module: str) -> None:
    """They can be tested without a process, at any time of day."""
    assert faults(FILES[module].read_text()) == []


def test_the_rooms_are_there() -> None:
    """The check above looks at the project, not at an empty folder."""
    pure = {module for module in FILES if is_pure(module)}
    assert {"solowire.fanout.feed", "solowire.protocol.opening_handshake", "solowire.workers.shard"} <= pure
    assert all(any(module.startswith(room) for module in FILES) for room in PURE)


@pytest.mark.parametrize(
    "text",
    [
        "import websockets.asyncio.client",
        "from websockets.asyncio.server import serve",
        "from websockets import connect",
        "import importlib\nimportlib.import_module('uvloop')",
        "__import__('subprocess')",
        "from datetime import UTC, datetime\ndatetime.now(UTC)",
        "import datetime\ndatetime.date.today()",
    ],
)
def test_a_violation_is_found(text: str) -> None:
    """A forbidden import or call fails the check, however it is written."""
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, UTC)",
        "from websockets.server import ServerProtocol\nfrom websockets.http11 import Request",
        "from websockets.speedups import apply_mask",
    ],
)
def test_what_is_allowed_is_not_found(text: str) -> None:
    """The check complains about nothing that decisions may do."""
    assert faults(text) == []


def test_no_two_modules_have_one_name() -> None:
    """But for a role's `server` and the like, which are told apart by their role."""
    shared = {"server", "messages", "audit_events", "handshake", "http"}
    counts = Counter(module.rpartition(".")[2] for module in FILES if FILES[module].name != "__init__.py")
    assert {name for name, count in counts.items() if count > 1} <= shared


def test_no_two_classes_have_one_name() -> None:
    """Nor two with a leading underscore: no traceback and no search would tell them apart."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{module}:{node.lineno}")
    assert "HistoryThread" in places
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_and_no_class_is_a_gerund() -> None:
    """They are things of the domain, whose names end in a noun; RINGS are the nouns that end like a gerund."""
    found = [name for name, path in FILES.items() if path.stem.rpartition("_")[2].endswith("ing")]
    found += [
        node.name
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("ing")
    ]
    assert [name for name in found if not name.lower().endswith(RINGS)] == []


def test_no_module_is_titled_by_a_clause() -> None:
    """The first line of its docstring says what it is, and not "Who may…" or "What the…"."""
    titles = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in FILES.items()}
    assert [name for name, title in titles.items() if title.split(" ")[0].rstrip(",:") in CLAUSES] == []


@pytest.mark.parametrize("top", ROLES)
def test_the_roles_are_part_of_one_package(top: str) -> None:
    """Their folders stand at the top of the repository, and what is imported is `solowire` alone."""
    link = ROOT / "solowire" / top
    assert link.is_symlink()
    assert link.resolve() == ROOT / top
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {top}"], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    assert f"No module named '{top}'" in done.stderr


def test_the_slow_files_are_there() -> None:
    """What has been moved or renamed would come last again, unseen."""
    assert [name for name in SLOW_FILES if not (ROOT / name).exists()] == []
