"""Finding the descriptor of a connection by its peer: real sockets of this process, among much else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from workers import descriptors as descriptors_module
from workers.descriptors import AHEAD, Descriptors, _look_at


class Listening:
    """A listening socket of this process, its accepted connections, and their clients."""

    def __init__(self, stack: contextlib.ExitStack, family: socket.AddressFamily, host: str) -> None:
        self._stack = stack
        self._socket = stack.enter_context(socket.socket(family))
        self._socket.bind((host, 0))
        self._socket.listen(1000)
        self._family = family

    def client(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(self._family))

    def connect(self, client: socket.socket | None = None) -> tuple[socket.socket, socket.socket]:
        """Client and accepted connection."""
        client = client or self.client()
        client.connect(self._socket.getsockname())
        return client, self.accept()

    def accept(self) -> socket.socket:
        return self._stack.enter_context(self._socket.accept()[0])

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def listening(stack: contextlib.ExitStack) -> Listening:
    return Listening(stack, socket.AF_INET, "127.0.0.1")


def peer(client: socket.socket) -> tuple[str, int]:
    host, port, *_ = client.getsockname()
    return host, port


def test_each_connection_is_found_whoever_asks_first(listening: Listening) -> None:
    """Many that were accepted together are told from each other, in any order."""
    pairs = [listening.connect() for _ in range(200)]
    descriptors = Descriptors()
    for client, accepted in (*pairs[::2], *reversed(pairs[1::2])):
        assert descriptors.find(*peer(client)) == accepted.fileno()


def test_a_number_is_found_once(listening: Listening) -> None:
    """Until it is given back nobody else gets it, even one who asks for the same peer."""
    client, accepted = listening.connect()
    descriptors = Descriptors()
    assert descriptors.find(*peer(client)) == accepted.fileno()
    assert descriptors.find(*peer(client)) is None
    descriptors.release(accepted.fileno())
    assert descriptors.find(*peer(client)) == accepted.fileno()


def test_a_number_that_is_used_again_is_found_for_its_new_peer_alone(listening: Listening) -> None:
    """As it is when one connection ends and the next begins, and when one ended that nobody had asked for."""
    descriptors = Descriptors()
    next_ones = [listening.client() for _ in range(2)]  # before: they take numbers of this process, too
    first, accepted = listening.connect()
    number = accepted.fileno()
    unasked, other = listening.connect()
    was_unasked = other.fileno()
    assert descriptors.find(*peer(first)) == number
    assert descriptors.find("127.0.0.1", 1) is None  # sees the other one on its way
    descriptors.release(number)
    accepted.close()
    other.close()
    late, again = listening.connect(next_ones[0])
    assert again.fileno() == number
    later, last = listening.connect(next_ones[1])
    assert last.fileno() == was_unasked
    assert descriptors.find(*peer(unasked)) is None
    assert descriptors.find(*peer(later)) == last.fileno()
    assert descriptors.find(*peer(first)) is None
    assert descriptors.find(*peer(late)) == number


def test_a_connection_that_has_gone_is_not_found(listening: Listening) -> None:
    """It is closed at both ends, or was never there."""
    client, accepted = listening.connect()
    gone = peer(client)
    client.close()
    accepted.close()
    descriptors = Descriptors()
    assert descriptors.find(*gone) is None
    assert descriptors.find("192.0.2.1", 443) is None


def test_it_is_found_behind_any_number_of_gaps_and_other_files(
    listening: Listening, stack: contextlib.ExitStack
) -> None:
    """Pipes, sockets of other kinds, files, and more free numbers than are looked at one by one."""
    descriptors = Descriptors()
    ends = socket.socketpair()
    pipes = [os.pipe() for _ in range(AHEAD)]
    for end in ends:
        stack.enter_context(end)
    client, accepted = listening.connect()
    for pipe in pipes:
        for end_of_pipe in pipe:
            os.close(end_of_pipe)
    stack.enter_context(open(os.devnull))  # noqa: SIM115
    assert descriptors.find(*peer(client)) == accepted.fileno()


def test_one_miss_makes_nobody_after_it_slow(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the process has is listed for the one who has gone, not for those who come then."""
    descriptors = Descriptors()
    assert descriptors.find("192.0.2.1", 443) is None
    monkeypatch.setattr("os.listdir", None)
    for _ in range(20):
        client, accepted = listening.connect()
        assert descriptors.find(*peer(client)) == accepted.fileno()
        descriptors.release(accepted.fileno())
        accepted.close()


