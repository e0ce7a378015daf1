"""A collector for tests: takes spans by OTLP over HTTP on loopback, and says what it has been sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class ReceivedSpan(NamedTuple):
    """A span as it came. resource, attributes: as they were sent. Times are unix nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    began_at: int
    ended_at: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: str

    @property
    def role(self) -> str:
        return str(self.resource["solowire.role"])


class OtlpReceiver:
    """A collector. respond: is asked for the status of each answer, and may take its time."""

    def __init__(self, respond: Callable[[], int] = lambda: 200) -> None:
        self.spans: list[ReceivedSpan] = []
        self.request_count = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.request_count += 1
                status = respond()
                if status == 200:
                    receiver.spans += read_spans(body)
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> OtlpReceiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def list_trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of a trace, in the order in which they began."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.began_at)


def read_spans(body: bytes) -> list[ReceivedSpan]:
    """The spans of a request. Raises DecodeError."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        ReceivedSpan(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            _read_attributes(span.attributes),
            _read_attributes(of_process.resource.attributes),
            span.status.message,
        )
        for of_process in request.resource_spans
        for of_library in of_process.scope_spans
        for span in of_library.spans
    ]


def _read_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
