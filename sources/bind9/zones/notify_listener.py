"""The port to which the name server says that a zone has changed, by UDP and TCP.

A thin shell. What it keeps true: CONNECTIONS of TCP at most, each for CONNECTION_S; what is wrong with a message is
logged once in REPORT_S, with how many there were.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dns.tsig
import structlog

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.bind9.zones.notify_message import judge_message

CONNECTIONS = 50
CONNECTION_S = 10.0
REPORT_S = 60.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

logger = structlog.get_logger()


def parse_networks(texts: Iterable[str], setting: str) -> list[Network]:
    """Addresses and networks out of a setting. Raises ConfigError, which names it."""
    try:
        return [ipaddress.ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise ConfigError(
            f"{setting}: {error}; write addresses such as 192.0.2.1, or networks such as 192.0.2.0/24"
        ) from None


class NotifyListener:
    """Listens from `open` to `close`. allowed: who may notify. on_notify: called with the zone's name."""

    def __init__(
        self,
        place: ServerAddress,
        *,
        allowed: Iterable[Network],
        keys: Mapping[str, dns.tsig.Key],
        is_known: Callable[[str], bool],
        on_notify: Callable[[str], None],
    ) -> None:
        self.place = place
        self._allowed = tuple(allowed)
        self._keys = keys
        self._is_known = is_known
        self._on_notify = on_notify
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._faults: dict[str, tuple[float, int]] = {}

    async def open(self) -> None:
        """Begins to listen. Raises ConfigError if the address can't be had."""
        loop = asyncio.get_running_loop()
        try:
            self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=self.place)
            self._tcp = await asyncio.start_server(self._serve, self.place.address, self.place.port)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"notifications can't be heard at {self.place}: {error.strerror or error}; choose another address or "
                "port with --notify, and the same in named.conf's also-notify"
            ) from None

    def close(self) -> None:
        """Ends listening."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for connection in self._connections:
            connection.cancel()

    def answer_message(self, wire: bytes, sender: str) -> bytes | None:
        """Does what a message asks for, and returns the answer to it."""
        address = ipaddress.ip_address(sender.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        is_allowed = any(address in network for network in self._allowed)
        verdict = judge_message(wire, is_allowed=is_allowed, keys=self._keys, is_known=self._is_known)
        if verdict.fault is not None:
            self._report(*verdict.fault, sender)
        if verdict.zone is not None:
            self._on_notify(verdict.zone)
        return verdict.answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        try:
            if task is None or len(self._connections) >= CONNECTIONS:
                return
            self._connections.add(task)
            async with asyncio.timeout(CONNECTION_S):
                while True:
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    answer = self.answer_message(await reader.readexactly(size), writer.get_extra_info("peername")[0])
                    if answer is None:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return
        finally:
            if task is not None:
                self._connections.discard(task)
            writer.close()

    def _report(self, fault: str, hint: str, sender: str) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._faults) > 100:
            self._faults.clear()
        said_at, count = self._faults.get(fault, (-REPORT_S, 0))
        if now < said_at + REPORT_S:
            self._faults[fault] = (said_at, count + 1)
            return
        self._faults[fault] = (now, 0)
        logger.warning("notify_refused", sender=sender, reason=fault, count=count + 1, hint=hint)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, listener: NotifyListener) -> None:
        self._listener = listener
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._listener.answer_message(data, addr[0])
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)
