"""The handle of `receiver.c`: a process of many connections, and what arrived on them.

How a server is spoken to is a `Style` and, per connection, a `Plan`: our own light client, so that every server meets
the same reader. Publishers put a `token` into each event; see `receiver.c` for what it proves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from bench.machine import LOAD_CORES, BenchError, Program

OPEN_TIMEOUT_S = 60.0
LONGEST_US = 600_000_000
ANY_STREAM = (0, 0xFFFF)
NEVER_READS = 1.0
"""Bytes per second of a slow connection that are too few for one read."""
_SLOW, _RAW = 1, 2


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

    def pack(self) -> bytes:
        ready, ping, between = (struct.pack("=B", len(m)) + m for m in (self.ready, self.ping, self.between))
        pong = struct.pack("=H", len(self.pong)) + self.pong
        return b"S" + ready + struct.pack("=B", self.ping_at) + ping + between + pong + bytes([self.compressed])


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

    def pack(self) -> bytes:
        flags = _SLOW if self.slow else 0 if self.request else _RAW
        head = struct.pack("=HIIBH", self.port, *self.streams, flags, len(self.request))
        return head + self.request + struct.pack("=H", len(self.greeting)) + self.greeting


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


def make_histogram(pairs: Iterable[tuple[int, int]]) -> HdrHistogram:
    """In µs, 3 significant digits; ten minutes stand for all that is longer."""
    found = HdrHistogram(1, LONGEST_US, 3)
    for value, times in pairs:
        found.record_value(min(max(1, value), LONGEST_US), times)
    return found


def percentiles(found: HdrHistogram) -> dict[str, float]:
    """p50, p99 and max in ms."""
    p50, p99 = found.get_value_at_percentile(50), found.get_value_at_percentile(99)
    return {"p50": p50 / 1e3, "p99": p99 / 1e3, "max": found.get_max_value() / 1e3}


def percentiles_of(seconds: Iterable[float]) -> dict[str, float]:
    """The same of durations in seconds."""
    return percentiles(make_histogram((int(s * 1e6), 1) for s in seconds))


class Receiver:
    """The other process. Each method gives one order and waits for its answer."""

    def __init__(self, style: Style, slow_bytes_per_s: float = 0.0) -> None:
        self._program = Program("receiver.c", LOAD_CORES)
        self.cpu = self._program.cpu
        self._order(style.pack())
        if slow_bytes_per_s:
            self._order(b"P" + struct.pack("=d", slow_bytes_per_s))
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()

    def _order(self, words: bytes) -> bytes:
        self._program.order(words)
        return self._program.read_line()

    def open(self, plans: Sequence[Plan], at_once: int = 64) -> Opened:
        """Opens the connections, so many handshakes at a time. Raises BenchError if one does not get in.

        A plan without a request is a connection to a server that sends frames without any handshake.
        """
        self._asked += len(plans)
        words = b"O" + struct.pack("=IId", len(plans), at_once, OPEN_TIMEOUT_S) + b"".join(p.pack() for p in plans)
        found = msgspec.json.decode(self._order(words), type=Opened)
        if not found.reached:
            raise BenchError(f"{found.opened} of {self._asked} connections opened: {self.counts().faults[:3]}")
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
        frame: bytes = self._program.stdout.read(size)
        return frame

    def close_all(self) -> None:
        """Ends all connections, without a word to the server."""
        self._order(b"C")
        self._asked = 0
