"""One client's connection to the gateway's public port, and its requests, one after the other.

What it keeps true:

* Of what a client sends and nobody has taken yet there are BUFFER_BYTES at most, and so of what it doesn't read.
* A request is passed on when its head is whole and the answer before it has been passed back and is being read; so an
  upgrade, too, has its turn, on a connection that was kept alive as on a new one. A head that two readers could read in
  two ways is refused.
* Of one address REQUESTS_AT_A_TIME wait for Granian at a time, or are begun here in one turn of the loop, handshakes
  too: however many it sends, others wait for a few of them. One that waits for its client, to read or to send, or for
  longer than TURN_SECONDS, keeps none of its address waiting.
* An answer reaches its client: behind the last one the connection is closed by the client, or LINGER_SECONDS later.

The file is long because each stage of a connection may lead to any other, and all are judged by the same state.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import count
from typing import Protocol, cast

from solowire.algorithms.accept_limiter import counted_address
from solowire.algorithms.token_bucket import BucketTable
from solowire.errors import RequestError, RequestRejected
from solowire.gateway.front.connection_registry import FULL_RESPONSES, ConnectionRegistry
from solowire.gateway.front.direct_request import App, DirectRequest
from solowire.gateway.front.granian_connection import GranianConnection
from solowire.gateway.front.request_body import Body, make_body
from solowire.gateway.front.request_turns import RequestTurns
from solowire.protocol.opening_handshake import (
    HEAD_BYTES,
    HEAD_END,
    Framing,
    Head,
    check_beginning,
    parse_head,
    read_framing,
    render_rejection,
)
from solowire.runtime.tls_port import TlsPort

BUFFER_BYTES = 64 * 1024
LINGER_SECONDS = 2.0
REQUESTS_AT_A_TIME = 16
TURN_SECONDS = 1.0
DRAINED_BYTES = 64 * 1024
"""So much of a body that nobody wanted is read and forgotten to keep a connection; with more to come it is closed."""

NO_ANSWER = RequestRejected(
    503, "overloaded", "the request was ended before its answer was read", "send it again, with the same ids", 1.0
)


class Stage(Enum):
    """What a connection waits for. One that is passing on a body waits for the answer as well."""

    head = "head"
    turn = "turn"  # its address has as many requests under way as one may have
    body = "body"
    answer = "answer"
    drain = "drain"  # of a body that nobody wanted
    linger = "linger"  # until the client closes
    relay = "relay"


class Tunnel(Protocol):
    """Whoever has taken a client's connection over: it gets what the client sends, and hears of its end."""

    def receive(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class FrontContext:
    """What all connections of one port share.

    can_tunnel(head): whether a request is a WebSocket of ours; open_tunnel(client, head, rest): takes such a one over.
    is_trusted(address): whether it is a proxy's, whose connections are not counted by address. plain_heads: how heads
    begin that `can_tunnel` is asked about although they ask for no upgrade. direct: by method and path, what answers
    such a request here. arrivals: how fast one address may open connections; None: as fast as it likes. tls: of a port
    that speaks it.
    head_s, keepalive_s, stalled_s: seconds for a head, for a next one, and for a client to read.
    """

    def __init__(
        self,
        upstream: str,
        *,
        registry: ConnectionRegistry[ClientConnection],
        can_tunnel: Callable[[Head], bool],
        open_tunnel: Callable[[ClientConnection, Head, bytes], None],
        is_trusted: Callable[[str], bool],
        head_s: float,
        keepalive_s: float,
        stalled_s: float,
        plain_heads: tuple[bytes, ...] = (),
        direct: Mapping[tuple[bytes, bytes], App] | None = None,
        arrivals: BucketTable | None = None,
        tls: TlsPort | None = None,
    ) -> None:
        self.upstream = upstream
        self.tls = tls
        self._arrivals = arrivals
        self.registry = registry
        self.can_tunnel = can_tunnel
        self.open_tunnel = open_tunnel
        self.is_trusted = is_trusted
        self.head_s = head_s
        self.keepalive_s = keepalive_s
        self.stalled_s = stalled_s
        self.plain_heads = plain_heads
        self._direct = direct or {}
        self.turns: RequestTurns[ClientConnection] = RequestTurns(REQUESTS_AT_A_TIME)
        self.direct_turns: RequestTurns[ClientConnection] = RequestTurns(REQUESTS_AT_A_TIME)
        self.is_finishing = False
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))  # of whoever reads at the moment: it is taken out at once
        self.peer_header = f"x-peer-{secrets.token_hex(8)}".encode()
        self.names = count(1)
        self.askers: dict[str, ClientConnection] = {}  # whose requests Granian has, by what the header calls them

    @property
    def scheme(self) -> str:
        """By which requests come."""
        return "http" if self.tls is None else "https"

    def count_as(self, peer: str) -> str:
        """The address that limits count a peer by; "" for one that is not counted."""
        return "" if self.is_trusted(peer) else counted_address(peer)

    def take_arrival(self, address: str) -> bool:
        """Counts a new connection of this address; False if it opens them too fast. "" is not counted."""
        if self._arrivals is None or not address:
            return True
        now = self.loop.time()
        if self._arrivals.wait_seconds(address, now):
            return False
        self._arrivals.charge_tokens(address, now)
        return True

    def find_direct(self, line: bytes) -> App | None:
        """Who answers a request with this request line here, and not in Granian."""
        method, target, version = line.split(b" ")
        return self._direct.get((method, target.partition(b"?")[0])) if version == b"HTTP/1.1" else None


