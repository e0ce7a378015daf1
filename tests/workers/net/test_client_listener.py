"""The listener of a shard's client port, with real sockets: who is accepted, for how long, and what a refusal says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.errors import RequestRejected
from solowire.protocol.opening_handshake import HEAD_BYTES, HEAD_END, render_rejection
from solowire.runtime.http_server import listen
from solowire.workers.net import client_listener
from solowire.workers.net.client_listener import FULL_RESPONSES, AcceptedSocket, ClientListener

SECONDS = 30.0
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
NO = render_rejection(RequestRejected(403, "no", "not here", ""))


class Scarce:
    """A listening socket of which so many accepts fail, each with the next of these errors."""

    def __init__(self, listening: socket.socket, errors: list[int]) -> None:
        self._listening = listening
        self.errors = errors
        self.accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepts += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "not now")
        return self._listening.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)


class Port:
    """A listener, and who does with a connection as the test says: `answer` is the refusal; else it is kept."""

    def __init__(
        self,
        *,
        total: int = 1000,
        per_address: int | None = None,
        head_s: float = SECONDS,
        max_sockets: int = 1000,
        errors: list[int] | None = None,
    ) -> None:
        self.taken: list[AcceptedSocket] = []
        self.answer: bytes | None = None
        self.limiter = AcceptLimiter(total, per_address)
        real = listen("127.0.0.1", 0)
        self.address: tuple[str, int] = real.getsockname()
        self.listening = Scarce(real, errors or [])
        self.listener = ClientListener(
            self.listening,  # type: ignore[arg-type]
            self.handle,
            self.limiter,
            head_s=head_s,
            socket_count=lambda: len(self.taken),
            max_sockets=max_sockets,
        )
        self.listener.start()

    def handle(self, accepted: AcceptedSocket) -> bytes | None:
        if self.answer is None:
            self.taken.append(accepted)
        return self.answer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.001)

    async def pending(self, count: int) -> None:
        await self.until(lambda: self.listener.pending_count == count)


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Port]:
    port = Port(**options)
    try:
        yield port
    finally:
        port.listener.finish()
        for accepted in port.taken:
            accepted.socket.close()


def client(port: Port, host: str = "127.0.0.1", say: bytes = b"") -> socket.socket:
    """A connection from this address, which the loop has not seen yet."""
    made = socket.socket()
    made.bind((host, 0))
    try:
        made.connect(port.address)
    except OSError:
        made.close()
        raise
    made.sendall(say)
    made.setblocking(False)
    return made


async def heard(made: socket.socket) -> bytes:
    """All that comes until the end; a reset is an error."""
    found, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(SECONDS):
        while part := await loop.sock_recv(made, 65_536):
            found += part
    return found


def is_open(made: socket.socket) -> bool:
    """Whether nothing has come, and not the end either."""
    try:
        made.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


# --------------------------------------------------------------------------------------------------------- good heads


async def test_a_head_is_handed_over_whole_with_what_came_behind_it() -> None:
    """In one piece, byte by byte, or cut in its end; and the peer's address beside it."""
    async with opened() as port:
        for n, pieces in enumerate(([HEAD + b"rest"], [HEAD[:-1], HEAD[-1:] + b"rest"], [b"%c" % b for b in HEAD])):
            with client(port, "127.0.0.9") as made:
                for piece in pieces:
                    made.sendall(piece)
                    await asyncio.sleep(0)
                await port.until(lambda n=n: len(port.taken) > n)  # type: ignore[misc]
        assert [(taken.head, taken.peer) for taken in port.taken] == [(HEAD, "127.0.0.9")] * 3
        assert [taken.rest for taken in port.taken] == [b"rest", b"rest", b""]
        assert port.listener.pending_count == len(port.limiter) == 0


async def test_a_head_has_a_bound() -> None:
    """16 KB are taken; with more, or without an end, it is 431, also when the end comes later, and nothing is kept."""
    async with opened() as port:
        most = HEAD[:-4] + b"\r\nX: " + b"x" * (HEAD_BYTES - len(HEAD) - 1) + HEAD_END
        assert len(most) == HEAD_BYTES + 4
        with client(port, say=most):
            await port.until(lambda: len(port.taken) == 1)
        for raw in (most[:20] + b"x" + most[20:], b"x" * (HEAD_BYTES + 1), b"\r\n" * HEAD_BYTES):
            if raw.startswith(b"\r\n\r\n"):
                continue
            with client(port) as made:
                await asyncio.get_running_loop().sock_sendall(made, raw)
                await port.pending(1)
                assert (await heard(made)).startswith(b"HTTP/1.1 431 ")
                assert [pending.data for pending in port.listener._pending.values()] == [b""]
            await port.pending(0)
        assert len(port.taken) == 1
        assert len(port.limiter) == 0


