"""The web server of a process that serves no users: whether it is alive and ready, and its metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from solowire.errors import RequestRejected
from solowire.observability.metrics import CONTENT_TYPE
from solowire.protocol.problem_details import to_http_response

Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[..., Awaitable[None]]


def make_api(metrics: Callable[[], bytes], find_fault: Callable[[], str]) -> Application:
    """An ASGI application. find_fault: why the process is not ready, in one word, "" if it is."""

    async def app(scope: Mapping[str, Any], receive: Any, send: Send) -> None:
        match scope["path"]:
            case "/metrics":
                await _answer(send, 200, metrics(), CONTENT_TYPE)
            case "/readyz" if fault := find_fault():
                await _answer(send, 503, b'{"status":"%s"}' % fault.encode(), "application/json")
            case "/healthz" | "/readyz":
                await _answer(send, 200, b'{"status":"ok"}', "application/json")
            case _:
                there_are = "there are /metrics, /healthz, /readyz"
                status, headers, body = to_http_response(
                    RequestRejected(404, "not_found", "there is nothing at this path", there_are)
                )
                await _send(send, status, headers, body)

    return app


async def _answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    await _send(send, status, [(b"content-type", content_type.encode())], body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
