"""The web server of a source: probes, and as metrics what `source_status` says, also while the gateway is away."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import structlog

from solowire.observability.api_server import make_api
from solowire.observability.metrics import LabelledSample, Metrics, Sample
from solowire.runtime.http_server import WebServer
from solowire.sources.agent.source_status import StatusReporter

logger = structlog.get_logger()


def serve_api(source: StatusReporter, sock: socket.socket) -> WebServer:
    """Serves on a listening socket. It is ready when each part runs, or has said what it waits for."""

    def find_fault() -> str:
        return "starting" if any(part.status == "starting" for part in source.parts.values()) else ""

    server = WebServer(make_api(make_metrics(source).render, find_fault), sock)
    server.start()
    logger.info("source_listening", port=sock.getsockname()[1])
    return server


def make_metrics(source: StatusReporter) -> Metrics:
    """Of one source; each sample has its kind and its server."""
    return Metrics("source", lambda: _read_samples(source), {"kind": source.kind, "server": source.outlet.server})


def _read_samples(source: StatusReporter) -> Iterator[Sample]:
    """Yields what /metrics shows."""
    parts = source.parts
    running = {name: float(part.status == "running") for name, part in parts.items()}
    yield LabelledSample("part_running", "Whether a part watches what it is to watch, 1 or 0.", "part", running)
    for name, help, values in (
        ("events_read_total", "Events that the watched system has told.", {n: p.read_count for n, p in parts.items()}),
        ("events_published_total", "Events published.", {n: p.published_count for n, p in parts.items()}),
        ("events_dropped_total", "Events without room.", {n: p.dropped_count for n, p in parts.items()}),
        ("events_lost_total", "Events told that could not be had.", {n: p.lost_count for n, p in parts.items()}),
    ):
        yield LabelledSample(name, help, "part", values)
    if source.clock_skew_ms is not None:
        yield "clock_skew_seconds", "By how much this clock is ahead of the gateway's.", source.clock_skew_ms / 1000
