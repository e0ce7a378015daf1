"""The publisher's clock, against a server in this process that answers when it is told to."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench import publisher as publishing
from bench.machine import BenchError
from bench.publisher import EVENT_BYTES, About, HttpWire, Publisher, Refused, Wire, make_event, make_token

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def answering(answers: Sequence[bytes], delay_s: float = 0.0) -> Iterator[tuple[int, list[bytes]]]:
    """A server of one connection that gives these answers in turn; its port, and the requests as they come."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as peer:
                for answer in answers:
                    piece = peer.recv(65536)
                    if not piece:
                        return
                    requests.append(piece)
                    time.sleep(delay_s)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], requests
        thread.join(5)


class Shared(Wire):
    """Wires on one socket, so that a server's one write of a byte for each is the answer to all of them at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock.dup()

    def send(self, events: Sequence[bytes]) -> None:
        self.sock.sendall(b"?")

    def receive(self) -> bool:
        return self.sock.recv(1) == b"!"


def test_an_event_has_its_size() -> None:
    """What is published has as many bytes as the page says, whoever it is for, and carries its token once."""
    plain, addressed = make_event(1, 2, 3), make_event(1, 2, 3, About(1, top=b'"user":"u1",', data=b'"zone":"z",'))
    assert len(plain) == len(addressed) == EVENT_BYTES
    assert plain.count(make_token(1, 2, 3).encode()) == 1
    assert b"~" not in plain.replace(make_token(1, 2, 3).encode(), b"")


def test_an_event_is_filled_with_what_it_is_about() -> None:
    """A filling is cut to the room that there is; where it ends, letters follow."""
    whole, short = make_event(1, 2, 3, About(1, pad=b"0123456789" * 20)), make_event(1, 2, 3, About(1, pad=b"01"))
    assert len(whole) == len(short) == EVENT_BYTES
    assert b"x" not in whole
    assert b'"pad":"01xx' in short


def test_streams_are_numbered_from_nought() -> None:
    """Each key has numbers of its own, so that a receiver of one key can tell that none is missing."""
    with answering([OK] * 3) as (port, requests):
        publisher = Publisher([HttpWire(port)])
        publisher.run(6, 2, 1000.0, lambda n: About(n % 3))
        publisher.close()
    body = b"".join(requests)
    tokens = sorted(piece[:12] for piece in body.split(b"~")[1::2])
    assert tokens == sorted(b"%04x%08x" % (key, number) for key in range(3) for number in range(2))


def test_waiting_for_the_server_is_not_lateness() -> None:
    """A server that answers slowly makes its own latency worse, not the generator's schedule."""
    with answering([OK] * 5, delay_s=0.4) as (port, _):
        publisher = Publisher([HttpWire(port)])
        late_ms, faults = publisher.run(5, 1, 1000.0)
        publisher.close()
    assert faults == []
    assert late_ms < 1500  # five answers took 2 s


def test_each_request_is_timed() -> None:
    """From when it left to when its answer was read, of the last run alone."""
    with answering([OK] * 3, delay_s=0.1) as (port, _):
        publisher = Publisher([HttpWire(port)])
        publisher.run(1, 1, 1000.0)
        publisher.run(4, 2, float("inf"))
        publisher.close()
    assert len(publisher.took) == 2
    assert all(took >= 0.1 for took in publisher.took)


def test_a_flood_is_made_before_it_leaves() -> None:
    """Each wire sends its share in order, the next when the last is answered, and none before it is due."""
    with answering([OK] * 2) as (one, first), answering([OK]) as (other, second):
        publisher = Publisher([HttpWire(one), HttpWire(other)])
        start = time.monotonic()
        faults = publisher.flood(publisher.make(5, 2), 10.0)
        took = time.monotonic() - start
        publisher.close()
    assert took >= 0.4  # the last is due when four have left
    assert (faults, len(publisher.took)) == ([], 3)
    sent = [[piece[:28].decode() for piece in b"".join(bodies).split(b"~")[1::2]] for bodies in (first, second)]
    assert sent == [[f"0000{n:08x}{0:016x}" for n in range(3)], [f"0001{n:08x}{0:016x}" for n in range(2)]]


def test_waiting_for_several_answers_is_not_lateness() -> None:
    """A server that lets all wires wait and then answers them at once has caused all that was held up by it."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        while len(theirs.recv(2, socket.MSG_WAITALL)) == 2:
            time.sleep(0.4)
            theirs.sendall(b"!!")

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with theirs:
        with ours:
            publisher = Publisher([Shared(ours), Shared(ours)])
            late_ms, faults = publisher.run(4, 1, 1000.0)
            publisher.close()
        server.join(5)
    assert faults == []
    assert late_ms < 300  # the third and the fourth event left after 0.4 s


def test_waiting_for_its_core_is_lateness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says that the generator waited for a core, while an answer lay there, is not the server's."""
    monkeypatch.setattr(publishing, "_queued_s", itertools.count(0, 0.3).__next__)
    with answering([OK] * 2, delay_s=0.4) as (port, _):
        publisher = Publisher([HttpWire(port)])
        late_ms, _ = publisher.run(2, 1, 1000.0)
        publisher.close()
    assert late_ms > 250


class Slow(HttpWire):
    """A publisher that needs 0.1 s for each request."""

    def send(self, events: Sequence[bytes]) -> None:
        super().send(events)
        time.sleep(0.1)


@pytest.mark.parametrize("wires", [1, 2])
def test_being_slow_itself_is_lateness(wires: int) -> None:
    """A generator that can't keep its own pace is late, though each answer is there before it has read it."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(answering([OK] * 5))[0] for _ in range(wires)]
        publisher = Publisher([Slow(port) for port in ports])
        late_ms, faults = publisher.run(5, 1, 1000.0)
        publisher.close()
    assert faults == []
    assert late_ms > 350  # the fifth event left after 0.4 s


def test_a_refusal_is_a_fault() -> None:
    """A request that is answered with an error is told with the answer."""
    refusal = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nslow"
    with answering([refusal, OK]) as (port, _):
        publisher = Publisher([HttpWire(port)])
        _, faults = publisher.run(2, 1, 1000.0)
        publisher.close()
    assert len(faults) == 1
    assert "429" in faults[0]
    assert "slow" in faults[0]


def test_an_answer_may_come_in_pieces() -> None:
    """Half an answer is none, and the rest of it is waited for."""
    with answering([OK[:10]]) as (port, _), socket.create_server(("127.0.0.1", 0)):
        wire = HttpWire(port)
        wire.send([make_event(0, 0, 0)])
        assert not wire.receive()
        wire.close()


def test_wires_take_turns() -> None:
    """However fast the server answers, no wire is idle for so long that the server may take it for given up."""
    with answering([OK] * 3) as (first, some), answering([OK] * 3) as (second, others):
        publisher = Publisher([HttpWire(first), HttpWire(second)])
        publisher.run(6, 1, 20.0)
        publisher.close()
    assert (len(some), len(others)) == (3, 3)


def test_keys_need_one_wire() -> None:
    """Two connections to a server promise no order between them, so that events with keys have one."""
    with answering([]) as (first, _), answering([]) as (second, _):
        publisher = Publisher([HttpWire(first), HttpWire(second)])
        with pytest.raises(BenchError, match="one wire"):
            publisher.run(1, 1, 1.0, lambda _: About(0))
        publisher.close()


def test_a_refused_question_raises() -> None:
    """One event at a time: what was refused is an exception."""
    with answering([b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"]) as (port, _):
        wire = HttpWire(port)
        with pytest.raises(Refused, match="503"):
            wire.ask([make_event(0, 0, 0)])
        wire.close()
