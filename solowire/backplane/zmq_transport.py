"""The backplane's sockets: with what they are made of (`socket_reader`, `curve_gate`, …) all that knows ZeroMQ.

    RouterSocket  the router's end: ROUTER, bound, knows its peers by name
    PeerSocket    a peer's end: DEALER, connected, says its name

What it keeps true: nothing here waits. A send that ZeroMQ would have to block on, or to hold for a peer that isn't
there, returns False and is the caller's to repeat: the log is the buffer, not the socket. Over TCP a socket has keys,
or is not made; a connection whose other end is gone without a word is over within DEAD_SECONDS. ZeroMQ holds a whole
part of a message of whoever connects before it asks for a key: so what is longer than PART_BYTES goes in several parts
there, and no part may be longer.

What bounds the memory of these queues is not ZeroMQ's high-water mark, which counts messages of up to some megabytes,
but what is ever under way: from a gateway its `publish.max_held_bytes`, to a shard `solowire.router.log.shard_cursor`'s
BYTES_UNDER_WAY.

`solowire.backplane.memory_transport` has the twin of both, without sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import structlog
import zmq

from solowire.algorithms.hosts import split_endpoint
from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane.connection_monitor import CONNECTED, DENIED, DISCONNECTED, FAILED, ConnectionMonitor
from solowire.backplane.curve_gate import CurveGate
from solowire.backplane.curve_keys import MemberKeys, RouterKeys, find_public_key
from solowire.backplane.host_lookup import Endpoint, HostLookup, find_endpoints
from solowire.backplane.socket_reader import SocketReader
from solowire.errors import ConfigError

logger = structlog.get_logger("solowire.bus")

_HIGH_WATER_MARK = 10_000
_NOBLOCK = int(zmq.NOBLOCK)

DEAD_SECONDS = 3.0
"""A connection over TCP on which nothing comes for so long, though it was asked for, is over."""
HANDSHAKE_SECONDS = 3.0
"""So long a stranger may hold a connection over TCP without having shown a key."""
TRY_SECONDS = 2.0
"""A peer that finds no router tries the next of its addresses, and of the router's keys, after so long."""

PART_BYTES = 32 * 1024
_PART_OVERHEAD_BYTES = 1024  # CURVE's, and ZMTP's

_TCP_OPTIONS = {
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: int(1000 * DEAD_SECONDS),
    zmq.HEARTBEAT_TTL: int(1000 * DEAD_SECONDS),
    zmq.HANDSHAKE_IVL: int(1000 * HANDSHAKE_SECONDS),
    zmq.MAXMSGSIZE: PART_BYTES + _PART_OVERHEAD_BYTES,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 10_000,
    zmq.CONNECT_TIMEOUT: int(1000 * TRY_SECONDS),
    zmq.BACKLOG: 1024,
}