class ClientConnection(asyncio.BufferedProtocol):
    """One client's connection, and its requests, one after the other."""

    def __init__(self, front: FrontContext) -> None:
        self._front = front
        self.transport: asyncio.Transport
        self.peer = ("", 0)
        self._address: str | None = None  # as it was counted, None if it is not any more
        self._stage = Stage.head
        self._ends_at: float | None = None  # when the stage has taken too long
        self._pending = b""  # what has come and could not be passed on yet
        self._body = Body(0)
        self._granian: GranianConnection | None = None
        self._request: GranianConnection | DirectRequest | None = None  # who answers the present one
        self._turns = front.turns  # of which it has one, or waits for it
        self._has_turn = False
        self._turn_ends_at = 0.0
        self._tunnel: Tunnel | None = None
        self._is_paused = False  # reading
        self._unread_since: float | None = None  # since when the client has taken nothing of what waits for it
        self._unread_bytes = 0
        self._has_left = False  # the client has closed its half
        self._name = str(next(front.names))  # what the header for Granian calls it
        self._taken: asyncio.Future[None] | None = None  # by the client: the answer under way

    # ------------------------------------------------------------------------------------------- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        front = self._front
        peer = transport.get_extra_info("peername")
        if not peer:  # it was reset before it was accepted: nobody hears an answer, and no limit knows whose it is
            self.transport.abort()
            return
        self.peer = (str(peer[0]), int(peer[1]))
        address = front.count_as(self.peer[0])
        if not front.take_arrival(address):
            # At once and without a word: what an answer costs would keep all who wait behind it from being accepted.
            front.registry.limiter.rejected_count += 1
            self.transport.abort()
            return
        full = front.registry.admit(address)
        if full is not None:
            self.transport.write(FULL_RESPONSES[full])
            self.transport.close()
            return
        self._address = address
        front.registry.add(self)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._ends_at = front.loop.time() + front.head_s

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._front.buffer[:nbytes])
        if self._tunnel is not None:
            self._tunnel.receive(data)
        elif self._stage is not Stage.linger and self._address is not None:
            self._pending += data
            self._advance()

    def eof_received(self) -> bool:
        self._has_left = True
        if self._tunnel is not None:
            self._tunnel.end()
            return True
        # One that has only closed its half waits for its answer.
        return self._stage in (Stage.answer, Stage.turn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_request()
        self.release_slot()
        self._front.registry.discard(self)
        self._front.askers.pop(self._name, None)
        self._note_taken()
        if self._tunnel is not None:
            self._tunnel.end()

    def pause_writing(self) -> None:
        self._unread_since = self._front.loop.time()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._release_turn()
        if self._tunnel is not None:
            self._tunnel.pause()
        elif self._request is not None:
            self._request.pause_reading()

    def resume_writing(self) -> None:
        self._unread_since = None
        if self._tunnel is not None:
            self._tunnel.resume()
            return
        if self._request is not None:
            self._request.resume_reading()
        self._note_taken()
        if self._stage is Stage.head:
            self._wait_for_head()  # which has not begun while the answer before lay here
            self._advance()

    # ------------------------------------------------------------------------------------------------- one request

    def _advance(self) -> None:
        """Passes on what may be passed on of what has come."""
        try:
            while self._pending:
                if self._stage is Stage.head:
                    # Answers that are not read would pile up here, and whoever takes the client over would add to them.
                    if self._unread_since is not None or not self._handle_head():
                        break
                elif self._stage is Stage.body:
                    self._pass_body()
                elif self._stage is Stage.drain:
                    self._drain_body()
                else:
                    break
        except RequestError as error:
            self.refuse(error)
            return
        self._pause_if_full()

    def _handle_head(self) -> bool:
        """Whether a head was there, and has been dealt with. Raises RequestRejected."""
        if self._pending.startswith(b"\r\n"):
            self._pending = self._pending.lstrip(b"\r\n")  # RFC 9112, section 2.2
        end = self._pending.find(HEAD_END)
        if end > HEAD_BYTES or (end < 0 and len(self._pending) > HEAD_BYTES):
            raise RequestRejected(
                431, "head_too_large", f"a request head may have {HEAD_BYTES} bytes", "send fewer or shorter headers"
            )
        if self._pending:
            check_beginning(self._pending)
        if end < 0:
            if self._pending and self._ends_at is None:
                self._ends_at = self._front.loop.time() + self._front.head_s
            return False
        raw = self._pending[: end + len(HEAD_END)]
        self._forget_idle()
        framing = read_framing(raw)
        self._ends_at = None
        may_take = framing.upgrades or raw.startswith(self._front.plain_heads)
        if may_take:
            if not self._acquire_turn(self._front.direct_turns):
                return False
            if self._front.can_tunnel(head := parse_head(raw)):
                rest, self._pending = self._pending[len(raw) :], b""
                self._stage = Stage.relay
                self._abort_request()  # of requests before it: a tunnel has no use for it
                self._front.loop.call_soon(self._release_turn)
                self._front.open_tunnel(self, head, rest)
                return False
            self._release_turn()
        body = make_body(framing)
        line = raw.index(b"\r\n")
        app = None if body.left is None or framing.expects else self._front.find_direct(raw[:line])
        if not self._acquire_turn(self._front.turns if app is None else self._front.direct_turns):
            return False
        self._body, self._pending = body, self._pending[len(raw) :]
        self._stage = Stage.answer if body.is_done else Stage.body
        if app is not None:
            request = DirectRequest(self, app, raw, self.peer, has_body=not body.is_done, scheme=self._front.scheme)
            self._request = request
            self._front.loop.call_soon(self._pass_turn, request)
        else:
            self._begin_granian(framing, raw, line + 2)
        return True

    def _acquire_turn(self, turns: RequestTurns[ClientConnection]) -> bool:
        """Whether the request may go on now; else it does when one of the same address has been answered."""
        if not self._has_turn:
            address = self._address
            self._turns = turns
            self._has_turn = not address or turns.acquire_turn(address, self)
            if not self._has_turn:
                self._stage = Stage.turn
            self._turn_ends_at = self._front.loop.time() + TURN_SECONDS
        return self._has_turn

    def on_turn(self) -> None:
        """It may go on: another request of its address has ended."""
        self._has_turn = True
        self._turn_ends_at = self._front.loop.time() + TURN_SECONDS
        self._front.loop.call_soon(self._use_turn)

    def _use_turn(self) -> None:
        if self._stage is Stage.turn:
            self._stage = Stage.head
            self._resume()
            self._advance()

    def _pass_turn(self, request: DirectRequest) -> None:
        """The request has begun; if it is not answered, it waits for something, and costs nobody's time meanwhile."""
        if self._request is request:
            self._release_turn()

    def _release_turn(self) -> None:
        if self._address and (self._has_turn or self._stage is Stage.turn):
            successor = self._turns.release_turn(self._address, self)
            if successor is not None:
                successor.on_turn()
        self._has_turn = False

    def _begin_granian(self, framing: Framing, head: bytes, line: int) -> None:
        """Passes a request on to Granian. line: where the head's second line begins."""
        if self._granian is None:
            self._granian = GranianConnection(self, self._front.upstream, self._front.buffer)
        self._front.askers[self._name] = self
        peer = b"%s: %s %d %s\r\n" % (
            self._front.peer_header,
            self.peer[0].encode(),
            self.peer[1],
            self._name.encode(),
        )
        self._request = self._granian
        self._granian.begin_request(framing.method == "HEAD")
        self._granian.write(head[:line] + peer + head[line:])

    def _pass_body(self) -> None:
        size = self._body.measure(self._pending)
        piece, self._pending = self._pending[:size], self._pending[size:]
        request, is_done = self._request, self._body.is_done
        if is_done:
            self._stage = Stage.answer
        if request is not None:
            request.write(piece)
            if is_done:
                request.end_body()

    def _drain_body(self) -> None:
        size = self._body.measure(self._pending)
        self._pending = self._pending[size:]
        if self._body.is_done:
            self._wait_for_head()

    def write_part(self, data: bytes) -> None:
        """A part of the answer."""
        self.transport.write(data)

    def write_answer(self, data: bytes, *, keeps_alive: bool) -> None:
        """The whole answer. keeps_alive: whether there may be another request."""
        self.transport.write(data)
        self._request = None
        self.on_answered(keeps_alive=keeps_alive)

    def on_answered(self, *, keeps_alive: bool) -> None:
        """The answer has been passed back whole."""
        self._release_turn()
        if self._stage is Stage.body:
            self._drop_request()  # which may still wait for the rest
            left = self._body.left
            if left is None or left > DRAINED_BYTES:
                keeps_alive = False
            else:
                self._stage = Stage.drain
        if not keeps_alive or self._has_left or self._front.is_finishing:
            self._linger()
        elif self._stage is not Stage.drain:
            self._wait_for_head()
        else:
            self._ends_at = self._front.loop.time() + self._front.head_s
        self._note_taken()
        self._advance()

    def on_upstream_lost(self, *, was_answered: bool, has_begun: bool) -> None:
        """Granian has closed its side. was_answered: in the midst of no request. has_begun: of an answer."""
        self._granian = None
        if self._request is None or isinstance(self._request, DirectRequest):
            return
        self._request = None
        self._release_turn()
        if was_answered or self._stage not in (Stage.body, Stage.answer):
            return
        if has_begun:
            self._linger()  # what has come of the answer is all
        else:  # one that Granian gave while the body still came can be lost with its socket
            self.refuse(NO_ANSWER)

    def _wait_for_head(self) -> None:
        self._stage = Stage.head
        self._ends_at = self._front.loop.time() + self._front.keepalive_s
        if self._pending:
            self._ends_at = self._front.loop.time() + self._front.head_s
        elif self._address is not None:
            self._front.registry.note_idle(self._address, self)
        self._resume()

    # -------------------------------------------------------------------------------------------------- the ends

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._front.loop

    @property
    def shared_buffer(self) -> memoryview:
        """Where all connections of this front read into: what is read is taken out at once."""
        return self._front.buffer

    def refuse(self, error: RequestError) -> None:
        """Answers with a refusal, and closes."""
        self.close_with(render_rejection(error))

    def close_with(self, last: bytes) -> None:
        """Says the last there is to say, and closes; once."""
        if self._stage is not Stage.linger and not self.transport.is_closing():
            self.transport.write(last)
            self._linger()

    def _linger(self) -> None:
        """Closed with unread bytes the connection would be reset, and the last answer might be lost."""
        self._drop_request()
        self._tunnel = None
        self._pending = b""
        self._stage = Stage.linger
        self._ends_at = self._front.loop.time() + LINGER_SECONDS
        if self.transport.is_closing():
            return
        if self._has_left:
            self.transport.close()
        else:
            self._resume()
            self.transport.write_eof()

    def finish(self) -> None:
        """The process is about to end."""
        if self._stage in (Stage.body, Stage.answer):
            return  # the server gives it its answer, or closes
        self.transport.close()

    def is_counted_of(self, address: str) -> bool:
        """Whether it is of that address, and among those that have a limit together."""
        return self._address == address

    @property
    def is_silent(self) -> bool:
        """Whether it has not sent a request yet, or is kept for another."""
        return self._stage is Stage.head

    @property
    def waits_for_client(self) -> bool:
        """Whether it is up to the client how long it takes: to send, to read, to close; or up to others of its own."""
        if self._unread_since is not None or self._tunnel is not None:
            return True
        return self._stage not in (Stage.answer, Stage.relay)

    def close_idle(self) -> None:
        """Makes room for somebody else."""
        if self._stage in (Stage.turn, Stage.body) and self._unread_since is None:
            self.transport.write(FULL_RESPONSES["total"])
        self.release_slot()
        self._linger()

    def check_time(self, now: float) -> None:
        """Cuts the connection if it has taken too long."""
        if self._has_turn and now >= self._turn_ends_at:
            self._release_turn()
        if self._unread_since is not None:
            size = self.transport.get_write_buffer_size()
            if size < self._unread_bytes:
                self._unread_since, self._unread_bytes = now, size
            elif now - self._unread_since > self._front.stalled_s:
                self.transport.abort()
                return
        waits_for_reader = self._unread_since is not None and self._stage is Stage.head
        if self._ends_at is not None and now >= self._ends_at and not waits_for_reader:
            if self._stage is Stage.linger:
                self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()
            else:
                self.transport.close()

    def yield_turn(self) -> None:
        """Its request waits for something, and keeps no other of its address waiting."""
        if self._stage in (Stage.body, Stage.answer):
            self._release_turn()

    async def wait_until_taken(self) -> None:
        """Waits until the client has read the answer under way, but for what fits a buffer, or has gone."""
        if self._owes_answer:
            self._taken = self._taken or self._front.loop.create_future()
            await asyncio.shield(self._taken)

    def abort(self) -> None:
        """Cuts the connection: the client does not read."""
        self.transport.abort()

    @property
    def _owes_answer(self) -> bool:
        is_unread = self._unread_since is not None or self._stage in (Stage.body, Stage.answer)
        return is_unread and self in self._front.registry.clients

    def _note_taken(self) -> None:
        if self._taken is not None and not self._owes_answer:
            self._taken.set_result(None)
            self._taken = None

    def _forget_idle(self) -> None:
        if self._address is not None:
            self._front.registry.forget_idle(self._address, self)

    def _drop_request(self) -> None:
        self._release_turn()
        self._abort_request()

    def _abort_request(self) -> None:
        for request in (self._request, self._granian):
            if request is not None:
                request.abort()
        self._request = self._granian = None

    def release_slot(self) -> None:
        """It counts among the HTTP connections no more: it has ended, or another limit is in force for it."""
        if self._address is not None:
            self._release_turn()
            self._front.registry.release(self._address, self)
            self._address = None

    # --------------------------------------------------------------------------------------------------- its flow

    def set_send_buffer(self, size: int) -> None:
        """For one that has shown whose it is, and is to get more than answers."""
        if not self.transport.is_closing():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def start_tunnel(self, tunnel: Tunnel) -> None:
        """From now on `tunnel` gets what the client sends."""
        self._tunnel = tunnel
        if self._has_left or self.transport.is_closing():
            tunnel.end()
        else:
            self._resume()

    def pause_reading(self) -> None:
        """Nobody can take more of what the client sends."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._resume()
        self._pause_if_full()

    def _resume(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def _pause_if_full(self) -> None:
        waits = self._stage is Stage.relay and self._tunnel is None
        if len(self._pending) >= BUFFER_BYTES or waits:
            self.pause_reading()
