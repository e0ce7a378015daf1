"""What people read when something is wrong: each refusal and each warning names a way out. Read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("solowire", "gateway", "router", "workers", "sources")
    for path in (ROOT / package).rglob("*.py")
)
REFUSALS = {"RequestRejected": 3, "InvalidMessage": 2, "RequestError": 2}
"""Errors that are told to peers, and the place of the hint among their arguments."""
LEVELS = ("warning", "error", "critical")
LOGGERS = ("log", "logger", "write")
OF_THE_SDK = ("solowire/sdk/",)
UNHINTED = {"client_gone"}  # whoever left is told nothing


def faults(path: str, text: str) -> list[str]:
    """Refusals and warnings of a module that leave their reader alone."""
    found = []
    for call in calls(ast.parse(text)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name in REFUSALS and not has_hint(call, REFUSALS[name]):
            found.append(f"{path}:{call.lineno}: {name} without a hint")
        if path.startswith(OF_THE_SDK):
            continue  # whose log lines are sentences, for the standard library's logging
        level = level_of(call)
        if level in LEVELS and call.args and not any(k.arg in ("hint", None) for k in call.keywords):
            found.append(f"{path}:{call.lineno}: a log line of level {level} without a hint")
    return found


def level_of(call: ast.Call) -> str:
    """Of a log line, also of one that is sampled: `_sampler.write("error", …)`; "" for other calls."""
    if not isinstance(call.func, ast.Attribute):
        return ""
    owner = getattr(call.func.value, "id", getattr(call.func.value, "attr", "")).removeprefix("_")
    if owner == "sampler" and call.func.attr == "write" and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return call.func.attr if owner in LOGGERS else ""


def has_hint(call: ast.Call, place: int) -> bool:
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return True
    if call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value in UNHINTED:
        return True
    given = [k.value for k in call.keywords if k.arg == "hint"] + list(call.args[place : place + 1])
    return any(not (isinstance(hint, ast.Constant) and not hint.value) for hint in given)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", MODULES)
def test_whoever_is_refused_or_warned_reads_the_way_out(path: str) -> None:
    """A refusal says what to do about it, and so does a line in the log that somebody is to act on."""
    assert faults(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        'raise RequestRejected(503, "full", "there is no room")',
        'raise RequestRejected(503, "full", "there is no room", "")',
        'raise RequestRejected(503, "full", "there is no room", retry_after=1)',
        'raise InvalidMessage("bad", "it is bad")',
        'log.warning("something_wrong", reason=reason)',
        'logger.error("something_wrong")',
        'self._log.warning("something_wrong")',
        'self._sampler.write("error", "something_wrong", reason=reason)',
    ],
)
def test_finds_what_has_none(text: str) -> None:
    """The check above would find it."""
    assert faults("gateway/x.py", text)


@pytest.mark.parametrize(
    "text",
    [
        'raise RequestRejected(503, "full", "there is no room", "try again")',
        "raise RequestRejected(503, *_AWAY, retry_after=1)",
        'raise InvalidMessage("bad", "it is bad", hint=hint)',
        'log.warning("something_wrong", hint="mend it")',
        'log.warning("diagnosis", **found)',
        'log.exception("fault_of_ours")',
        'self._sampler.write("warning", "something_wrong", hint="mend it")',
        'self._file.write("error")',
    ],
)
def test_leaves_alone_what_has_one(text: str) -> None:
    """Nor does it find more than that."""
    assert faults("gateway/x.py", text) == []
