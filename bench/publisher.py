"""The publishing side: an open loop. Batches leave by the clock, on several wires, answered or not.

What it keeps true: every event carries the moment at which it was *due*, so that a server that lets the publisher wait
has that in its latency (no coordinated omission). Being late counts against the generator only while it had a free
wire: from the moment on at which the server last kept it waiting for one. An answer that it has not read yet is a free
wire, and the time for which it waited for its core to read it is its own.
"""

from __future__ import annotations

import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.http_client import Reply, format_request, parse_reply
from bench.machine import HOST, BenchError

ANSWER_TIMEOUT_S = 30.0
EVENT_BYTES, TOKEN_CHARACTERS = 200, 30
PLAIN_TYPE = "custom.bench"


class Refused(Exception):
    """The server did not take a request; the text says what it answered."""


class Wire(ABC):
    """One connection to a server's own way of publishing, with one request under way."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection((HOST, port), ANSWER_TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    @abstractmethod
    def send(self, events: Sequence[bytes]) -> None:
        """Sends a request whole."""

    @abstractmethod
    def receive(self) -> bool:
        """Reads once, when there is something to read; True if that ends the answer. Raises Refused, BenchError."""

    def ask(self, events: Sequence[bytes]) -> None:
        """Raises Refused, BenchError."""
        self.send(events)
        while not self.receive():
            pass

    def close(self) -> None:
        self.sock.close()

    def _read(self) -> bytes:
        try:
            piece = self.sock.recv(65536)
        except TimeoutError:
            raise BenchError(f"a publish request was not answered within {ANSWER_TIMEOUT_S:.0f} s") from None
        if not piece:
            raise BenchError("the server closed a publisher's connection")
        self._received += piece
        return self._received


class HttpWire(Wire):
    """A keep-alive connection: requests in one write, answers with a Content-Length."""

    def __init__(self, port: int, path: str = "/", headers: str = "") -> None:
        super().__init__(port)
        self._port = port
        self._path = path
        self._headers = f"{headers}Content-Type: application/json\r\n"
        self._wanted = 0

    def body(self, events: Sequence[bytes]) -> bytes:
        """What a batch is: an array of events, where a server has no form of its own."""
        return b"[" + b",".join(events) + b"]"

    def check(self, body: bytes) -> None:
        """For servers whose 200 may hold a refusal. Raises Refused."""

    def send(self, events: Sequence[bytes]) -> None:
        self._wanted = 1
        self.sock.sendall(format_request("POST", self._path, self._port, self._headers, self.body(events)))

    def receive(self) -> bool:
        self._read()
        while self._wanted and (reply := self._take_reply()) is not None:
            self._wanted -= 1
            if reply.status >= 300:
                raise Refused(str(reply))
            self.check(reply.body)
        return not self._wanted

    def _take_reply(self) -> Reply | None:
        if (found := parse_reply(self._received)) is None:
            return None
        reply, self._received = found
        return reply

    def start_request(self, method: str, path: str, headers: str = "", body: bytes = b"") -> None:
        """Any other request on this connection."""
        self.sock.sendall(format_request(method, path, self._port, headers, body))

    def await_reply(self) -> Reply:
        """To a request that was started. Raises BenchError."""
        while (reply := self._take_reply()) is None:
            self._read()
        return reply

    def request(self, method: str, path: str, headers: str = "", body: bytes = b"") -> Reply:
        """A request and its answer. Raises BenchError."""
        self.start_request(method, path, headers, body)
        return self.await_reply()


# ---------------------------------------------------------------- events


@dataclass(frozen=True)
class About:
    """How an event is addressed, in fragments of JSON.

    key: its stream, where order is checked among those of one key; None: among those of one wire. pad: what it is
    filled up with, as far as that reaches.
    """

    key: int | None
    top: bytes = b""
    data: bytes = b""
    pad: bytes = b""


AboutFunction = Callable[[int], About]


def make_token(stream: int, number: int, sent_ns: int) -> str:
    """What an event carries: the `number`th from 0 of its stream in this round, sent at that moment."""
    return f"~{stream:04x}{number:08x}{sent_ns:016x}~"


def make_event(stream: int, number: int, sent_ns: int, about: About | None = None, size: int = EVENT_BYTES) -> bytes:
    """An event as it is published, `size` bytes of JSON."""
    top, data, pad = (about.top, about.data, about.pad) if about else (b"", b"", b"")
    head = b'{"type":"' + PLAIN_TYPE.encode() + b'",' + top + b'"data":{"t":"'
    middle = make_token(stream, number, sent_ns).encode() + b'",' + data + b'"pad":"'
    room = max(0, size - len(head) - len(middle) - 3)
    return head + middle + pad[:room].ljust(room, b"x") + b'"}}'


def stream_of(published: bytes) -> int:
    """The stream of an event, as its token says; of one user's own events, the user."""
    at = published.index(b"~") + 1
    return int(published[at : at + 4], 16)