class _Socket:
    """What both ends share."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sampler = LogSampler(logger, self._loop.time, self._loop.call_later)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reader: SocketReader | None = None
        self.dropped_count = 0  # messages that can't be ours by their form alone

    def _make_socket(self, kind: int, *, is_tcp: bool) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.set(zmq.LINGER, 200)  # ms: a last word, such as goodbye, gets out
        made.set(zmq.SNDHWM, _HIGH_WATER_MARK)
        made.set(zmq.RCVHWM, _HIGH_WATER_MARK)
        for option, value in _TCP_OPTIONS.items() if is_tcp else ():
            made.set(option, value)
        return made

    def _count_dropped(self, sender: bytes, parts: int) -> None:
        self.dropped_count += 1
        self._sampler.write(
            "error",
            "backplane_message_dropped",
            sender=sender.decode(errors="replace"),
            error=f"it has {parts} parts",
            dropped=self.dropped_count,
            hint="something else than Solowire writes to the router's socket",
        )

    def _send_parts(self, socket: zmq.Socket[bytes], parts: list[bytes]) -> bool:
        if self._reader is None:
            return False
        try:
            socket.send_multipart(parts, _NOBLOCK, copy=True)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        finally:
            self._reader.look_again()
        return True


class RouterSocket(_Socket):
    """Binds `address`. received(peer, payload) is called for each message. Raises ConfigError if it can't bind.

    keys: needed over TCP. address: `tcp://HOST:PORT`, with an IPv6 address in brackets, or `ipc://PATH`.
    """

    def __init__(self, address: str, received: Callable[[bytes, bytes], Any], keys: RouterKeys | None = None) -> None:
        is_tcp = address.startswith("tcp://")
        if is_tcp and keys is None:
            raise ConfigError(f"can't listen on {address}: it needs keys")
        super().__init__()
        self._on_received = received
        self._address = address
        self._socket = self._make_socket(zmq.ROUTER, is_tcp=is_tcp)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        self._gate = CurveGate(self._context, self._socket, keys, self._sampler) if is_tcp and keys else None
        try:
            if is_tcp:
                self._bind_tcp(address.removeprefix("tcp://"))
            else:
                self._socket.bind(address)
        except (zmq.ZMQError, OSError, UnicodeError) as error:
            self._close_sockets()
            reason = getattr(error, "strerror", None) or "that is no host's name"
            hint = (
                "; the router listens elsewhere by SOLOWIRE_BACKPLANE_BIND, such as tcp://[::]:7400" if is_tcp else ""
            )
            raise ConfigError(f"can't listen on {address}: {reason}{hint}") from None
        self._reader = SocketReader(self._socket, self._dispatch_parts, self._sampler)

    @property
    def accepted_count(self) -> int:
        """Connections over TCP, whoever has made them."""
        return self._gate.accepted_count if self._gate is not None else 0

    @property
    def authenticated_count(self) -> int:
        """Those of them that have shown a member's key."""
        return self._gate.authenticated_count if self._gate is not None else 0

    def change_keys(self, keys: RouterKeys) -> None:
        """Has other members in force, for connections from now on. The router's own key stays."""
        if self._gate is not None:
            self._gate.admit(keys.members)

    def rebind(self) -> None:
        """Listens anew where the address's file was removed; peers come back by themselves. Raises OSError."""
        try:
            with suppress(zmq.ZMQError):
                self._socket.unbind(self._address)
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from None

    def send(self, peer: bytes, payload: bytes) -> bool:
        return self._send_parts(self._socket, [peer, payload] if self._gate is None else [peer, *_cut(payload)])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
            self._close_sockets()

    def _bind_tcp(self, endpoint: str) -> None:
        """ZeroMQ listens on addresses alone: a name is looked up here. Raises OSError, ZMQError."""
        found = find_endpoints(*split_endpoint(endpoint))[0]
        self._socket.set(zmq.IPV6, int(found.is_ipv6))
        self._socket.bind(found.text)

    def _close_sockets(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._socket.close()
        self._context.term()

    def _dispatch_parts(self, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self._on_received(parts[0], parts[1])
        elif self._gate is not None:
            self._on_received(parts[0], b"".join(parts[1:]))
        else:
            self._count_dropped(parts[0], len(parts) - 1)


class PeerSocket(_Socket):
    """Connects to `address` as `name`, now or as soon as somebody listens there, and again whenever that ends.

    keys: needed over TCP. There the address may be a host's name, which may come to mean another host: it is looked up
    anew, not by ZeroMQ, whose thread would wait for it, as long as no router is found. Each address that the name has
    is tried in turn, with each key that the router may have; so is a handshake that was refused, which ZeroMQ doesn't
    always repeat.
    """

    def __init__(
        self, address: str, name: bytes, received: Callable[[bytes], Any], keys: MemberKeys | None = None
    ) -> None:
        is_tcp = address.startswith("tcp://")
        if is_tcp and keys is None:
            raise ConfigError(f"can't connect to {address}: it needs keys")
        super().__init__()
        self._on_received = received
        self._name = name
        self._keys = keys
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: ConnectionMonitor | None = None
        self._next_try: asyncio.Handle | None = None
        self._is_connected = self._is_doubted = False
        self._tried: tuple[str, Endpoint] | None = None  # the router's key and address, of the socket that there is
        self._worked: tuple[str, Endpoint] | None = None  # by which it was connected last
        self._attempted: set[tuple[str, Endpoint]] = set()  # since then, until all have been
        self.failure = ""
        """Why there is no connection over TCP, where that is known."""
        if not is_tcp:
            self._connect(address)
        else:
            self._lookup = HostLookup(*split_endpoint(address.removeprefix("tcp://")))
            self._look_for_router()

    def send(self, payload: bytes) -> bool:
        if self._socket is None:
            return False
        return self._send_parts(self._socket, [payload] if self._tried is None else _cut(payload))

    def close(self) -> None:
        if self._context.closed:
            return
        if self._next_try is not None:
            self._next_try.cancel()
        self._close_socket(linger=True)
        self._context.term()

    def _connect(self, endpoint: str) -> None:
        """Makes the socket, and has it connect. Raises ConfigError."""
        made = self._make_socket(zmq.DEALER, is_tcp=self._tried is not None)
        made.set(zmq.IDENTITY, self._name)
        made.set(zmq.IMMEDIATE, 1)  # queue only for a router that is there: else say so at once
        made.set(zmq.RECONNECT_IVL, 50 if self._tried is None else 200)  # with a wrong key it goes on for ever
        made.set(zmq.RECONNECT_IVL_MAX, 500 if self._tried is None else 1000)
        if self._tried is not None and self._keys is not None:
            router, found = self._tried
            made.set(zmq.IPV6, int(found.is_ipv6))
            made.set(zmq.CURVE_SERVERKEY, router.encode())
            made.set(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            made.set(zmq.CURVE_PUBLICKEY, find_public_key(self._keys.secret).encode())
            mask = CONNECTED | DISCONNECTED | DENIED | FAILED
            self._monitor = ConnectionMonitor(self._context, made, mask, self._on_event, self._sampler)
        self._socket = made
        try:
            made.connect(endpoint)
        except zmq.ZMQError as error:
            self._close_socket(linger=False)
            self._context.term()
            raise ConfigError(f"can't connect to {endpoint}: {error.strerror}") from None
        self._reader = SocketReader(made, self._dispatch_parts, self._sampler)

    def _close_socket(self, *, linger: bool) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._socket is not None:
            self._socket.close(None if linger else 0)
            self._socket = None

    def doubt(self) -> None:
        """The router has been silent for long, whatever the connection is: it may be elsewhere by now."""
        self._is_doubted = True

    def _look_for_router(self) -> None:
        """Every TRY_SECONDS, as long as there is no connection, or one that is doubted."""
        self._next_try = self._loop.call_later(TRY_SECONDS, self._look_for_router)
        if not self._is_connected or self._is_doubted:
            self._lookup.refresh(self._loop, self._try_next)

    def _try_next(self) -> None:
        """Connects to the next address and key, of what the name means now."""
        is_doubted, self._is_doubted = self._is_doubted, False
        has_moved = self._tried is not None and self._tried[1] not in self._lookup.endpoints
        if (self._is_connected and not (is_doubted and has_moved)) or self._context.closed or self._keys is None:
            return
        self._is_connected = False
        choices = list(product(self._keys.routers, self._lookup.endpoints))
        if not choices:
            self.failure = self._lookup.failure
            return
        choice = self._choose(choices)
        if choice == self._tried and self._socket is not None and not self.failure:
            return  # ZeroMQ goes on trying it
        self._close_socket(linger=False)
        self._tried = choice
        self._connect(choice[1].text)

    def _choose(self, choices: list[tuple[str, Endpoint]]) -> tuple[str, Endpoint]:
        """What has worked, then each that has not been tried since, in whatever order a name server tells them."""
        left = [choice for choice in choices if choice not in self._attempted]
        if not left:
            self._attempted.clear()
            left = choices
        choice = self._worked if self._worked in left else left[0]
        self._attempted.add(choice)
        return choice

    def _on_event(self, event: int) -> None:
        if event == CONNECTED:
            self._is_connected, self.failure = True, ""
            self._worked = self._tried
            self._attempted.clear()
        elif event == DISCONNECTED:
            self._is_connected = False
        elif event == DENIED:
            self.failure = "the router doesn't know this process's key"
        elif event == FAILED:
            self.failure = "the router has another key than this process knows, or it is no router"

    def _dispatch_parts(self, parts: list[bytes]) -> None:
        if len(parts) == 1:
            self._on_received(parts[0])
        elif self._tried is not None:
            self._on_received(b"".join(parts))
        else:
            self._count_dropped(b"router", len(parts))


def _cut(payload: bytes) -> list[bytes]:
    """A payload in parts that may go over TCP."""
    if len(payload) <= PART_BYTES:
        return [payload]
    return [payload[start : start + PART_BYTES] for start in range(0, len(payload), PART_BYTES)]
