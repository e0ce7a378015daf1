"""The gate of a router that listens on TCP: who may connect (ZAP, ZeroMQ RFC 27), and how many were turned away.

What it keeps true: only who has shown a member's key reaches the handling of messages. Everybody else is answered by
ZeroMQ's own thread, and costs this process one small message for its count; what is logged of them is sampled. If the
gate were closed, nobody would get in (ZAP_ENFORCE_DOMAIN).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog
import zmq
from zmq.utils import z85

from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane.connection_monitor import ACCEPTED, CONNECTED, FAILED, ConnectionMonitor
from solowire.backplane.curve_keys import RouterKeys, find_public_key
from solowire.backplane.socket_reader import SocketReader

logger = structlog.get_logger("solowire.bus")

SAY_AGAIN_SECONDS = 10.0
"""Strangers may knock for ever: of each kind there is a line this often."""
_ADDRESS = "inproc://zeromq.zap.01"  # where ZeroMQ asks, in each context
_DOMAIN = b"backplane"
_VERSION = b"1.0"


class CurveGate:
    """Guards a socket that has not been bound yet.

    accepted_count: connections. authenticated_count: those of them that have shown a member's key.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], guarded: zmq.Socket[bytes], keys: RouterKeys, sampler: LogSampler
    ) -> None:
        self.accepted_count = self.authenticated_count = 0
        loop = asyncio.get_running_loop()
        self._sampler = LogSampler(logger, loop.time, loop.call_later, period=SAY_AGAIN_SECONDS)
        self._members: Collection[bytes] = ()
        self._mistaken: Collection[bytes] = ()
        self.admit(keys.members)
        # ROUTER rather than REP, which could be asked nothing more if one answer failed.
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 0)  # beyond it ZeroMQ's thread would wait for us
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.bind(_ADDRESS)
        self._reader = SocketReader(self._socket, self._answer, sampler)
        guarded.set(zmq.CURVE_SERVER, 1)
        guarded.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        guarded.set(zmq.ZAP_DOMAIN, _DOMAIN)
        guarded.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._monitor = ConnectionMonitor(context, guarded, ACCEPTED | CONNECTED | FAILED, self._on_event, sampler)

    def admit(self, members: Collection[str]) -> None:
        """These and no others may connect from now on. Who is connected stays."""
        self._members = frozenset(z85.decode(key) for key in members)
        self._mistaken = frozenset(z85.decode(find_public_key(key)) for key in members)

    def close(self) -> None:
        """Before the guarded socket is closed."""
        self._monitor.close()
        self._reader.stop()
        self._socket.close()

    def _answer(self, parts: list[bytes]) -> None:
        """Answers one question: identity, delimiter, version, request, domain, address, identity, mechanism, key."""
        *route, version, request, domain, address, _, mechanism, key = parts
        is_member = (version, domain, mechanism) == (_VERSION, _DOMAIN, b"CURVE") and key in self._members
        if not is_member:
            hint = (
                "SOLOWIRE_CURVE__MEMBER_KEYS has its secret key in the place of its public one (member.pub)"
                if key in self._mistaken
                else "if that is one of ours, add its public key to SOLOWIRE_CURVE__MEMBER_KEYS; "
                "if all have a seed, is it the same?"
            )
            self._sampler.write(
                "warning",
                "backplane_key_rejected",
                address=address.decode(errors="replace"),
                key=z85.encode(key).decode() if len(key) == 32 else "",
                hint=hint,
            )
        status = (b"200", b"OK") if is_member else (b"400", b"unknown key")
        self._socket.send_multipart([*route, _VERSION, request, *status, b"", b""], zmq.NOBLOCK)
        self._reader.look_again()

    def _on_event(self, event: int) -> None:
        if event == ACCEPTED:
            self.accepted_count += 1
        elif event == CONNECTED:
            self.authenticated_count += 1
        elif event == FAILED:
            self._sampler.write(
                "warning",
                "backplane_handshake_failed",
                accepted=self.accepted_count,
                authenticated=self.authenticated_count,
                hint="somebody connects without the router's public key, or it is no process of ours; "
                "let nobody else reach the router's port",
            )
