"""Who may import whom (design, section 3), read from the sources themselves, so that nothing has to be started."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("gateway", "router", "workers", "sources")
OURS = ("solowire", *ROLES)

IMPURE = {
    "settings", "settings_listing", "roles", "bus", "line_writer", "link", "metrics", "serving", "logs", "process",
    "supervisor", "client", "publisher", "cli", "cli_options", "cli_tokens", "cli_users", "cli_events", "tailing",
    "statistics", "audit", "vitals", "api_client", "line_publisher",
    "key_source", "identity", "identity_settings", "user_commands",
    "network_errors", "token_source", "token_renewal", "gateway_requests",
}  # fmt: skip
PURE_ROLE_FILES = (
    *(f"router/{name}.py" for name in ("membership", "dispatch", "journal", "router", "replay", "pressure")),
    *(f"router/{name}.py" for name in ("coordinator", "holders", "sharing", "limits", "alerts", "watch")),
    *(f"workers/{name}.py" for name in ("connection", "shard", "sockets", "leases", "admission", "users", "framing")),
    *(f"workers/{name}.py" for name in ("heartbeat", "replay", "replay_budget", "ring_history", "slow_readers")),
    *(f"workers/{name}.py" for name in ("reporting", "diagnosis", "giving_way", "limits", "listening")),
    *(f"workers/{name}.py" for name in ("timers", "expiry", "moves", "entrance", "trail", "ejection")),
    *(f"workers/{name}.py" for name in ("delivery", "routing", "beginning", "answering", "following")),
    *(f"gateway/{name}.py" for name in ("publishing", "intake", "body_deadline", "returning", "addresses")),
    *(f"gateway/{name}.py" for name in ("admission", "tries", "turns", "forwarding", "revocation_requests")),
    *(f"gateway/{name}.py" for name in ("body_framing", "frame_scanner", "content_encoding")),
    *(f"sources/{name}.py" for name in ("query_log", "syslog_prefix", "acknowledgements", "log_file")),
    *(f"router/{name}.py" for name in ("access_control", "revocation_keeper", "user_disconnects")),
)
CARRIERS = frozenset({"bus", "metrics", "serving", "supervisor", "cli", "link"})
"""Modules of `solowire` by which a pure one would come to sockets in a roundabout way."""

OUTSIDE = frozenset(
    ["asyncio", "socket", "zmq", "granian", "time", "threading", "subprocess", "httpx", "websockets", "uvloop"]
)  # what a decision never needs: I/O, processes and clocks
SANS_IO = frozenset(
    f"websockets.{name}"
    for name in ("datastructures", "exceptions", "frames", "headers", "http11", "server", "speedups", "typing", "utils")
)
"""Parts of `websockets` that are bytes in and bytes out, which a decision may use."""
CLOCKS = frozenset({"now", "utcnow", "today"})


def faults(path: str, text: str) -> list[str]:
    """What the rules have against the module at `path` (relative to the project) with this text; [] if nothing."""
    package, _, rest = path.partition("/")
    tree = ast.parse(text)
    found = []
    for module, line in imported(tree, path):
        top = module.partition(".")[0]
        if is_pure(path):
            if top in OUTSIDE and ".".join(module.split(".")[:2]) not in SANS_IO:
                found.append(f"{path}:{line}: a pure module imports {module}")
            if top == "solowire" and module.count(".") and module.split(".")[1] in CARRIERS and rest != "__main__.py":
                found.append(f"{path}:{line}: a pure module imports {module}, which is not pure")
        if top == "zmq" and path != "solowire/bus.py":
            found.append(f"{path}:{line}: only solowire/bus.py imports zmq")
        if top == "prometheus_client" and path != "solowire/metrics.py":
            found.append(f"{path}:{line}: only solowire/metrics.py imports prometheus_client")
        if top in ROLES and top != package and not (path == "solowire/cli.py" and is_server(module)):
            found.append(f"{path}:{line}: {package} imports {module}")
    if is_pure(path):
        found += [f"{path}:{line}: a pure module reads a clock" for line in clocks(tree)]
    return found


def is_pure(path: str) -> bool:
    package, _, rest = path.partition("/")
    if package == "solowire":
        return rest.split("/")[0].removesuffix(".py") not in IMPURE
    return path in PURE_ROLE_FILES


def is_server(module: str) -> bool:
    return module.split(".")[1:2] == ["server"]


def imported(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in `tree`, with its line; `from a import b` gives `a.b` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = path.split("/")[: -node.level]
                origin = ".".join([*above, *filter(None, [origin])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def clocks(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            yield node.lineno


MODULES = sorted(p.relative_to(ROOT).as_posix() for package in OURS for p in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_to_its_layer(path: str) -> None:
    """Each module imports only what its layer may, so that decisions can be tested without a process or a clock."""
    assert faults(path, (ROOT / path).read_text()) == []


def test_finds_the_modules() -> None:
    """The check above looks at the project, not at an empty folder."""
    pure = {path for path in MODULES if is_pure(path)}
    assert {"solowire/feed.py", "solowire/handshake.py", "workers/shard.py"} <= pure
    assert set(PURE_ROLE_FILES) <= pure


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("solowire/feed.py", "import asyncio"),
        ("solowire/feed.py", "import socket as s"),
        ("solowire/feed.py", "from time import monotonic"),
        ("solowire/feed.py", "def f():\n    import threading"),
        ("solowire/feed.py", "import os, websockets.asyncio.client"),
        ("solowire/handshake.py", "from websockets.asyncio.server import serve"),
        ("solowire/handshake.py", "from websockets import connect"),
        ("workers/framing.py", "import websockets"),
        ("gateway/frame_scanner.py", "import socket"),
        ("solowire/feed.py", "import importlib\nimportlib.import_module('uvloop')"),
        ("solowire/feed.py", "__import__('subprocess')"),
        ("solowire/feed.py", "from datetime import UTC, datetime\ndatetime.now(UTC)"),
        ("solowire/feed.py", "import datetime\ndatetime.date.today()"),
        ("solowire/feed.py", "from solowire.bus import Bus"),
        ("solowire/feed.py", "from solowire import bus"),
        ("solowire/feed.py", "from . import metrics"),
        ("solowire/feed.py", "import workers.shard"),
        ("solowire/feed.py", "from workers import shard"),
        ("solowire/supervisor.py", "from router.server import main"),
        ("solowire/cli.py", "from router.dispatch import Dispatch"),
        ("solowire/link.py", "import zmq.asyncio"),
        ("solowire/serving.py", "from prometheus_client import Counter"),
        ("workers/shard.py", "import granian"),
        ("workers/server.py", "from router.membership import Membership"),
        ("gateway/relay.py", "from workers.connection import Connection"),
        ("router/server.py", "import zmq"),
        ("router/dispatch.py", "import httpx"),
        ("sources/server.py", "import gateway"),
    ],
)
def test_a_violation_is_found(path: str, text: str) -> None:
    """A forbidden import fails the check, however it is written."""
    assert faults(path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("solowire/feed.py", "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, UTC)"),
        ("solowire/feed.py", "import timeit_is_not_time\nfrom solowire.log import Log"),
        (
            "solowire/handshake.py",
            "from websockets.server import ServerProtocol\nfrom websockets.http11 import Request",
        ),
        ("workers/framing.py", "from websockets.speedups import apply_mask"),
        ("solowire/bus.py", "import asyncio\nimport zmq.asyncio"),
        ("solowire/metrics.py", "import prometheus_client"),
        ("solowire/cli.py", "import asyncio\nfrom gateway import server\nfrom router.server import serve"),
        ("solowire/__main__.py", "from solowire.cli import main"),
        ("workers/shard.py", "from workers.sockets import Sockets\nfrom solowire.feed import Feed"),
        ("workers/server.py", "import asyncio\nimport granian\nfrom solowire.bus import Bus"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, text: str) -> None:
    """The check complains about nothing that the design allows."""
    assert faults(path, text) == []
