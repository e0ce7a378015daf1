"""A receiver that costs little: many WebSocket connections in one process, on raw sockets and epoll.

What it keeps true: every frame is seen whole and every event counted, on every connection, by counting
`"offset":` in the frame's bytes; on the *sampled* connections each event is decoded as well, its latency
taken from `sent_ns` in its own data, and its offset checked. So a missing event can't hide, and a thousand
connections of a thousand events per second (300 MB/s) fit on one core. `Report.cpu_s` tells whether they did.

The other process holds a `Receiver` and gives one order at a time over a pipe; orders and answers are tuples.
"""

from __future__ import annotations

import base64
import contextlib
import multiprocessing
import os
import select
import socket
import struct
import time
from array import array
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from urllib.parse import urlsplit

import msgspec

BUFFER_BYTES = 2 * 1024 * 1024
"""One buffer for all reads. A frame must fit into it; the server bounds frames far below."""
HANDSHAKE_TIMEOUT_S = 20.0
CONTINUATION, TEXT, CLOSE, PING = 0x0, 0x1, 0x8, 0x9
EVENTS_PREFIX = b'{"type":"events"'
EVENT_MARK = b'"offset":'


class Plan(msgspec.Struct):
    """One connection to open.

    sampled: its events are decoded. gapless: it gets every offset. zones: what its events may be about, ()
    for anything.
    """

    url: str
    hello: bytes
    sampled: bool = False
    gapless: bool = False
    zones: tuple[str, ...] = ()


class Report(msgspec.Struct):
    """What arrived since the last reset. Latencies in ms, of the sampled connections; faults in words."""

    connections: int
    frames: int
    events: int
    bytes: int
    fewest: int
    most: int
    compacted_frames: int
    latency_count: int
    latency_p50: float
    latency_p99: float
    latency_max: float
    cpu_s: float
    wall_s: float
    faults: list[str]


class _Data(msgspec.Struct):
    sent_ns: int = 0
    zone: str = ""


class _Event(msgspec.Struct):
    offset: int
    data: _Data


class _Message(msgspec.Struct):
    """Any message of the server, as far as a receiver cares."""

    type: str
    events: list[_Event] = []
    compacted: dict[str, int] | None = None
    code: str = ""


decode_message = msgspec.json.Decoder(_Message).decode


@dataclass(eq=False)
class _Connection:
    sock: socket.socket
    plan: Plan
    tail: bytes = b""
    frames: int = 0
    events: int = 0
    offset: int = 0
    zones: frozenset[str] = field(default_factory=frozenset)


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A client's frame (RFC 6455, 5.2) under the mask 0, which masks by changing nothing."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + b"\0\0\0\0" + payload


