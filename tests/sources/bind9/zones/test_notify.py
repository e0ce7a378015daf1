"""NOTIFY: who may send it, what is answered, by UDP and TCP."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.asyncquery
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.tsig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import ServerAddress, parse_address
from solowire.sources.bind9.zones.notify_listener import NotifyListener, parse_networks
from solowire.sources.bind9.zones.notify_message import judge_message
from tests.support.examples import examples
from tests.support.system import free_ports

KEY = dns.tsig.Key("k", "c2VjcmV0")


def make_notify(zone: str = "z.example", type: str = "SOA") -> dns.message.QueryMessage:
    message = dns.message.make_query(zone, type)
    message.set_opcode(dns.opcode.NOTIFY)
    message.flags |= dns.flags.AA
    return message


def judge(message: dns.message.Message, *, is_allowed: bool = True) -> tuple[int, str | None]:
    """The code of the answer, and the zone to be looked at."""
    verdict = judge_message(
        message.to_wire(), is_allowed=is_allowed, keys={"k": KEY}, is_known=lambda zone: zone == "z.example"
    )
    assert verdict.answer is not None
    answer = dns.message.from_wire(verdict.answer, keyring=KEY, request_mac=message.mac or b"")
    assert answer.id == message.id
    assert answer.flags & dns.flags.QR
    return answer.rcode(), verdict.zone


def test_each_message_has_its_answer() -> None:
    """As RFC 1996 says; names are compared without case."""
    assert judge(make_notify("Z.Example")) == (dns.rcode.NOERROR, "z.example")
    assert judge(make_notify("other.example")) == (dns.rcode.NOTAUTH, None)
    assert judge(make_notify(type="A")) == (dns.rcode.FORMERR, None)
    assert judge(make_notify(), is_allowed=False) == (dns.rcode.REFUSED, None)
    assert judge(dns.message.make_query("z.example", "A")) == (dns.rcode.NOTIMP, None)


def test_signed_messages_are_verified_and_answered_signed() -> None:
    """A key that is not known, or not the same, is refused."""
    signed = make_notify()
    signed.use_tsig(KEY)
    assert judge(signed) == (dns.rcode.NOERROR, "z.example")
    for key in (dns.tsig.Key("other", "c2VjcmV0"), dns.tsig.Key("k", "b3RoZXI=")):
        stranger = make_notify()
        stranger.use_tsig(key)
        verdict = judge_message(stranger.to_wire(), is_allowed=True, keys={"k": KEY}, is_known=lambda _: True)
        assert verdict.answer is not None
        assert verdict.answer[3] & 15 == dns.rcode.NOTAUTH
        assert verdict.zone is None
        assert verdict.fault is not None


@given(
    st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda noise: make_notify().to_wire()[:12] + noise))
)
@settings(max_examples=examples(500))
def test_any_bytes_have_a_verdict(noise: bytes) -> None:
    """An answer or none, and never an exception; what is an answer itself gets none."""
    for is_allowed in (True, False):
        verdict = judge_message(noise, is_allowed=is_allowed, keys={"k": KEY}, is_known=lambda _: True)
        if len(noise) < 12 or noise[2] & 0x80:
            assert verdict.answer is None


@asynccontextmanager
async def listening(*allowed: str) -> AsyncIterator[tuple[ServerAddress, list[str]]]:
    heard: list[str] = []
    place = ServerAddress("127.0.0.1", free_ports(1))
    listener = NotifyListener(
        place, allowed=parse_networks(allowed, "x"), keys={}, is_known=lambda _: True, on_notify=heard.append
    )
    await listener.open()
    try:
        yield place, heard
    finally:
        listener.close()


async def test_it_is_heard_by_udp_and_tcp_from_those_who_may(logged: Callable[[], set[str]]) -> None:
    """Whoever may not is refused; a connection that says nothing harms nobody."""
    for allowed, code in (("127.0.0.0/8", dns.rcode.NOERROR), ("192.0.2.0/24", dns.rcode.REFUSED)):
        async with listening(allowed) as (place, heard):
            _, silent = await asyncio.open_connection(*place)
            by_udp = await dns.asyncquery.udp(make_notify(), place.address, port=place.port, timeout=10)
            by_tcp = await dns.asyncquery.tcp(make_notify(), place.address, port=place.port, timeout=10)
            assert (by_udp.rcode(), by_tcp.rcode()) == (code, code)
            assert heard == (["z.example"] * 2 if code == dns.rcode.NOERROR else [])
            silent.close()
            await silent.wait_closed()
            assert ("notify_refused" in logged()) == (code != dns.rcode.NOERROR)


async def test_a_port_that_is_taken_is_said_so() -> None:
    """With the address and the way out."""
    async with listening("127.0.0.1") as (place, _):
        other = NotifyListener(
            place, allowed=[ipaddress.ip_network("::1")], keys={}, is_known=lambda _: True, on_notify=print
        )
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1#.*also-notify"):
            await other.open()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1#5300", ("127.0.0.1", 5300)),
        ("127.0.0.1:5300", ("127.0.0.1", 5300)),
        ("::1", ("::1", 53)),
        ("::1#5300", ("::1", 5300)),
        ("[::1]:5300", ("::1", 5300)),
        ("[::1]", ("::1", 53)),
    ],
)
def test_addresses_are_read_in_their_usual_forms(text: str, expected: tuple[str, int]) -> None:
    """BIND's form with #, and that of URLs."""
    assert parse_address(text, 53, "x") == expected


@pytest.mark.parametrize(
    "text", ["", "ns1.example", "127.0.0.1#", "127.0.0.1#0", "127.0.0.1#65536", "127.0.0.1#x", "1#2#3"]
)
def test_what_is_no_address_is_said_so(text: str) -> None:
    """One line that names the setting and the form."""
    with pytest.raises(ConfigError, match=r"source\.zones\.address: .* is no address; write it as 127\.0\.0\.1#53"):
        parse_address(text, 53, "source.zones.address")
    with pytest.raises(ConfigError, match="x: "):
        parse_networks(["nowhere"], "x")
