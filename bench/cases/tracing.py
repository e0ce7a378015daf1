"""What tracing costs where nothing is recorded, and where everything is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.machine import HOST
from bench.measure import Round, Stream, join_slices, make_row, publishing
from bench.publisher import Wire
from bench.receiver import Receiver
from bench.registry import Length, benchmark
from bench.report import Case
from bench.solowire_system import EventsWire, Solowire

USERS = 100
SLICES = 8
"""Short ones: whatever else the machine does meets all of them."""
LOADS = ((200, 1), (1000, 10))
CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
PLAIN = "no endpoint"
HEADERS = {
    "no traceparent": "",
    "traceparent, not sampled": f"traceparent: {CONTEXT}0\r\n",
    "all sampled": f"traceparent: {CONTEXT}1\r\n",
}
OVER = "over no endpoint"
UNSAMPLED = 1.01


class _Traced(Solowire):
    """One with a collector. header: of its publishers' requests."""

    def __init__(self, collector: str) -> None:
        super().__init__()
        self.header = ""
        self._collector = collector

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": self._collector}

    def wires(self, count: int) -> list[Wire]:
        return [EventsWire(self.port, "/v1/events", self.bearer + self.header) for _ in range(count)]


@benchmark()
def tracing(case: Case, length: Length) -> None:
    """What tracing costs where nothing is recorded, and where everything is.

    Two systems side by side, one of them with the endpoint of a collector, which takes everything and reads nothing of
    it. {USERS} users of one feed; events one to a request, and ten to a request. A round has {SLICES} slices of each
    load in turn, and `{OVER}` is the CPU of an event over what it is in the system without an endpoint, in the same
    round.
    """
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(_collecting())
        plain, traced = stack.enter_context(Solowire()), stack.enter_context(_Traced(collector))
        receivers = [stack.enter_context(Receiver(system.style)) for system in (plain, traced)]
        for system, receiver in zip((plain, traced), receivers, strict=True):
            system.connect(receiver, USERS)
        for per_second, batch in LOADS:
            stream = Stream(per_second, batch, USERS)

            def run(name: str, stream: Stream = stream) -> Round:
                system = plain if name == PLAIN else traced
                traced.header = HEADERS.get(name, "")
                with publishing(system, 1) as publisher:
                    return stream.run(system, receivers[system is traced], publisher, length.seconds / 4)

            _add_rows(case, f"{per_second:,} events/s, {batch} to a request", run, length.bounded())
    for row in case.rows:
        if "all sampled" not in row.name and PLAIN not in row.name:
            case.hold(row, OVER, at_most=UNSAMPLED)


def _add_rows(case: Case, load: str, run: Callable[[str], Round], rounds: int) -> None:
    names = (PLAIN, *HEADERS)
    found: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds + 1):
        slices: dict[str, list[Round]] = {name: [] for name in names}
        for turn in range(SLICES):
            for name in names if turn % 2 else reversed(names):
                slices[name].append(run(name))
        if number:  # the first warms up
            _join_round(found, slices)
    for name, ones in found.items():
        case.rows.append(make_row(f"{load}, {name}", ones, ["CPU per event", OVER, "p50", "p99", "load core"]))


def _join_round(found: dict[str, list[Round]], slices: Mapping[str, Sequence[Round]]) -> None:
    joined = {name: join_slices(ones) for name, ones in slices.items()}
    for name, one in joined.items():
        one.values[OVER] = one.values["CPU per event"] / joined[PLAIN].values["CPU per event"]
        found[name].append(one)


class _Collector(BaseHTTPRequestHandler):
    """Takes what it is sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _collecting() -> Iterator[str]:
    """The address of a collector."""
    server = ThreadingHTTPServer((HOST, 0), _Collector)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