# -------------------------------------------------------------------------------------------------------------- limits


async def test_the_newest_of_an_address_is_refused_and_the_older_ones_wait_on() -> None:
    """And whoever comes from elsewhere is none the worse for it; a place that is free is given again."""
    async with opened(per_address=3) as port:
        with contextlib.ExitStack() as stack:
            old = [stack.enter_context(client(port)) for _ in range(3)]
            await port.pending(3)
            for _ in range(5):
                with client(port) as newest:
                    assert await heard(newest) == FULL_RESPONSES["address"]
            assert port.listener.refused_count == 5
            other = stack.enter_context(client(port, "127.0.0.2"))
            await port.pending(4)
            assert all(is_open(made) for made in (*old, other))
            old[0].sendall(HEAD)
            await port.until(lambda: len(port.taken) == 1)
            stack.enter_context(client(port))
            await port.pending(4)


async def test_all_together_have_a_limit() -> None:
    """Wherever they come from; it is no limit for those who have proved who they are."""
    async with opened(total=3) as port:
        with contextlib.ExitStack() as stack:
            for n in range(10):
                stack.enter_context(client(port, f"127.0.0.{n + 1}", HEAD))
                await port.until(lambda n=n: len(port.taken) > n)  # type: ignore[misc]
            for n in range(3):
                stack.enter_context(client(port, f"127.0.0.{n + 1}"))
            await port.pending(3)
            with client(port, "127.0.0.77") as newest:
                assert await heard(newest) == FULL_RESPONSES["total"]


async def test_addresses_that_fill_all_the_room_make_some_for_another() -> None:
    """Whoever has less than its share is let in, in the place of the newest of the address that has most."""
    async with opened(total=6) as port:
        with contextlib.ExitStack() as stack:
            most = [stack.enter_context(client(port, "127.0.0.2")) for _ in range(4)]
            for n in range(2):
                stack.enter_context(client(port, f"127.0.0.{n + 3}"))
            await port.pending(6)
            stack.enter_context(client(port, "127.0.0.77"))
            assert await heard(most[-1]) == b""
            assert all(is_open(made) for made in most[:-1])
            await port.pending(6)
            assert port.listener.refused_count == 0
            with client(port, "127.0.0.2") as newest:
                assert await heard(newest) == FULL_RESPONSES["total"], "it has its share"


async def test_sockets_have_a_limit_that_leaves_files_for_others() -> None:
    """Those that were taken over and those that wait are counted together; one that ends makes room."""
    async with opened(max_sockets=4) as port:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(client(port, say=HEAD))
            await port.until(lambda: len(port.taken) == 2)
            for _ in range(2):
                stack.enter_context(client(port))
            await port.pending(2)
            with client(port) as newest:
                assert await heard(newest) == FULL_RESPONSES["files"]
            port.taken.pop().socket.close()
            stack.enter_context(client(port, say=HEAD))
            await port.until(lambda: len(port.taken) == 2)


async def test_one_that_has_said_its_head_already_hears_that_it_is_full() -> None:
    """It says it at once, as all clients do: closed with that unread, it would be reset, and hear nothing."""
    async with opened(total=0) as port:
        for _ in range(50):
            with client(port, say=HEAD) as made:
                assert await heard(made) == FULL_RESPONSES["total"]


