"""The handle of `receiver.c`: a process of many connections, and what arrived on them.

How a server is spoken to is a `Style` and, per connection, a `Plan`: our own light client, so that every server meets
the same reader. Publishers put a `token` into each event; see `receiver.c` for what it proves.
"""

from __future__ import annotations

import base64
import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from bench.machine import HOST, LOAD_CORES, BenchError, close, compiled, cpu_seconds, placed

OPEN_TIMEOUT_S = 60.0
LONGEST_US = 600_000_000
ANY_STREAM = (0, 0xFFFF)
TOKEN_CHARACTERS = 30
TEXT, BINARY = 0x1, 0x2


def token(stream: int, number: int, sent_ns: int) -> str:
    """What an event carries: the `number`th from 0 of its stream in this round, sent at that moment."""
    return f"~{stream:04x}{number:08x}{sent_ns:016x}~"


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


def upgrade(port: int, target: str, subprotocol: str = "", headers: str = "") -> bytes:
    """The request that opens a WebSocket. headers: further lines, each with its line end."""
    key = base64.b64encode(os.urandom(16)).decode()
    if subprotocol:
        headers += f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    return (
        f"GET {target} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    ).encode()


@dataclass(frozen=True)
class Style:
    """ready: in the message that ends the greeting; b"": the upgrade's answer does. ping_at: where its mark stands.

    between: how a ping looks among other messages, where a server joins several in one frame. compressed: messages that
    begin with 0xC1 are, as docs/protocol.md says.
    """

    ready: bytes = b""
    ping: bytes = b""
    pong: bytes = b""
    ping_at: int = 0
    between: bytes = b""
    compressed: bool = False


@dataclass(frozen=True)
class Plan:
    """One connection. greeting: sent after the upgrade. streams: the lowest and highest that it may get.

    slow: reads no faster than the receiver is told. It must get what some other gets that is not, and is
    checked like all others.
    """

    port: int
    request: bytes
    greeting: bytes = b""
    streams: tuple[int, int] = ANY_STREAM
    slow: bool = False


class Counts(msgspec.Struct):
    """What arrived since the last reset. Slow connections are counted apart. latency_us: (value, how often).

    pings: heartbeats of either kind, the server's messages and the protocol's own frames.
    """

    connections: int
    slow: int
    frames: int
    events: int
    slow_events: int
    bytes: int
    pings: int
    fewest: int
    most: int
    ended: int
    slow_ended: int
    lost_or_disordered: int
    repeated: int
    stray: int
    latency_us: list[tuple[int, int]]
    faults: list[str]

    def latency(self) -> HdrHistogram:
        return histogram(self.latency_us)


class Opened(msgspec.Struct):
    """How long it took to open them; latency_us: of each, from connect() to its welcome."""

    reached: bool
    opened: int
    seconds: float
    latency_us: list[tuple[int, int]]


class _Reached(msgspec.Struct):
    reached: bool


class _Frame(msgspec.Struct):
    bytes: int


def histogram(pairs: Sequence[tuple[int, int]]) -> HdrHistogram:
    """In µs, 3 significant digits; ten minutes stand for all that is longer."""
    found = HdrHistogram(1, LONGEST_US, 3)
    for value, times in pairs:
        found.record_value(min(max(1, value), LONGEST_US), times)
    return found


def percentiles(found: HdrHistogram) -> dict[str, float]:
    """p50, p99 and max in ms."""
    return {
        "p50": found.get_value_at_percentile(50) / 1e3,
        "p99": found.get_value_at_percentile(99) / 1e3,
        "max": found.get_max_value() / 1e3,
    }


class Receiver:
    """The other process. Each method gives one order and waits for its answer."""

    def __init__(self, style: Style, slow_bytes_per_s: float = 0.0) -> None:
        binary = compiled(Path(__file__).with_name("receiver.c"))
        self._process = subprocess.Popen(
            [binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=placed(LOAD_CORES)
        )
        self._order(
            b"S"
            + struct.pack("=B", len(style.ready))
            + style.ready
            + struct.pack("=BB", style.ping_at, len(style.ping))
            + style.ping
            + struct.pack("=B", len(style.between))
            + style.between
            + struct.pack("=H", len(style.pong))
            + style.pong
            + struct.pack("=B", style.compressed)
        )
        if slow_bytes_per_s:
            self._order(b"P" + struct.pack("=d", slow_bytes_per_s))
        self.opened = 0

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        close(self._process)

    def _order(self, words: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(words)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError("the receiver ended") from None
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchError(f"the receiver ended with status {self._process.wait()}")
        return answer

    def open(self, plans: Sequence[Plan], at_once: int = 64, timeout_s: float = OPEN_TIMEOUT_S) -> Opened:
        """Opens the connections, so many handshakes at a time. Raises BenchError if one does not get in."""
        words = [b"O", struct.pack("=IId", len(plans), at_once, timeout_s)]
        for p in plans:
            words.append(struct.pack("=HIIBH", p.port, *p.streams, p.slow, len(p.request)) + p.request)
            words.append(struct.pack("=H", len(p.greeting)) + p.greeting)
        self.opened += len(plans)
        return self._opened(b"".join(words))

    def open_raw(self, port: int, count: int) -> None:
        """Connections to the floor, which sends frames without any handshake."""
        one = struct.pack("=HIIBHH", port, *ANY_STREAM, 2, 0, 0)
        self.opened += count
        self._opened(b"O" + struct.pack("=IId", count, 64, OPEN_TIMEOUT_S) + one * count)

    def _opened(self, words: bytes) -> Opened:
        found = msgspec.json.decode(self._order(words), type=Opened)
        if not found.reached:
            faults = self.counts().faults
            raise BenchError(f"{found.opened} of {self.opened} connections opened: {faults[:3]}")
        return found

    def reset(self) -> None:
        self._order(b"R")

    def until(self, events: int, timeout_s: float) -> bool:
        """Waits until that many events have arrived on all connections together since the last reset."""
        answer = self._order(b"U" + struct.pack("=Qd", events, timeout_s))
        return msgspec.json.decode(answer, type=_Reached).reached

    def counts(self) -> Counts:
        return msgspec.json.decode(self._order(b"Q"), type=Counts)

    def last_frame(self) -> bytes:
        """The bytes of the first connection's newest frame with events, header and all."""
        size = msgspec.json.decode(self._order(b"F"), type=_Frame).bytes
        assert self._process.stdout is not None
        return self._process.stdout.read(size)

    def close_all(self) -> None:
        """Ends all connections, without a word to the server."""
        self._order(b"C")
        self.opened = 0

    def cpu(self) -> float:
        return cpu_seconds(self._process.pid)
