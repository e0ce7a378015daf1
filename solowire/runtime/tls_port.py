"""A port that speaks TLS: the certificate in force, and the turns of its connections' handshakes.

What it keeps true: a handshake costs a hundred times what it costs to ask for one, so the loop works on them for
SLICE_SECONDS of the processor at a time and then does everything else that is due; whose turn it is `HandshakeTurns`
says, and each address pays for what its own have cost.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable

import structlog

from solowire.algorithms.handshake_turns import HandshakeTurns
from solowire.errors import RequestRejected, TlsError
from solowire.protocol.opening_handshake import render_rejection
from solowire.protocol.tls_session import TlsSession
from solowire.runtime.server_certificate import ServerCertificate

logger = structlog.get_logger("solowire.tls")

SLICE_SECONDS = 0.002
PLAIN_RESPONSE = render_rejection(
    RequestRejected(
        400, "tls_required", "this port speaks TLS", "use https:// and wss:// in place of http:// and ws://"
    )
)
"""For who speaks plain HTTP where TLS is spoken."""


class TlsPort:
    """A port that speaks TLS. handshake_count: those that were done; faults: those that failed, by reason."""

    def __init__(self, certificate: ServerCertificate) -> None:
        self.certificate = certificate
        self.handshake_count = 0
        self.faults: Counter[str] = Counter()
        self._turns: HandshakeTurns[Hashable, Callable[[], None]] = HandshakeTurns()
        self._loop = asyncio.get_running_loop()
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def open_session(self) -> TlsSession:
        """For a connection that has been accepted."""
        return TlsSession(self.certificate.context)

    def schedule(self, address: str, key: Hashable, shake_hands: Callable[[], None]) -> None:
        """Has a step of a connection's handshake done when it is its turn; once, however often it is asked for.

        address: as limits count it, "" if it is not counted. key: the connection's own.
        """
        self._turns.add(address, key, shake_hands)
        self._schedule_work()

    def discard(self, address: str, key: Hashable) -> None:
        """The connection has ended."""
        self._turns.discard(address, key)

    def record_end(self, fault: TlsError | None) -> None:
        """A handshake has been done, or has failed."""
        if fault is None:
            self.handshake_count += 1
        else:
            self.faults[str(fault)] += 1

    def finish(self) -> None:
        """No more is done."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule_work(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        started = worked = time.thread_time()
        while (turn := self._turns.take_next(time.monotonic())) is not None:
            address, shake_hands = turn
            try:
                shake_hands()
            except Exception:  # a fault of ours, and not the others'
                logger.exception("handshake_failed", address=address)
            before, worked = worked, time.thread_time()
            self._turns.charge(address, time.monotonic(), worked - before)
            if worked - started >= SLICE_SECONDS:
                self._schedule_work()
                return
        if (at := self._turns.next_at()) is not None:
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._work)
