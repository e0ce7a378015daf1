"""Questions to the name server: a zone's serial, and its transfers.

A thin shell. What it keeps true: nothing waits longer than ANSWER_S for the server's next word, and whatever goes
wrong is a TransferError with the way out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.SOA
import dns.rrset
import dns.tsig

from solowire.errors import TransferError
from solowire.sources.bind9.zones.answer_faults import explain_rcode, explain_signature
from solowire.sources.bind9.zones.transfer_reader import TransferItem, TransferReader

QUERY_S = 3.0
CONNECT_S = 5.0
ANSWER_S = 30.0
_SHORT_BYTES = 4_096  # longer messages are read in a thread: one of 64 KB takes a tenth of a second


class ZoneClient:
    """Asks one server. address, port: the server's. max_bytes: of one transfer. max_step_records: of one step."""

    def __init__(self, address: str, port: int, *, max_bytes: int, max_step_records: int) -> None:
        self.address = address
        self.port = port
        self._max_bytes = max_bytes
        self._max_step_records = max_step_records

    async def read_serial(self, zone: dns.name.Name, key: dns.tsig.Key | None) -> int:
        """The serial that the server has of a zone. Raises TransferError."""
        query = dns.message.make_query(zone, dns.rdatatype.SOA)
        query.flags = dns.flags.Flag(0)
        if key is not None:
            query.use_tsig(key)
        try:
            answer, _ = await dns.asyncquery.udp_with_fallback(query, self.address, timeout=QUERY_S, port=self.port)
        except (dns.exception.Timeout, OSError, EOFError) as error:
            raise self._explain_silence(error) from None
        except (dns.exception.DNSException, ValueError, NotImplementedError) as error:
            if type(error).__module__ == "dns.tsig":
                raise explain_signature(error) from None
            raise TransferError("malformed", f"the server's answer can't be read: {error}", "see named's log") from None
        if answer.rcode() != dns.rcode.NOERROR:
            raise explain_rcode(answer.rcode(), is_incremental=False)
        for rrset in answer.answer:
            is_own = answer.flags & dns.flags.AA and rrset.name == zone
            if is_own and isinstance(rrset[0], dns.rdtypes.ANY.SOA.SOA):
                return int(rrset[0].serial)
        raise explain_rcode(dns.rcode.NOTAUTH, is_incremental=False)

    async def transfer(
        self, zone: dns.name.Name, key: dns.tsig.Key | None, serial: int | None
    ) -> AsyncGenerator[TransferItem, None]:
        """What the server sends: steps from `serial`, or the whole zone (always, if it is None). Raises TransferError.

        A transfer that breaks off has told whole steps only.
        """
        query = _make_query(zone, serial)
        if key is not None:
            query.use_tsig(key)
        wire = query.to_wire()
        reader = TransferReader(
            zone,
            query.id,
            serial,
            key=key,
            request_mac=query.mac or b"",
            max_bytes=self._max_bytes,
            max_step_records=self._max_step_records,
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                stream, writer = await asyncio.open_connection(self.address, self.port)
        except (TimeoutError, OSError) as error:
            raise self._explain_silence(error) from None
        try:
            writer.write(len(wire).to_bytes(2, "big") + wire)
            while not reader.is_done:
                message = await self._read_message(stream)
                if len(message) > _SHORT_BYTES:
                    items = await asyncio.to_thread(reader.read_message, message)
                else:
                    items = reader.read_message(message)
                for item in items:
                    yield item
        finally:
            writer.transport.abort()

    async def _read_message(self, stream: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                size = int.from_bytes(await stream.readexactly(2), "big")
                return await stream.readexactly(size)
        except asyncio.IncompleteReadError:
            raise TransferError("failed", "the server broke the transfer off", "see named's log") from None
        except (TimeoutError, OSError) as error:
            raise self._explain_silence(error) from None

    def _explain_silence(self, error: Exception) -> TransferError:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it doesn't answer in time"
        if isinstance(error, socket.gaierror | UnicodeError):
            why = "there is no such address"
        return TransferError(
            "away",
            f"the name server at {self.address}#{self.port} can't be asked: {why}",
            "is named running, and does it listen there? It is asked again",
        )


def _make_query(zone: dns.name.Name, serial: int | None) -> dns.message.QueryMessage:
    query = dns.message.make_query(zone, dns.rdatatype.AXFR if serial is None else dns.rdatatype.IXFR)
    query.flags = dns.flags.Flag(0)
    if serial is not None:
        query.authority.append(
            dns.rrset.from_text(zone, 0, dns.rdataclass.IN, dns.rdatatype.SOA, f". . {serial} 0 0 0 0")
        )
    return query
