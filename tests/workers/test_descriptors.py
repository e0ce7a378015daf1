"""Finding the descriptor of a connection by its peer: real sockets of this process, among much else."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from workers.descriptors import AHEAD, Descriptors


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
        accepted = self._stack.enter_context(self._socket.accept()[0])
        return client, accepted


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


def test_addresses_of_ipv6_are_found_however_they_are_spelled(stack: contextlib.ExitStack) -> None:
    """The long form, and one with a zone, are the same address."""
    try:
        listening = Listening(stack, socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    for spelled in ("::1", "0:0:0:0:0:0:0:1", "::1%lo"):
        client, accepted = listening.connect()
        assert Descriptors().find(spelled, peer(client)[1]) == accepted.fileno()
