"""The router's own web server: whether it is alive, and its metrics. Nobody needs it to serve users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from solowire.errors import ConfigError, RequestRejected
from solowire.observability.metrics import CONTENT_TYPE
from solowire.protocol.problem_details import to_http_response
from solowire.runtime.http_server import WebServer, listen
from solowire.runtime.settings import Settings
from solowire.runtime.settings.system_settings import LOCAL_HOST

logger = structlog.get_logger("solowire.router")

Send = Callable[[dict[str, Any]], Awaitable[None]]


def start_http_server(
    settings: Settings, metrics: Callable[[], bytes], is_ready: Callable[[], bool]
) -> WebServer | None:
    """Serves on the router's port; None where the default one can't be had. Raises ConfigError for one that was set."""
    port = settings.router_metrics_port
    if port is None:
        logger.warning(
            "metrics_unavailable", hint="no port is left above the shards': set SOLOWIRE_ROUTER__METRICS_PORT"
        )
        return None
    try:
        host = settings.listen.api_host or LOCAL_HOST
        sock = listen(host, port)
    except ConfigError as error:
        for setting in ("listen.api_port", "router.metrics_port"):
            if settings.is_set(setting):
                raise ConfigError(f"{settings.name_setting(setting)}: {error}") from None
        logger.warning("metrics_unavailable", reason=str(error), hint="set SOLOWIRE_ROUTER__METRICS_PORT")
        return None
    server = WebServer(_app(metrics, is_ready), sock)
    server.start()
    logger.info("router_listening", host=host, port=sock.getsockname()[1])
    return server


def _app(metrics: Callable[[], bytes], is_ready: Callable[[], bool]) -> Callable[..., Awaitable[None]]:
    async def app(scope: Mapping[str, Any], receive: Any, send: Send) -> None:
        match scope["path"]:
            case "/metrics":
                await _answer(send, 200, metrics(), CONTENT_TYPE)
            case "/readyz" if not is_ready():
                await _answer(send, 503, b'{"status":"journal_unavailable"}', "application/json")
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
