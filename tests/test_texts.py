"""What people read when something is wrong: each refusal and each warning names a way out. Read from the sources."""

from __future__ import annotations

import ast
import re
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
UNHINTED = {"client_disconnected"}  # whoever left is told nothing


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


_CLAUSE = re.compile(r"(What|Who|Whom|Whether|How|When|Where|Which|Why)\b")
_PARAMETERS = re.compile(r"[a-z_]\w*(, [a-z_]\w*)*: |Times\b|Raises [A-Z]\w*(, [A-Z]\w*)*\.$")
_LOG_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+|diagnosis")


def bad_docstrings(path: str, text: str) -> list[str]:
    """Modules that are titled by a clause, and docstrings that begin with parameters instead of a summary."""
    tree = ast.parse(text)
    title = ast.get_docstring(tree) or ""
    found = [f"{path}: its title is a clause: {title[:60]}"] if _CLAUSE.match(title) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if _PARAMETERS.match(docstring):
                found.append(f"{path}:{node.lineno}: {docstring[:60]}")
    return found


def bad_log_events(path: str, text: str) -> list[str]:
    """Log events that are sentences, or no names."""
    events = [
        call.args[call.func.attr == "write"]
        for call in calls(ast.parse(text))
        if isinstance(call.func, ast.Attribute) and is_log_call(call)
    ]
    return [
        f"{path}:{event.lineno}: {event.value!r}"
        for event in events
        if isinstance(event, ast.Constant) and not _LOG_EVENT.fullmatch(str(event.value))
    ]


def is_log_call(call: ast.Call) -> bool:
    """Whether it writes a line of a structured log."""
    assert isinstance(call.func, ast.Attribute)
    owner = getattr(call.func.value, "id", getattr(call.func.value, "attr", "")).removeprefix("_")
    if owner == "sampler":
        return call.func.attr == "write" and len(call.args) > 1
    return owner in ("log", "logger") and call.func.attr in ("debug", "info", "exception", *LEVELS) and bool(call.args)


@pytest.mark.parametrize("path", MODULES)
def test_docstrings_begin_with_what_it_is(path: str) -> None:
    """Whoever opens a module reads first what it is, and of a class or function what it does."""
    assert bad_docstrings(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", [path for path in MODULES if not path.startswith(OF_THE_SDK)])
def test_log_events_are_names(path: str) -> None:
    """A log event can be searched for and counted: it is one word in snake_case, and what varies is in fields."""
    assert bad_log_events(path, (ROOT / path).read_text()) == []


def test_finds_titles_parameters_and_sentences() -> None:
    """The two checks above would find them."""
    assert len(bad_docstrings("x.py", '"""Who may."""\ndef f(a):\n    """a: one."""\n')) == 2
    assert bad_docstrings("x.py", '"""Admission."""\ndef f(a):\n    """Does it. a: one."""\n') == []
    assert bad_log_events("x.py", 'logger.info("it is so")\nself._sampler.write("error", "gone")')
    assert bad_log_events("x.py", 'logger.info("it_is_so", a=1)\nself._file.write("error")') == []


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