async def test_silent_sockets_cost_an_honest_handshake_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, it is accepted, read once, and handed over: none of them is looked at for it."""
    reads = 0
    read = ClientListener._read

    def counted(listener: ClientListener, pending: Any) -> None:
        nonlocal reads
        reads += 1
        read(listener, pending)

    async with opened() as port:
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(client(port))
            await port.pending(300)
            monkeypatch.setattr(ClientListener, "_read", counted)
            stack.enter_context(client(port, say=HEAD))
            await port.until(lambda: len(port.taken) == 1)
            assert reads == 1


# ----------------------------------------------------------------------------------------------------------- the time


async def test_who_sends_no_head_in_time_is_cut() -> None:
    """Who says nothing, and who says a byte now and then; not before the time is over, and not who was in time."""
    loop = asyncio.get_running_loop()
    async with opened(head_s=0.7) as port:
        began = loop.time()
        with client(port) as silent, client(port) as slow, client(port, say=HEAD) as honest:
            await port.until(lambda: len(port.taken) == 1)
            async with asyncio.timeout(SECONDS):
                while port.listener.pending_count:
                    with contextlib.suppress(OSError):
                        slow.send(b"x")
                    await asyncio.sleep(0.01)
            assert loop.time() - began >= 0.7
            assert await heard(silent) == b""
            assert is_open(honest)
        assert len(port.limiter) == 0
        assert port.listener._by_age == port.listener._by_age.__class__()
        assert port.listener._sweeping is None, "it looks for nobody for ever"
        with client(port) as late:
            await port.pending(1)
            assert await heard(late) == b""


async def test_who_goes_before_its_head_has_come_is_forgotten() -> None:
    """At once, whether it says so or is reset; and no descriptor stays."""
    async with opened() as port:
        before = len(os.listdir("/proc/self/fd"))
        for n in range(20):
            made = client(port, say=b"GET" if n % 2 else b"")
            await port.pending(1)
            if n % 3 == 0:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            made.close()
            await port.pending(0)
        assert len(port.limiter) == 0
        assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------------------------------------------------ refusals


async def test_a_refusal_reaches_a_client_that_goes_on_writing() -> None:
    """It has the whole answer and the end behind it, and no reset, whatever it has sent meanwhile."""
    async with opened() as port:
        port.answer = NO
        for _ in range(20):
            with client(port, say=HEAD + b"x" * 50_000) as made:
                await port.pending(1)
                for _ in range(20):
                    await asyncio.get_running_loop().sock_sendall(made, b"x" * 30_000)
                made.shutdown(socket.SHUT_WR)
                assert await heard(made) == NO
            await port.pending(0)
        assert len(port.limiter) == 0


async def test_who_does_not_close_after_a_refusal_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment later; until then it counts as one that waits, so nobody gathers them."""
    monkeypatch.setattr(client_listener, "LINGER_SECONDS", 0.1)
    async with opened(total=2) as port:
        port.answer = NO
        with client(port, say=HEAD) as one, client(port, say=HEAD) as two:
            assert (await heard(one), await heard(two)) == (NO, NO)
            assert len(port.limiter) == port.listener.pending_count == 2
            with client(port, say=HEAD) as third:
                assert await heard(third) == FULL_RESPONSES["total"]
            await port.pending(0)
        assert len(port.limiter) == 0


async def test_a_fault_of_ours_ends_that_connection_alone() -> None:
    """It is in the log with the address; those who wait wait on."""
    async with opened() as port:

        def fail(accepted: AcceptedSocket) -> bytes | None:
            raise ZeroDivisionError

        port.listener._handle = fail
        with client(port) as waiting, client(port, say=HEAD) as made, capture_logs() as lines:
            assert await heard(made) == b""
            assert [(line["event"], line["address"]) for line in lines] == [("handshake_failed", "127.0.0.1")]
            assert is_open(waiting)
        await port.pending(0)
        assert len(port.limiter) == 0


# ------------------------------------------------------------------------------------------------------ want of files


@pytest.mark.parametrize("error", [EMFILE, ENFILE, ENOBUFS])
async def test_a_process_without_files_pauses_and_goes_on(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """It says so once for each pause, turns no circles meanwhile, and those who waited are accepted then."""
    monkeypatch.setattr(client_listener, "PAUSE_SECONDS", 0.1)
    async with opened(errors=[error] * 3) as port:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with capture_logs() as lines, client(port, say=HEAD):
            await port.until(lambda: len(port.taken) == 1)
        assert loop.time() - began >= 0.3
        assert [line["event"] for line in lines] == ["accept_paused"] * 3
        assert port.listening.accepts <= 5
        assert port.listener._resuming is not None


async def test_a_connection_that_was_aborted_stops_nobody() -> None:
    """Its error is nobody else's: the next one is accepted without a pause."""
    async with opened(errors=[ECONNABORTED]) as port:
        with capture_logs() as lines, client(port, say=HEAD):
            await port.until(lambda: len(port.taken) == 1)
        assert lines == []


# ------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("errors", [[], [EMFILE]])
async def test_a_listener_that_is_finished_has_nothing_left(errors: list[int]) -> None:
    """Those who wait are closed, those that were taken over are not, and nobody comes; also in a pause, and twice."""
    before = len(os.listdir("/proc/self/fd"))
    async with opened(errors=list(errors)) as port:
        with client(port, say=HEAD) as taken, client(port) as silent:
            if not errors:
                await port.until(lambda: len(port.taken) == 1)
                await port.pending(1)
            else:
                await port.until(lambda: port.listener._resuming is not None)
            port.listener.finish()
            port.listener.finish()
            with pytest.raises(ConnectionRefusedError):
                client(port)
            if not errors:
                assert await heard(silent) == b""
                assert is_open(taken)
            assert port.listener.pending_count == len(port.limiter) == 0
    assert len(os.listdir("/proc/self/fd")) == before
