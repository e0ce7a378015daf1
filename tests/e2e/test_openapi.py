"""What `/docs/openapi.json` says of errors, against what the gateway really answers."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from tests.support.system import ANSWER_SECONDS, System, running

PROBLEM = "application/problem+json"
METHODS = ("get", "post", "put", "patch", "delete")
PATHS = {"{index}": "0", "{user}": "nobody", "{revocation}": "none"}
"""What stands for the parameters of a path that exists, or would."""
NOT_PROVOKED = {408, 429, 500, 502, 503, 504}
"""What takes a stuck shard, a lost router, a fault of ours or a minute of patience: shown by tests of their own."""


FULL = {"post /v1/revocations": {409}}
"""What takes as many revocations as there may be."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"PUBLISH__MAX_REQUEST_BYTES": 2000, "PUBLISH__MAX_EVENT_BYTES": 1000, "AUTH__BAD_TOKEN_BURST": 10_000}
    with running(tmp_path_factory.mktemp("openapi") / "data", shards=1, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def document(small: System) -> dict[str, Any]:
    answer = httpx.get(f"{small.url}/docs/openapi.json", timeout=ANSWER_SECONDS, trust_env=False)
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`get /v1/stats` → what is said of it."""
    return {
        f"{method} {path}": item[method]
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    }


def is_open(operation: dict[str, Any]) -> bool:
    return operation.get("security") == [{}]


def statuses(operation: dict[str, Any]) -> set[int]:
    return {int(status) for status in operation["responses"] if int(status) >= 400}


def ask(system: System, operation: str, token: str = "", **request: Any) -> httpx.Response:
    method, path = operation.split(" ")
    for name, value in PATHS.items():
        path = path.replace(name, value)
    headers = ({"authorization": f"Bearer {token}"} if token else {}) | request.pop("headers", {})
    return httpx.request(method, system.url + path, headers=headers, timeout=ANSWER_SECONDS, trust_env=False, **request)


def ask_raw(system: System, head: bytes) -> int:
    """The status that bytes are answered with that no client would write; its body must be a problem."""
    with socket.create_connection(("127.0.0.1", system.port), ANSWER_SECONDS) as sock, contextlib.suppress(OSError):
        sock.sendall(head)
        said = b""
        while piece := sock.recv(65536):
            said += piece
    front, _, body = said.partition(b"\r\n\r\n")
    assert PROBLEM.encode() in front
    check(msgspec.json.decode(body))
    return int(front.split(b" ")[1])


def check(problem: Any, schema: dict[str, Any] | None = None) -> None:
    """A problem body as the document has it: nothing missing, nothing more, each of its type."""
    known = {
        "type": str,
        "title": str,
        "status": int,
        "code": str,
        "detail": str,
        "hint": str,
        "scope": str,
        "errors": list,
        "oldest": dict,
    }
    assert problem.keys() <= known.keys()
    assert problem.keys() >= known.keys() - {"hint", "scope", "errors", "oldest"}
    assert all(isinstance(value, known[name]) for name, value in problem.items())
    if schema is not None:
        assert schema["properties"].keys() == known.keys()
        assert set(schema["required"]) == known.keys() - {"hint", "scope", "errors", "oldest"}


def provoke(system: System, name: str, operation: dict[str, Any]) -> Iterator[tuple[int, httpx.Response]]:
    """Requests with the status that each should be answered with."""
    if not is_open(operation):
        yield 401, ask(system, name)
        yield 401, ask(system, name, "no.such.token")
        rights = "publisher" if name in ("post /v1/connect", "get /v1/route", "get /v1/events") else "viewer"
        yield 403, ask(system, name, system.token("somebody", rights))
    admin, publisher = system.token("root", "admin"), system.token("p", "publisher")
    if "{index}" in name:
        yield (
            404,
            ask(system, name.replace("{index}", "200"), admin)
            if "undrain" not in name
            else ask(system, name.replace("{index}", "x"), admin),
        )
        yield 404, ask(system, name.replace("{index}", "x"), admin)
    if name == "get /v1/users/{user}":
        yield 404, ask(system, name, admin)
    if name == "post /v1/users/{user}/disconnect":
        yield 404, ask(system, name.replace("{user}", ""), admin)
    if name == "delete /v1/revocations/{revocation}":
        yield 404, ask(system, name, admin)
    if name == "post /v1/revocations":
        yield 400, ask(system, name, admin, json={})
        yield 413, ask(system, name, admin, content=b" " * 3000)
        yield 415, ask(system, name, admin, content=b"x", headers={"content-encoding": "gzip"})
    if name in ("post /v1/shards/{index}/undrain", "post /v1/shards/{index}/drain"):
        yield 409, ask(system, name, admin)
    if name == "get /v1/events":
        yield 400, ask(system, f"{name}?since=yesterday", admin)
        yield 410, ask(system, f"{name}?since=0:1", admin)
    if name == "post /v1/events":
        yield 400, ask(system, name, publisher, content=b"{")
        yield 400, ask(system, name, publisher, json={"type": "no_such_type", "data": {}})
        yield 400, ask(system, name, publisher, content=b"{}", headers={"content-encoding": "gzip"})
        yield 413, ask(system, name, publisher, content=b" " * 3000)
        yield (
            413,
            ask(system, name, publisher, content=gzip.compress(b" " * 3000), headers={"content-encoding": "gzip"}),
        )
        yield 415, ask(system, name, publisher, content=b"x", headers={"content-type": "text/plain"})
        yield 415, ask(system, name, publisher, content=b"x", headers={"content-encoding": "br"})


def test_each_error_is_sent_as_it_is_documented(small: System, document: dict[str, Any]) -> None:
    """Every operation: whatever it is answered is documented for it, as a problem, and what is documented is sent."""
    schema = document["components"]["schemas"]["Problem"]
    found = operations(document)
    assert len(found) > 10
    for name, operation in found.items():
        sent = set()
        for status, answer in provoke(small, name, operation):
            assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), (name, answer.text)
            check(answer.json(), schema)
            documented = operation["responses"][str(status)]
            assert documented["content"][PROBLEM]["schema"] == {"$ref": "#/components/schemas/Problem"}
            for header in documented.get("headers", {}):
                assert header == "Accept-Encoding" or header in answer.headers, (name, status)
            sent.add(status)
        method, path = name.split(" ")
        for value in PATHS:
            path = path.replace(value, "0")
        line = f"{method.upper()} {path} HTTP/1.1\r\nHost: h\r\n".encode()
        sent.add(ask_raw(small, line + b"Content-Length: x\r\n\r\n"))
        sent.add(ask_raw(small, line + b"X: " + b"x" * 70_000 + b"\r\n\r\n"))
        sent.add(ask_raw(small, line + b"Transfer-Encoding: gzip\r\n\r\n"))
        assert sent <= statuses(operation), name
        assert statuses(operation) - sent <= NOT_PROVOKED | FULL.get(name, set()), name
        for content in (answer.get("content", {}) for answer in operation["responses"].values()):
            assert "status_code" not in str(content), "Litestar's own form of an error"


def test_wrong_tokens_are_answered_as_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An address that has shown too many gets 429 from each operation that takes a token."""
    settings = {"AUTH__BAD_TOKEN_BURST": 1, "AUTH__BAD_TOKEN_RATE": 0.001}
    with running(tmp_path_factory.mktemp("tokens") / "data", shards=1, settings=settings) as system:
        document = httpx.get(f"{system.url}/docs/openapi.json", timeout=ANSWER_SECONDS, trust_env=False).json()
        ask(system, "get /v1/stats", "no.such.token")
        for name, operation in operations(document).items():
            if not is_open(operation):
                answer = ask(system, name, "no.such.token")
                assert answer.status_code == 429, name
                assert "429" in operation["responses"]
                assert int(answer.headers["retry-after"]) > 0
                check(answer.json())
            else:
                assert not {"401", "403", "429"} & operation["responses"].keys()


def test_a_log_that_is_away_is_answered_as_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the router publishing and administrators' questions get 503, as they are said to."""
    with running(tmp_path_factory.mktemp("away") / "data", shards=1, settings={"PUBLISH__TIMEOUT_S": 1}) as system:
        document = httpx.get(f"{system.url}/docs/openapi.json", timeout=ANSWER_SECONDS, trust_env=False).json()
        router = system.pid_of("router")
        os.kill(router, signal.SIGSTOP)
        try:
            for name in ("post /v1/events", "get /v1/stats"):
                token = system.token("root", "admin")
                answer = ask(
                    system, name, token, **({"json": {"type": "custom.x", "data": {}}} if "post" in name else {})
                )
                assert answer.status_code == 503, name
                assert "503" in operations(document)[name]["responses"]
                check(answer.json())
        finally:
            os.kill(router, signal.SIGCONT)
