"""The backplane over TCP: who gets in by which keys, and what becomes of the others."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import zmq
from structlog.testing import capture_logs

from solowire.backplane import router_link, zmq_transport
from solowire.backplane.curve_keys import (
    MemberKeys,
    RouterKeys,
    derive_member_keys,
    derive_router_keys,
    find_public_key,
    is_key,
    make_pair,
)
from solowire.backplane.messages import VERSION, Join
from solowire.backplane.router_link import RouterLink
from solowire.backplane.zmq_transport import PART_BYTES, PeerSocket, RouterSocket
from solowire.errors import ConfigError
from tests.backplane.test_zmq_transport import until
from tests.support.system import free_ports

SEED, OTHER_SEED = "a seed that is long enough to be one", "another seed that is long enough, too"


class Net:
    """A router's port on loopback, and what has come to it. Everything is closed with the test."""

    def __init__(self) -> None:
        self.port = free_ports(1)
        self.at_router: list[tuple[bytes, bytes]] = []
        self.open: list[RouterSocket | PeerSocket] = []

    def router(self, keys: RouterKeys, host: str = "127.0.0.1") -> RouterSocket:
        made = RouterSocket(f"tcp://{host}:{self.port}", lambda peer, raw: self.at_router.append((peer, raw)), keys)
        self.open.append(made)
        return made

    def peer(self, name: bytes, keys: MemberKeys, host: str = "127.0.0.1") -> tuple[PeerSocket, list[bytes]]:
        got: list[bytes] = []
        made = PeerSocket(f"tcp://{host}:{self.port}", name, got.append, keys)
        self.open.append(made)
        return made, got

    def close(self) -> None:
        for made in self.open:
            made.close()


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setattr(zmq_transport, "TRY_SECONDS", 0.2)
    net = Net()
    yield net
    net.close()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def make_keys() -> tuple[RouterKeys, MemberKeys]:
    router, member = make_pair(), make_pair()
    return RouterKeys(router[1], frozenset([member[0]])), MemberKeys(member[1], (router[0],))


def test_a_seed_gives_both_sides_their_keys() -> None:
    """Each side's public key is the one that the other was given; another seed gives others; no secret is shown."""
    router, member = derive_router_keys([SEED]), derive_member_keys([SEED])
    assert router.members == {find_public_key(member.secret)}
    assert member.routers == (find_public_key(router.secret),)
    assert router.secret != member.secret
    others = derive_router_keys([OTHER_SEED]), derive_member_keys([OTHER_SEED])
    assert len({router.secret, member.secret, others[0].secret, others[1].secret}) == 4
    assert router.secret not in repr(router)
    assert member.secret not in repr(member)


def test_seeds_are_derived_as_documented() -> None:
    """Whoever derives them elsewhere, by the module's description, gets the same."""
    assert derive_router_keys([SEED]).secret == "QL)5QzUlc#?+t/ZueksJeTygsRAx>ZkmkY8z-<3:"
    assert derive_member_keys([SEED]).secret == "bX!kSumX5]fQ)ll@0@2&+?0sZ3ChdAEeA!{q-aUY"


def test_new_pairs_are_easy_to_write() -> None:
    """They pass through shells and `.env` files as they are, and each is another."""
    pairs = [make_pair() for _ in range(20)]
    assert len({key for pair in pairs for key in pair}) == 40
    for public, secret in pairs:
        assert is_key(public)
        assert find_public_key(secret) == public
        assert public[0].isalnum()
        assert secret[0].isalnum()
        assert "$" not in public + secret


