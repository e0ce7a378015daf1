"""What the gateway does beside HTTP: how it answers wrong tokens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from pathlib import Path

import pytest

from solowire.auth.tokens import Tokens
from solowire.backplane import messages as backplane
from solowire.backplane.messages import Published, RingState, ShardAddress
from solowire.backplane.zmq_transport import Hub
from solowire.errors import InvalidToken, Refused, RequestError
from solowire.gateway import router_client as gateway
from solowire.gateway.admission.connect_limiter import Admission, Limits
from solowire.gateway.publish.publish_limiter import Intake
from solowire.gateway.router_client import Gateway
from solowire.model.access import ROLES
from solowire.model.events import Delivery, Event, Priority
from tests.e2e.system import ANSWER_SECONDS

HERE = "192.0.2.1"
RING = RingState("e", 1, 0, [ShardAddress(0, "127.0.0.1", 1, "boot")])
INTAKE = Intake(requests=8, bytes=2**20, patience=1.0, lost=2.0, rate=1.0, burst=1.0)


async def test_so_many_answers_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound wrong tokens are refused at once, with the same answer: those that wait take bounded memory."""
    monkeypatch.setattr(gateway, "_MOST_HELD", 3)
    monkeypatch.setattr(gateway, "_HELD_SECONDS", 0.05)
    admission = Admission(Limits(bad_token_rate=0.01, bad_token_burst=1.0))
    made = Gateway(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES), ROLES, INTAKE, timeout=1.0, admission=admission)
    try:
        with pytest.raises(InvalidToken):
            await made.identify("wrong", HERE)
        asking = [asyncio.ensure_future(made.identify("wrong", HERE)) for _ in range(10)]
        await asyncio.sleep(0)
        assert made.held == 3
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert {answer.code for answer in answers if isinstance(answer, Refused)} == {"too_many_wrong_tokens"}
        assert len(answers) == 10
        assert (made.held, made.held_total, made.wrong_tokens) == (0, 3, 11)
    finally:
        made.close()


async def test_wrong_tokens_are_counted_for_each_address(tmp_path: Path) -> None:
    """Where one address is slowed down for its guesses, another one is told what is wrong, and at once."""
    admission = Admission(Limits(bad_token_rate=0.01, bad_token_burst=1.0))
    made = Gateway(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES), ROLES, INTAKE, timeout=1.0, admission=admission)
    try:
        for address in (HERE, "192.0.2.2"):
            with pytest.raises(InvalidToken):
                await made.identify("wrong", address)
        assert made.held_total == 0
    finally:
        made.close()


async def test_an_answer_that_nobody_waits_for_is_not_held(tmp_path: Path) -> None:
    """A client that goes away while its answer is held gives its place back."""
    admission = Admission(Limits(bad_token_rate=0.01, bad_token_burst=1.0))
    made = Gateway(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES), ROLES, INTAKE, timeout=1.0, admission=admission)
    try:
        admission.wrong_tokens.shown(HERE, asyncio.get_running_loop().time())
        asking = asyncio.ensure_future(made.identify("wrong", HERE))
        await asyncio.sleep(0)
        assert made.held == 1
        asking.cancel()
        await asyncio.wait((asking,))
        assert made.held == 0
    finally:
        made.close()


async def test_who_could_not_be_sent_on_has_not_published(tmp_path: Path) -> None:
    """While the router is away a publisher pays nothing for what it can't send, however often it tries."""
    intake = Intake(requests=8, bytes=2**20, patience=1.0, lost=2.0, rate=0.001, burst=5.0)
    tokens = Tokens("s" * 32, ROLES)
    made = Gateway(f"ipc://{tmp_path}/r", tokens, ROLES, intake, timeout=1.0)
    try:
        publisher = tokens.identify(tokens.sign("pub", "publisher", now=time.time(), ttl=60), time.time())
        event = Event("id", "custom.x", b"{}", Priority.normal, Delivery.durable, "2026-01-01T00:00:00Z")
        now = asyncio.get_running_loop().time()
        for _ in range(5):
            room = intake.open("pub", now)
            with pytest.raises(Refused) as refused:
                made.send(publisher, [event] * 5, room)
            assert refused.value.code == "router_away"
            intake.close(room)
        intake.charge("pub", 5, now)
        with pytest.raises(Refused) as refused:
            intake.check("pub", 1, now)
        assert refused.value.code == "publish_rate_limited"
    finally:
        made.close()


async def test_who_waits_when_the_gateway_ends_may_get_the_answer_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the router answers in the last moment is given to whoever waits for it; the others get 503, and a time."""
    monkeypatch.setattr(gateway, "_LAST_ANSWERS_SECONDS", 0.05)
    hub = Hub(f"ipc://{tmp_path}/r", lambda peer, raw: hub.send(peer, backplane.encode(RING)))
    tokens = Tokens("s" * 32, ROLES)
    made = Gateway(f"ipc://{tmp_path}/r", tokens, ROLES, INTAKE, timeout=ANSWER_SECONDS)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not made.router_alive:
                await asyncio.sleep(0.005)
        asking = [asyncio.ensure_future(made.ask()) for _ in range(2)]
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(made.finish())
        await asyncio.sleep(0)
        made._received(Published(1, "e", [7], []))
        first, second = await asyncio.gather(*asking, return_exceptions=True)
        assert first == Published(1, "e", [7], [])
        assert isinstance(second, Refused)
        assert (second.status, second.code, second.retry_after) == (503, "router_away", 1)
        await ending
    finally:
        made.close()
        hub.close()


async def test_what_is_under_way_is_in_the_routers_queue_when_the_ring_changes(tmp_path: Path) -> None:
    """A shard that comes or goes frees no room; a log that begins anew does, and a router that tells the ring again."""
    intake = Intake(requests=8, bytes=2**20, patience=60.0, lost=120.0, rate=100.0, burst=100.0)
    made = Gateway(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES), ROLES, intake, timeout=1.0)
    try:
        made._received(RING)
        for ring, held in (
            (RingState("e", 2, 0, []), 1),  # one that has changed
            (RingState("e", 2, 0, []), 0),  # told again: the router has asked who this is, or was away
            (RingState("e", 3, 0, RING.shards), 1),
            (RingState("f", 3, 0, RING.shards), 0),  # another log
        ):
            room = intake.open("pub", 0.0)
            intake.sent(room, 1, 0.0)
            intake.close(room)
            made._received(ring)
            assert intake.requests == held, ring
            intake.forget()
    finally:
        made.close()


async def test_refusals_leave_nothing_for_the_collector(tmp_path: Path) -> None:
    """An attack of refused users and wrong tokens makes no cycles: its memory is free at once, and no loop stops."""
    limits = Limits(bad_token_rate=1e6, bad_token_burst=1.0, rate=0.001, burst=1.0)
    tokens = Tokens("s" * 32, ROLES)
    made = Gateway(f"ipc://{tmp_path}/r", tokens, ROLES, INTAKE, timeout=1.0, admission=Admission(limits))
    made._received(RING)
    good = tokens.sign("ann", "viewer", now=time.time(), ttl=60)
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            for token in (good, "wrong"):
                with contextlib.suppress(RequestError):
                    await made.place(token, HERE)
        assert made.refused.total() >= 99
        assert gc.collect() < 50
    finally:
        gc.enable()
        made.close()
