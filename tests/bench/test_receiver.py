"""The receiver in C, against a server in this process that misbehaves in every way that a benchmark must not miss."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from bench.machine import BenchError
from bench.publisher import make_event
from bench.receiver import ANY_STREAM, Counts, Plan, Receiver, Style, make_histogram
from bench.write_baseline import WriteBaseline
from bench.ws_client import client_frame, format_upgrade

STYLE = Style(ready=b"welcome", ping=b"PING", pong=client_frame(b"PONG"), between=b"\nPING")
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
ARRIVE_S = 30.0


def frame(payload: bytes, head: int = 0x81) -> bytes:
    """A server's frame."""
    length = len(payload)
    return bytes([head]) + (bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")) + payload


def events(*numbers: int, stream: int = 0) -> bytes:
    return b"".join(make_event(stream, number, 1) for number in numbers)


@contextmanager
def serving(say: Callable[[socket.socket], None], answer: bytes = ACCEPTED + frame(b"welcome")) -> Iterator[int]:
    """A server of one connection, which it answers and hands to `say`. Gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.settimeout(ARRIVE_S)
                peer.recv(4096)
                peer.sendall(answer)
                say(peer)
                while peer.recv(4096):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(ARRIVE_S)


def received(*pieces: bytes, wanted: int, streams: tuple[int, int] = ANY_STREAM) -> Counts:
    """What a receiver makes of these bytes, each sent on its own."""
    start = threading.Event()

    def say(peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start.wait(ARRIVE_S)
        for piece in pieces:
            peer.sendall(piece)

    with serving(say) as port, Receiver(STYLE) as receiver:
        receiver.open([Plan(port, format_upgrade(port, "/"), streams=streams)])
        receiver.reset()
        start.set()
        receiver.until(wanted, ARRIVE_S)
        return receiver.counts()


def test_all_is_well() -> None:
    """Events in order, several to a frame, are counted, timed, and give no fault."""
    counts = received(frame(events(0)), frame(events(1, 2)), wanted=3)
    assert (counts.events, counts.frames, counts.faults) == (3, 2, [])
    assert (counts.fewest, counts.most) == (3, 3)
    assert make_histogram(counts.latency_us).get_total_count() == 3


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((0, 2), "lost_or_disordered"), ((0, 0), "repeated"), ((1, 0), "repeated"), ((1,), "lost_or_disordered")],
)
def test_what_is_lost_or_comes_twice_is_a_fault(numbers: tuple[int, ...], told: str) -> None:
    """An event that is missing, repeated or out of order is told, wherever it stands."""
    counts = received(frame(events(*numbers)), wanted=len(numbers))
    assert counts.faults
    assert getattr(counts, told) >= 1


def test_an_event_for_somebody_else_is_a_fault() -> None:
    """A stream outside the connection's own got past a filter."""
    counts = received(frame(events(0, stream=7)), wanted=1, streams=(3, 5))
    assert counts.stray == 1
    assert "stream 7" in counts.faults[0]


@pytest.mark.parametrize(
    ("first", "then", "fault"),
    [
        ((0,), (1, 2, 0, 1), ""),
        ((0, 1, 2), (0, 1), ""),
        ((0,), (2,), "event 2 of stream 0 where 1 was due"),
        ((0,), (1, 0), "event 0 of stream 0 where 2 was due"),
        ((0, 1), (1, 2), "event 1 of stream 0 where 2 was due"),
        ((0, 1, 2, 0), (), "event 0 of stream 0 where 3 was due"),
        ((0, 1, 2), (0, 0), "event 0 of stream 0 where 1 was due"),
    ],
)
def test_a_slow_connection_is_checked_over_rounds(first: tuple[int, ...], then: tuple[int, ...], fault: str) -> None:
    """One that is still at the round before may go on from its end to the beginning of the next, and only there."""
    with fast_and_slow() as (both, receiver):
        both.join(receiver, slow=False)
        both.join(receiver, slow=True)
        faults = both.round(receiver, (0, 1, 2), first) + both.round(receiver, (0, 1), then)
    assert faults == ([f"{fault}, on a slow connection"] if fault else [])


def test_a_slow_connection_may_come_between_rounds() -> None:
    """It begins with the round after it came, however long the ones before were."""
    with fast_and_slow() as (both, receiver):
        both.join(receiver, slow=False)
        faults = both.round(receiver, (0, 1, 2), ())
        both.join(receiver, slow=True)
        faults += both.round(receiver, (0, 1), (0, 1)) + both.round(receiver, (0,), (0,))
    assert not faults


class Both:
    """Two servers of one connection each, of which one is slow to be read."""

    def __init__(self) -> None:
        self.lines = {False: SimpleQueue[bytes](), True: SimpleQueue[bytes]()}
        self.ports: dict[bool, int] = {}

    def saying(self, slow: bool) -> Callable[[socket.socket], None]:
        """For `serving`: sends what comes in the queue, until it is b""."""

        def say(peer: socket.socket) -> None:
            while piece := self.lines[slow].get():
                peer.sendall(piece)

        return say

    def join(self, receiver: Receiver, *, slow: bool) -> None:
        port = self.ports[slow]
        receiver.open([Plan(port, format_upgrade(port, "/"), slow=slow)])

    def round(self, receiver: Receiver, fast: tuple[int, ...], slow: tuple[int, ...]) -> list[str]:
        """The faults of one round, in which these events arrive on the two."""
        receiver.reset()
        for number in fast:
            self.lines[False].put(frame(events(number)))
        for number in slow:
            self.lines[True].put(frame(events(number)))
        assert receiver.until(len(fast), ARRIVE_S)
        deadline = time.monotonic() + ARRIVE_S
        while (counts := receiver.counts()).slow_events < len(slow):
            assert time.monotonic() < deadline
        assert (counts.events, counts.slow_events) == (len(fast), len(slow))
        return counts.faults


@contextmanager
def fast_and_slow() -> Iterator[tuple[Both, Receiver]]:
    both = Both()
    with (
        serving(both.saying(False)) as both.ports[False],
        serving(both.saying(True)) as both.ports[True],
        Receiver(STYLE, slow_bytes_per_s=1e6) as receiver,
    ):
        try:
            yield both, receiver
        finally:
            for line in both.lines.values():
                line.put(b"")


@pytest.mark.parametrize("at", [1, 3, 9, 40, 45, 60, 70, 150, 203, 204, 206])
def test_a_frame_may_be_cut_anywhere(at: int) -> None:
    """Bytes that arrive in two reads give the same as in one."""
    whole = frame(events(0)) + frame(events(1))
    counts = received(whole[:at], whole[at:], wanted=2)
    assert (counts.events, counts.faults) == (2, [])


@pytest.mark.parametrize("at", [1, 30, 38, 45, 60, 66, 67, 120])
def test_an_event_may_be_spread_over_frames(at: int) -> None:
    """A server that splits messages at any byte, as NATS may, loses none of them."""
    payload = events(0, 1)
    counts = received(frame(payload[:at]) + frame(payload[at:]), wanted=2)
    assert (counts.events, counts.faults) == (2, [])


@pytest.mark.parametrize(
    "payload", [b"PING", events(0) + b"\nPING", events(0) + b"\nPING\n" + events(1)], ids=["alone", "last", "between"]
)
def test_a_ping_is_answered(payload: bytes) -> None:
    """A heartbeat is answered and counted, also one that was joined with events."""
    heard: list[bytes] = []

    def say(peer: socket.socket) -> None:
        peer.sendall(frame(payload))
        heard.append(peer.recv(4096))

    with serving(say) as port, Receiver(STYLE) as receiver:
        receiver.open([Plan(port, format_upgrade(port, "/"))])
        receiver.until(99, 1.0)
        assert receiver.counts().pings == 1
    assert heard == [client_frame(b"PONG")]


def test_a_ping_of_the_protocol_is_counted_too() -> None:
    """A server whose heartbeats are frames of their own kind (RFC 6455, 5.5.2) is seen to have sent them."""
    heard: list[bytes] = []

    def say(peer: socket.socket) -> None:
        peer.sendall(frame(b"there?", head=0x89))
        heard.append(peer.recv(4096))

    with serving(say) as port, Receiver(STYLE) as receiver:
        receiver.open([Plan(port, format_upgrade(port, "/"))])
        receiver.until(99, 1.0)
        assert receiver.counts().pings == 1
    assert heard == [client_frame(b"there?", 0xA)]


def test_frames_that_were_compressed_are_read() -> None:
    """A frame with the mark of compression is looked into, and a plain one beside it is taken as it is."""

    def say(peer: socket.socket) -> None:
        peer.sendall(frame(b"\xc1" + zlib.compress(events(0, 1), wbits=-15), 0x82) + frame(events(2)))

    with serving(say, ACCEPTED) as port, Receiver(Style(compressed=True)) as receiver:
        receiver.open([Plan(port, format_upgrade(port, "/"))])
        receiver.until(3, ARRIVE_S)
        counts = receiver.counts()
    assert (counts.events, counts.faults) == (3, [])


def test_the_floor_delivers_what_it_charges_for() -> None:
    """The loop of bare writes sends each frame to each socket, and says what that took."""
    with WriteBaseline(20) as floor:
        cost = floor.run(frame(events(0)), 50, 2000.0)
    assert 1e-7 < cost < 1e-3


def test_an_end_is_a_fault() -> None:
    """A connection that the server closes makes a round void, with the server's reason."""
    counts = received(frame(events(0)), frame((4413).to_bytes(2, "big") + b"too slow", head=0x88), wanted=2)
    assert counts.ended == 1
    assert "closed with 4413 too slow" in counts.faults[0]


def test_a_refused_upgrade_is_told() -> None:
    """A server that does not accept is an error with its answer, not a wait."""
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with (
        serving(lambda _: None, refusal) as port,
        Receiver(STYLE) as receiver,
        pytest.raises(BenchError, match="503 Service Unavailable"),
    ):
        receiver.open([Plan(port, format_upgrade(port, "/"))])