def open_websocket(plan: Plan) -> tuple[socket.socket, bytes]:
    """Connects, upgrades and says hello; returns the socket and what came after the upgrade's answer."""
    url = urlsplit(plan.url)
    sock = socket.create_connection((url.hostname or "127.0.0.1", url.port or 80), HANDSHAKE_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    target = url.path + (f"?{url.query}" if url.query else "")
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: solowire.v1.json\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(65536)
        if not piece:
            break
        answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        sock.close()
        raise ConnectionError(f"upgrade refused: {head.splitlines()[:1]} {rest[:200]!r}")
    sock.sendall(client_frame(plan.hello))
    return sock, rest


class _Loop:
    """The receiving process. Everything in it happens between two calls of epoll."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.epoll = select.epoll()
        self.epoll.register(pipe.fileno(), select.EPOLLIN)
        self.connections: dict[int, _Connection] = {}
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.welcomed = 0
        self.last_frame = b""
        self.waiting: tuple[str, int, float] | None = None
        self.running = True
        self.reset()

    def reset(self) -> None:
        self.frames = self.events = self.bytes = self.compacted = 0
        self.latencies = array("q")
        self.faults: list[str] = []
        self.wall_start, self.cpu_start = time.monotonic(), time.process_time()
        for connection in self.connections.values():
            connection.frames = connection.events = 0

    def run(self) -> None:
        order_fd = self.pipe.fileno()
        while self.running:
            for fd, _ in self.epoll.poll(0.05 if self.waiting else 5.0):
                if fd == order_fd:
                    self.obey(*self.pipe.recv())
                elif fd in self.connections:
                    self.read(self.connections[fd])
            if self.waiting:
                self.check_waiting()

    def check_waiting(self) -> None:
        what, target, deadline = self.waiting or ("", 0, 0.0)
        reached = self.events >= target if what == "events" else self.welcomed >= target
        if reached or time.monotonic() >= deadline:
            self.waiting = None
            self.pipe.send(reached)

    def obey(self, order: str, *values: object) -> None:
        match order, values:
            case "open", (list() as plans,):
                self.open(plans)
            case "raw", (int(port), int(count)):
                for _ in range(count):
                    sock = socket.create_connection(("127.0.0.1", port), HANDSHAKE_TIMEOUT_S)
                    self.add(_Connection(sock, Plan("", b"")))
                self.pipe.send(None)
            case "until", (str(what), int(target), float(timeout_s)):
                self.waiting = (what, target, time.monotonic() + timeout_s)
            case "reset", ():
                self.reset()
                self.pipe.send(None)
            case "report", ():
                self.pipe.send(self.report())
            case "frame", ():
                self.pipe.send(self.last_frame)
            case _:
                self.running = False

    def open(self, plans: list[Plan]) -> None:
        try:
            for plan in plans:
                sock, rest = open_websocket(plan)
                connection = _Connection(sock, plan, zones=frozenset(plan.zones))
                self.add(connection)
                self.take(connection, rest)
        except (OSError, ValueError) as error:
            self.pipe.send(str(error) or repr(error))
        else:
            self.pipe.send(None)

    def add(self, connection: _Connection) -> None:
        connection.sock.setblocking(False)
        self.connections[connection.sock.fileno()] = connection
        self.epoll.register(connection.sock.fileno(), select.EPOLLIN)

    def take(self, connection: _Connection, piece: bytes) -> None:
        """Bytes that came with the upgrade's answer."""
        self.buffer[: len(piece)] = piece
        self.parse(connection, len(piece))

    def fault(self, words: str) -> None:
        """The first ten are kept: a void round needs one."""
        if len(self.faults) < 10:
            self.faults.append(words)

    def drop(self, connection: _Connection, why: str) -> None:
        self.fault(f"a connection ended: {why}")
        self.epoll.unregister(connection.sock.fileno())
        del self.connections[connection.sock.fileno()]
        connection.sock.close()

    def read(self, connection: _Connection) -> None:
        """One read, and all whole frames in it. A part of a frame waits in `tail` for the next read."""
        tail = connection.tail
        try:
            if tail:
                kept = len(tail)
                self.buffer[:kept] = tail
                got = connection.sock.recv_into(self.view[kept:])
            else:
                kept = 0
                got = connection.sock.recv_into(self.view)
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(connection, str(error))
            return
        if not got:
            self.drop(connection, "end of stream")
            return
        self.bytes += got
        self.parse(connection, kept + got)

    def parse(self, connection: _Connection, end: int) -> None:
        buffer = self.buffer
        position = 0
        while end - position >= 2:
            length = buffer[position + 1]
            start = position + 2
            if length == 126:
                start += 2
                length = int.from_bytes(buffer[position + 2 : start])
            elif length == 127:
                start += 8
                length = int.from_bytes(buffer[position + 2 : start])
            stop = start + length
            if start > end or stop > end:
                break
            if buffer[position] == 0x81 and buffer.startswith(EVENTS_PREFIX, start, stop):
                events = buffer.count(EVENT_MARK, start, stop)
                self.frames += 1
                self.events += events
                connection.frames += 1
                connection.events += events
                if connection.plan.sampled:
                    self.last_frame = bytes(buffer[position:stop])
                    self.examine(connection, decode_message(self.view[start:stop]))
            elif not self.other(connection, buffer[position], bytes(self.view[start:stop])):
                return
            position = stop
        connection.tail = bytes(self.view[position:end]) if position < end else b""

    def examine(self, connection: _Connection, message: _Message) -> None:
        """A sampled connection: latency, order, gaps, and nothing that its filter should have kept away."""
        now = time.time_ns()
        if message.compacted:
            self.compacted += 1
            self.fault(f"compacted: {message.compacted}")
        for event in message.events:
            if event.data.sent_ns:
                self.latencies.append(now - event.data.sent_ns)
            wanted = connection.offset + 1
            if connection.offset and (event.offset < wanted or (connection.plan.gapless and event.offset > wanted)):
                self.fault(f"offset {event.offset} where {wanted} was due")
            connection.offset = event.offset
            if connection.zones and event.data.zone not in connection.zones:
                self.fault(f"an event of {event.data.zone} got past the filter")

    def other(self, connection: _Connection, head: int, payload: bytes) -> bool:
        """Anything but events; seldom, so it may be slow. False: the connection has ended."""
        opcode = head & 0x0F
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            self.drop(connection, f"closed with {code} {payload[2:].decode(errors='replace')}")
            return False
        if opcode == PING:
            self.answer(connection, client_frame(payload, 0xA))
        elif head == 0x80 | TEXT:
            message = decode_message(payload)
            if message.type == "welcome":
                self.welcomed += 1
            elif message.type == "ping":
                self.answer(connection, client_frame(b'{"type":"pong"}'))
            elif message.type in ("error", "notice", "reconnect", "events"):
                self.fault(f"unexpected message: {payload[:200].decode(errors='replace')}")
        elif opcode in (CONTINUATION, TEXT):
            self.fault("a fragmented frame, which this receiver does not read")
        return True

    def answer(self, connection: _Connection, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):  # a client that reads as this one does has room to answer
            connection.sock.send(frame)

    def report(self) -> Report:
        counts = [c.events for c in self.connections.values() if c.plan.url] or [0]
        took = sorted(self.latencies)
        return Report(
            connections=len(self.connections),
            frames=self.frames,
            events=self.events,
            bytes=self.bytes,
            fewest=min(counts),
            most=max(counts),
            compacted_frames=self.compacted,
            latency_count=len(took),
            latency_p50=percentile(took, 0.50) / 1e6,
            latency_p99=percentile(took, 0.99) / 1e6,
            latency_max=(took[-1] if took else 0) / 1e6,
            cpu_s=time.process_time() - self.cpu_start,
            wall_s=time.monotonic() - self.wall_start,
            faults=self.faults,
        )


def percentile(ordered: list[int] | array[int], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if ordered else 0.0


def _main(pipe: Pipe, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        _Loop(pipe).run()


class Receiver:
    """The other process's handle. A method gives one order and waits for its answer. core: its place."""

    def __init__(self, core: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, core), daemon=True)
        self._process.start()
        theirs.close()
        self._opened = 0

    def _ask(self, *order: object) -> object:
        self._pipe.send(order)
        return self._pipe.recv()

    def open(self, plans: list[Plan]) -> None:
        """Opens the connections and waits for every `welcome`. Raises ConnectionError."""
        fault = self._ask("open", plans)
        if fault:
            raise ConnectionError(str(fault))
        self._opened += len(plans)
        if not self._ask("until", "welcomed", self._opened, HANDSHAKE_TIMEOUT_S):
            raise ConnectionError(f"not all of {len(plans)} connections were welcomed")

    def open_raw(self, port: int, count: int) -> None:
        """Connections to the floor, which sends frames without any handshake."""
        self._ask("raw", port, count)

    def reset(self) -> None:
        self._ask("reset")

    def until(self, events: int, timeout_s: float) -> bool:
        """Waits until that many events have arrived on all connections together since the last reset."""
        return bool(self._ask("until", "events", events, timeout_s))

    def report(self) -> Report:
        answer = self._ask("report")
        assert isinstance(answer, Report)
        return answer

    def last_frame(self) -> bytes:
        """The bytes of the newest frame of events on a sampled connection, header and all."""
        answer = self._ask("frame")
        assert isinstance(answer, bytes)
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(("stop",))
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
