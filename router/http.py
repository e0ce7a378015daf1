"""The router's own web server: whether it is alive, and its metrics. Nobody needs it to serve users."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from solowire.errors import ConfigError
from solowire.observability.api_server import make_api
from solowire.runtime.http_server import WebServer, listen
from solowire.runtime.settings import Settings
from solowire.runtime.settings.system_settings import LOCAL_HOST

logger = structlog.get_logger("solowire.router")


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
    server = WebServer(make_api(metrics, lambda: "" if is_ready() else "journal_unavailable"), sock)
    server.start()
    logger.info("router_listening", host=host, port=sock.getsockname()[1])
    return server
