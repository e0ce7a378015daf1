"""A probe of a forwarder: one real query by UDP, and what became of it.

A server that refuses the datagram (ICMP) looks like one that lost it: both are no answer in time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.forwarders.forwarder_state import ProbeOutcome

_GOOD = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


@dataclass(frozen=True)
class ProbeResult:
    """What became of one probe. rtt_ms: if there was an answer. error: "" if it was good."""

    outcome: ProbeOutcome
    rtt_ms: float | None = None
    error: str = ""


class ForwarderProbe:
    """Asks forwarders one question. name, type: of it. timeout: seconds. Raises ConfigError for what can't be asked."""

    def __init__(self, name: str, type: str, timeout: float) -> None:
        try:
            self._name = dns.name.from_text(name)
            self._type = dns.rdatatype.from_text(type)
        except (dns.exception.DNSException, ValueError) as error:
            raise ConfigError(f"forwarders can't be asked for {name!r} {type!r}: {error}") from None
        self._timeout = timeout

    async def ask(self, address: ServerAddress) -> ProbeResult:
        """Sends one query and waits for its answer. It raises nothing that a server or the network can cause."""
        query = dns.message.make_query(self._name, self._type)  # with the flag RD, as named forwards
        began = time.perf_counter()
        try:
            answer = await dns.asyncquery.udp(
                query,
                address.address,
                timeout=self._timeout,
                port=address.port,
                ignore_unexpected=True,
                ignore_errors=True,
                ignore_trailing=True,
            )
        except dns.exception.Timeout:
            return ProbeResult(ProbeOutcome.lost, error=f"no answer within {self._timeout:g} s")
        except (OSError, dns.exception.DNSException) as error:
            return ProbeResult(ProbeOutcome.lost, error=str(error) or type(error).__name__)
        rtt_ms = (time.perf_counter() - began) * 1000
        rcode = answer.rcode()
        if rcode in _GOOD:
            return ProbeResult(ProbeOutcome.answered, rtt_ms)
        outcome = ProbeOutcome.servfail if rcode == dns.rcode.SERVFAIL else ProbeOutcome.refused
        return ProbeResult(outcome, rtt_ms, f"it answers {dns.rcode.to_text(rcode)}")
