"""An echo in a shard's place, on the shard's own listener and sockets: what `kosoku` tries, it tries on these."""

from __future__ import annotations

import asyncio
from typing import Any

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.errors import RequestError
from solowire.model.access import Identity
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec
from solowire.protocol.opening_handshake import parse_head, render_accept, render_rejection
from solowire.runtime.http_server import listen
from solowire.runtime.tls_port import TlsPort
from solowire.workers.connections.connection import Connection
from solowire.workers.net.client_listener import AcceptedSocket, ClientListener
from solowire.workers.net.tcp_sockets import TcpSockets
from solowire.workers.net.tls_sockets import TlsSockets

ANN = Identity("ann", "admin", ())


class Echo:
    """Answers each message with itself. port: where. tls: it speaks that."""

    def __init__(self, tls: TlsPort | None = None) -> None:
        self._sockets = TcpSockets() if tls is None else TlsSockets()
        self._sockets.on_message = lambda connection, message: self._sockets.queue(message, connection)
        self._sockets.on_protocol_error = self._close
        self._sockets.on_batch_done = lambda: None
        self._sockets.on_writable = self._sockets.on_closed = self._sockets.on_probe_answered = _ignore
        listening = listen("127.0.0.1", 0)
        self.port: int = listening.getsockname()[1]
        self._listener = ClientListener(
            listening,
            self._handle,
            AcceptLimiter(100, 100),
            head_s=10.0,
            socket_count=lambda: len(self._sockets),
            max_sockets=1000,
            tls=tls,
        )
        self._listener.start()

    def close(self) -> None:
        self._listener.finish()
        self._sockets.finish()

    def _handle(self, accepted: AcceptedSocket) -> bytes | None:
        try:
            answer = render_accept(parse_head(accepted.head), None)
        except RequestError as error:
            return render_rejection(error)
        accepted.send(answer)
        sock = self._sockets.adopt(accepted)
        sock.connection = Connection("s", ANN, Codec.json, sock)
        if accepted.rest:
            self._sockets.feed(sock, accepted.rest)
        return None

    def _close(self, connection: Connection, code: CloseCode) -> None:
        self._sockets.close(connection, code, code.reason)


def _ignore(*what: Any) -> None:
    """Nobody asks for it here."""


if __name__ == "__main__":

    async def main() -> None:
        print(Echo().port, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