# ---------------------------------------------------------------- the clock


class Publisher:
    """Wires with a clock. Each wire is a stream of its own, unless events have keys: then there is one wire.

    took: seconds of each request of the last run, from when it left to when its answer was read.
    """

    def __init__(self, wires: Sequence[Wire], size: int = EVENT_BYTES) -> None:
        self._wires = list(wires)
        self._free = deque(range(len(wires)))  # in turn: a server may cut one that is idle for some seconds
        self._size = size
        self._selector = selectors.DefaultSelector()
        self._free_since = 0.0
        self._faults: list[str] = []
        self._sent: dict[int, float] = {}
        self.took: list[float] = []

    def run(
        self, count: int, batch: int, per_second: float, about: AboutFunction | None = None
    ) -> tuple[float, list[str]]:
        """Publishes `count` events. Returns the 99th percentile of its own lateness in ms, and faults."""
        if about and about(0).key is not None and len(self._wires) > 1:
            raise BenchError("events with keys need one wire: the order of several is nobody's promise")
        self._faults, self.took = [], []
        late: list[float] = []
        numbers: dict[int, int] = defaultdict(int)
        start, start_ns = time.monotonic(), time.time_ns()
        self._free_since = start
        for first in range(0, count, batch):
            due = first / per_second
            while (left := start + due - time.monotonic()) > 0 or not self._free:
                self._collect(left if self._free else ANSWER_TIMEOUT_S)
            late.append(time.monotonic() - max(start + due, self._free_since))
            wire = self._free.popleft()
            part = range(first, min(first + batch, count))
            self._send(wire, self._make(wire, part, about, numbers, start_ns + int(due * 1e9)))
        while len(self._free) < len(self._wires):
            self._collect(ANSWER_TIMEOUT_S)
        late.sort()
        return late[int(0.99 * len(late))] * 1e3, self._faults[:5]

    def make(self, count: int, batch: int, about: AboutFunction | None = None) -> list[deque[list[bytes]]]:
        """For `flood`: `count` events in batches, each wire its share. They carry no time, as there is no schedule."""
        shares: list[deque[list[bytes]]] = [deque() for _ in self._wires]
        numbers: dict[int, int] = defaultdict(int)
        for first in range(0, count, batch):
            wire = first // batch % len(shares)
            shares[wire].append(self._make(wire, range(first, min(first + batch, count)), about, numbers, 0))
        return shares

    def flood(self, shares: Sequence[deque[list[bytes]]], per_second: float) -> list[str]:
        """Publishes these as fast as they are answered, so many per second at most. Returns faults."""
        self._faults, self.took = [], []
        done: list[int] = []
        sent, left, start = 0, 0.0, time.monotonic()
        while len(done) < len(self._wires):
            while self._free and (left := start + sent / per_second - time.monotonic()) <= 0:
                wire = self._free.popleft()
                if shares[wire]:
                    events = shares[wire].popleft()
                    self._send(wire, events)
                    sent += len(events)
                else:
                    done.append(wire)
            if len(done) < len(self._wires):
                self._collect(left if self._free else ANSWER_TIMEOUT_S)
        self._free.extend(done)
        return self._faults[:5]

    def _make(
        self, wire: int, part: range, about: AboutFunction | None, numbers: dict[int, int], sent_ns: int
    ) -> list[bytes]:
        """Each event is the next of its stream."""
        events = []
        for number in part:
            this = about(number) if about else None
            stream = wire if this is None or this.key is None else this.key
            events.append(make_event(stream, numbers[stream], sent_ns, this, self._size))
            numbers[stream] += 1
        return events

    def _send(self, wire: int, events: Sequence[bytes]) -> None:
        self._sent[wire] = time.monotonic()
        self._wires[wire].send(events)
        self._selector.register(self._wires[wire].sock, selectors.EVENT_READ, wire)

    def _collect(self, timeout_s: float) -> None:
        if len(self._free) == len(self._wires):
            time.sleep(timeout_s)
            return
        if self._free:
            ready = self._selector.select(timeout_s)
        elif not (ready := self._selector.select(0)):
            queued_s = _queued_s()
            ready = self._selector.select(timeout_s)
            self._free_since = time.monotonic() - (_queued_s() - queued_s)
        if not ready and timeout_s >= ANSWER_TIMEOUT_S:
            raise BenchError(f"a publish request was not answered within {ANSWER_TIMEOUT_S:.0f} s")
        for key, _ in ready:
            wire: int = key.data
            try:
                if not self._wires[wire].receive():
                    continue
            except Refused as refused:
                self._faults.append(f"a publish request was refused with {refused}")
            self.took.append(time.monotonic() - self._sent[wire])
            self._selector.unregister(self._wires[wire].sock)
            self._free.append(wire)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
        self._selector.close()


def _queued_s() -> float:
    """For how long this thread could have run and had no core, since it began. 0.0 if the kernel does not count it."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