@pytest.mark.parametrize("text", ["", "x" * 39, "x" * 41, "x" * 39 + "ü", "#" * 40])
def test_what_is_no_key(text: str) -> None:
    """It is refused in words, also where its characters are right and stand for no number."""
    with pytest.raises(ValueError, match="no key"):
        find_public_key(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_members_with_the_right_keys_talk(net: Net, host: str) -> None:
    """Over IPv4, IPv6 and by name, whichever of both comes first."""
    router_keys, member_keys = make_keys()
    peer, got = net.peer(b"shard-0", member_keys, host)
    assert not peer.send(b"nobody is there")
    router = net.router(router_keys, host)
    await until(lambda: peer.send(b"hello"), "the peer is connected")
    await until(lambda: (b"shard-0", b"hello") in net.at_router, "the router hears it")
    assert router.send(b"shard-0", b"welcome")
    await until(lambda: got == [b"welcome"], "the peer hears the router")
    assert (router.accepted_count, router.authenticated_count) == (1, 1)


async def test_long_messages_pass_whole_and_in_order(net: Net) -> None:
    """They go in parts, since a stranger's part is held before it has shown a key; only the sockets see that."""
    router_keys, member_keys = make_keys()
    router = net.router(router_keys)
    peer, got = net.peer(b"shard-0", member_keys)
    sizes = (PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 10 * PART_BYTES, 0, 1, 5 * PART_BYTES + 7)
    messages = [bytes([n]) * size for n, size in enumerate(sizes)]
    await until(lambda: peer.send(messages[0]), "the peer is connected")
    for message in messages[1:]:
        assert peer.send(message)
    await until(lambda: len(net.at_router) == len(messages), "the router has all")
    assert net.at_router == [(b"shard-0", message) for message in messages]
    for message in messages:
        assert router.send(b"shard-0", message)
    await until(lambda: len(got) == len(messages), "the peer has all")
    assert got == messages


async def test_a_member_whose_secret_key_is_listed_is_told_apart(net: Net, logged: list[Any]) -> None:
    """Both look alike; who took member.key for member.pub is told so when the member comes."""
    router_keys, _ = make_keys()
    public, secret = make_pair()
    net.router(RouterKeys(router_keys.secret, frozenset([secret])))
    peer, _ = net.peer(b"shard-0", MemberKeys(secret, (find_public_key(router_keys.secret),)))
    await until(lambda: peer.failure, "it is refused")
    [line] = [entry for entry in logged if entry["event"] == "backplane_key_rejected"][:1]
    assert line["key"] == public
    assert "its secret key" in line["hint"]
    assert secret not in str(logged)


async def test_a_peer_with_a_wrong_key_is_let_in_when_its_key_is(net: Net, logged: list[Any]) -> None:
    """It is refused, counted and named with its address and public key; when the key is added it comes by itself."""
    router_keys, member_keys = make_keys()
    public, secret = make_pair()
    router = net.router(router_keys)
    peer, _ = net.peer(b"shard-0", MemberKeys(secret, member_keys.routers))
    await until(lambda: peer.failure, "it is refused")
    assert peer.failure == "the router doesn't know this process's key"
    assert not peer.send(b"hello")
    assert (router.accepted_count, router.authenticated_count) == (1, 0)
    [line] = [entry for entry in logged if entry["event"] == "backplane_key_rejected"][:1]
    assert (line["address"], line["key"]) == ("127.0.0.1", public)
    router.change_keys(RouterKeys(router_keys.secret, router_keys.members | {public}))
    await until(lambda: peer.send(b"hello"), "it is let in")
    await until(lambda: net.at_router == [(b"shard-0", b"hello")], "and heard")
    assert peer.failure == ""


async def test_a_peer_that_knows_another_router(net: Net, logged: list[Any]) -> None:
    """It talks to no router whose key it doesn't know, and both say so; of two keys the right one is found."""
    router_keys, member_keys = make_keys()
    net.router(router_keys)
    wrong = make_pair()[0]
    peer, _ = net.peer(b"shard-0", MemberKeys(member_keys.secret, (wrong,)))
    await until(lambda: peer.failure and logged, "both know")
    assert peer.failure.startswith("the router has another key")
    assert not peer.send(b"hello")
    assert "backplane_handshake_failed" in {entry["event"] for entry in logged}
    found, _ = net.peer(b"shard-1", MemberKeys(member_keys.secret, (wrong, *member_keys.routers)))
    await until(lambda: found.send(b"hello"), "the other key is tried")
    await until(lambda: net.at_router == [(b"shard-1", b"hello")], "and right")


async def test_a_link_that_is_refused_says_why(net: Net, monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    """The line that the router is away has the reason, where that is known."""
    monkeypatch.setattr(router_link, "SAY_AFTER_SECONDS", 1.0)
    router_keys, member_keys = make_keys()
    net.router(router_keys)
    address = f"tcp://127.0.0.1:{net.port}"
    keys = MemberKeys(make_pair()[1], member_keys.routers)
    link = RouterLink(address, "gateway-x", lambda: Join(VERSION, "x"), lambda message: None, keys=keys)
    try:
        await until(lambda: [e for e in logged if e["event"] == "router_unreachable"], "it is said")
    finally:
        link.close()
    [line] = [entry for entry in logged if entry["event"] == "router_unreachable"]
    assert line["reason"] == "the router doesn't know this process's key"


async def test_seeds_are_changed_without_an_end(net: Net) -> None:
    """With the new seed first and the old one behind it, processes of before and after the change find each other."""
    for router_seeds, member_seeds in (([SEED], [OTHER_SEED, SEED]), ([OTHER_SEED, SEED], [SEED, OTHER_SEED])):
        router = net.router(derive_router_keys([*router_seeds, OTHER_SEED]))
        peer, _ = net.peer(b"shard-0", derive_member_keys(member_seeds))
        await until(lambda: peer.send(b"hello"), "it is connected")  # noqa: B023
        peer.close()
        router.close()


async def test_strangers_reach_nothing(net: Net, logged: list[Any]) -> None:
    """No ZeroMQ, no word, no key, frames that are too big: each is counted and cut, and members don't notice."""
    router_keys, member_keys = make_keys()
    router = net.router(router_keys)
    peer, got = net.peer(b"shard-0", member_keys)
    await until(lambda: peer.send(b"hello"), "the member is connected")
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.set(zmq.IDENTITY, b"shard-0")
    plain.connect(f"tcp://127.0.0.1:{net.port}")
    plain.send(b"let me in")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE".ljust(55, b"\0")
    exabytes, bit_more = b"\x06" + b"\x7f" * 8, b"\x06" + (340 * 1024).to_bytes(8) + bytes(1000)
    writes = [b"GET / HTTP/1.1\r\n\r\n" * 20, b"", greeting, greeting + exabytes, greeting + bit_more]
    strangers = [socket.create_connection(("127.0.0.1", net.port)) for _ in writes]
    try:
        for stranger, data in zip(strangers, writes, strict=True):
            stranger.sendall(data)
        for stranger in strangers:
            stranger.settimeout(0)
            await until(lambda: is_over(stranger), "its connection is over")  # noqa: B023
    finally:
        for stranger in strangers:
            stranger.close()
        plain.close(0)
        context.term()
    assert {payload for _, payload in net.at_router} == {b"hello"}
    assert router.send(b"shard-0", b"welcome")
    await until(lambda: got == [b"welcome"], "the member is still there")
    assert {entry["event"] for entry in logged} == {"backplane_handshake_failed"}
    assert router.authenticated_count == 1
    assert router.accepted_count >= 2 + len(writes)


def is_over(stranger: socket.socket) -> bool:
    try:
        while stranger.recv(1000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


async def test_without_keys_there_is_no_tcp() -> None:
    """Neither end can be made by mistake."""
    with pytest.raises(ConfigError, match="keys"):
        RouterSocket("tcp://127.0.0.1:7400", lambda peer, raw: None)
    with pytest.raises(ConfigError, match="keys"):
        PeerSocket("tcp://127.0.0.1:7400", b"shard-0", lambda raw: None)


@pytest.mark.parametrize("host", ["192.0.2.1", "router.invalid", "a..b"])
async def test_a_router_that_cant_listen_says_where_it_could(host: str) -> None:
    """An address of another machine and a name that nobody knows are one line with the way out."""
    with pytest.raises(ConfigError, match=r"can't listen on tcp://.*SOLOWIRE_BACKPLANE_BIND"):
        RouterSocket(f"tcp://{host}:7400", lambda peer, raw: None, make_keys()[0])


async def test_a_name_that_comes_to_mean_another_address(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that has moved is found where its name leads now; a name that means nothing yet is asked for again."""
    means: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "router.example":
            return real(host, *arguments, **options)
        if not means or options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in means for found in real(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    router_keys, member_keys = make_keys()
    peer, got = net.peer(b"shard-0", member_keys, "router.example")
    await until(lambda: peer.failure, "nobody knows the name")
    assert peer.failure == "router.example: Name or service not known"
    first = net.router(router_keys)
    means[:] = ["127.0.0.1"]
    await until(lambda: peer.send(b"hello"), "it is found")
    first.close()
    await until(lambda: not peer.send(b"lost"), "it is gone")
    second = net.router(router_keys, "127.0.0.2")
    means[:] = ["127.0.0.3", "127.0.0.2"]  # of several, each is tried
    await until(lambda: peer.send(b"again"), "it is found elsewhere")
    await until(lambda: second.send(b"shard-0", b"welcome"), "and knows the peer")
    await until(lambda: got == [b"welcome"], "which hears it")


async def test_each_address_of_a_name_is_tried_in_whatever_order_they_are_told(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that turns its answers round leads nobody to the same address each time."""
    means = ["127.0.0.3", "127.0.0.2"]
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "router.example":
            return real(host, *arguments, **options)
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = [found for address in means for found in real(address, *arguments, **options)]
        means.append(means.pop(0))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    router_keys, member_keys = make_keys()
    net.router(router_keys, "127.0.0.2")
    peer, _ = net.peer(b"shard-0", member_keys, "router.example")
    await until(lambda: peer.send(b"hello"), "the one where a router listens is found")


async def test_a_router_that_hangs_is_left_if_its_name_leads_elsewhere(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is alive, since ZeroMQ's thread answers for it; whoever hears nothing over it doubts it."""
    means = ["127.0.0.1"]
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "router.example" and options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(means[0] if host == "router.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    router_keys, member_keys = make_keys()
    hanging, moved = net.router(router_keys), net.router(router_keys, "127.0.0.2")
    peer, got = net.peer(b"shard-0", member_keys, "router.example")
    await until(lambda: peer.send(b"hello") and hanging.authenticated_count, "it is connected")
    peer.doubt()
    await asyncio.sleep(3 * zmq_transport.TRY_SECONDS)
    assert (hanging.authenticated_count, moved.authenticated_count) == (1, 0)  # there is nobody else
    means[0] = "127.0.0.2"
    peer.doubt()
    await until(lambda: moved.send(b"shard-0", b"welcome"), "it has gone there")
    await until(lambda: got == [b"welcome"], "and hears it")


async def test_closing_waits_for_no_name_server(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that hangs holds up neither the loop nor the end."""
    hangs = asyncio.Event()
    released = threading.Event()

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "")
        loop.call_soon_threadsafe(hangs.set)
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    peer, _ = net.peer(b"shard-0", make_keys()[1], "router.example")
    await asyncio.wait_for(hangs.wait(), 30)
    peer.close()
    released.set()