def test_thousands_who_say_nothing_keep_nobody_waiting(
    listening: Listening, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one connection so many of the others are looked at and no more, from the lowest number on."""
    monkeypatch.setattr(descriptors_module, "LOOKS", 10)
    looks: list[int] = []
    monkeypatch.setattr(descriptors_module, "_look_at", lambda number: looks.append(number) or look_at(number))
    look_at = _look_at
    for _ in range(100):
        listening.connect()
    descriptors = Descriptors()
    for _ in range(20):
        descriptors.find("192.0.2.1", 443)
    looks.clear()
    assert descriptors.find("192.0.2.1", 443) is None
    assert len(looks) <= 2 * 10 + AHEAD
    assert looks[AHEAD:] == sorted(looks[AHEAD : AHEAD + 10]) * 2


def test_two_connections_of_one_peer_are_told_from_nobody(stack: contextlib.ExitStack) -> None:
    """One port may be connected to several addresses of ours: neither is given to who might mean the other."""
    one, other = (Listening(stack, socket.AF_INET, "127.0.0.1") for _ in range(2))
    clients = [socket.socket() for _ in range(2)]
    for client in clients:
        stack.enter_context(client).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    clients[0].bind(("127.0.0.1", 0))
    _, first = one.connect(clients[0])
    clients[1].bind(clients[0].getsockname())
    _, second = other.connect(clients[1])
    descriptors = Descriptors()
    assert descriptors.find(*peer(clients[0])) is None
    second.close()
    assert descriptors.find(*peer(clients[0])) == first.fileno()


def test_an_ipv4_address_is_found_however_a_socket_of_ipv6_spells_it(stack: contextlib.ExitStack) -> None:
    """A process that listens on `::` may be told of its clients in either form."""
    listening = Listening(stack, socket.AF_INET6, "::")
    for spelled in ("127.0.0.1", "::ffff:127.0.0.1"):
        client = stack.enter_context(socket.socket())
        client.connect(("127.0.0.1", listening.port))
        accepted = listening.accept()
        assert Descriptors().find(spelled, client.getsockname()[1]) == accepted.fileno()


class Coming(RuleBasedStateMachine):
    """Connections come, are asked for, end and go, among other files; each is found for its own peer, and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.listening = Listening(self.stack, socket.AF_INET, "127.0.0.1")
        self.descriptors = Descriptors()
        self.waiting: list[tuple[socket.socket, socket.socket]] = []
        self.taken: list[tuple[socket.socket, socket.socket]] = []
        self.gone: list[tuple[str, int]] = []
        self.files: list[int] = []

    def teardown(self) -> None:
        self.stack.close()
        for file in self.files:
            os.close(file)

    @rule()
    def connect(self) -> None:
        self.waiting.append(self.listening.connect())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        client, accepted = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.descriptors.find(*peer(client)) == accepted.fileno()
        self.taken.append((client, accepted))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_unasked(self, data: st.DataObject) -> None:
        self.end(*self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), late=st.booleans())
    def leave(self, data: st.DataObject, late: bool) -> None:
        client, accepted = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.descriptors.release(accepted.fileno())
        if late:  # somebody looks before it is closed
            accepted.shutdown(socket.SHUT_RDWR)
            assert self.descriptors.find("192.0.2.1", 1) is None
        self.end(client, accepted)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def ask_for_who_has_gone(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.gone))
        if gone not in {peer(client) for client, _ in self.waiting}:
            assert self.descriptors.find(*gone) is None

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def ask_for_who_is_taken(self, data: st.DataObject) -> None:
        client, _ = data.draw(st.sampled_from(self.taken))
        assert self.descriptors.find(*peer(client)) is None

    @rule()
    def open_file(self) -> None:
        self.files.append(os.open(os.devnull, os.O_RDONLY))

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def close_file(self, data: st.DataObject) -> None:
        os.close(self.files.pop(data.draw(st.integers(0, len(self.files) - 1))))

    def end(self, client: socket.socket, accepted: socket.socket) -> None:
        self.gone.append(peer(client))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its port is free at once
        client.close()
        accepted.close()


TestComing = Coming.TestCase
TestComing.settings = settings(max_examples=40, stateful_step_count=40)


def test_addresses_of_ipv6_are_found_however_they_are_spelled(stack: contextlib.ExitStack) -> None:
    """The long form, and one with a zone, are the same address."""
    try:
        listening = Listening(stack, socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    for spelled in ("::1", "0:0:0:0:0:0:0:1", "::1%lo"):
        client, accepted = listening.connect()
        assert Descriptors().find(spelled, peer(client)[1]) == accepted.fileno()
