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
from solowire.backplane.messages import PublishAck, PublishNack, RingState, ShardAddress
from solowire.backplane.zmq_transport import RouterSocket
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import InvalidToken, RequestError, RequestRejected
from solowire.gateway import router_client as gateway
from solowire.gateway.admission.connect_limiter import ConnectLimiter
from solowire.gateway.publish.publish_limiter import PublishLimiter
from solowire.gateway.router_client import RouterClient
from solowire.model.access import ROLES
from solowire.model.events import Delivery, Event, Priority
from solowire.runtime.settings.auth_settings import AuthSettings
from solowire.runtime.settings.limits_settings import ConnectSettings, LimitsSettings
from solowire.runtime.settings.publish_settings import PublishSettings
from tests.support.system import ANSWER_SECONDS

HERE = "192.0.2.1"
RING = RingState("e", 1, 0, [ShardAddress(0, "127.0.0.1", 1, "boot")])
INTAKE = PublishLimiter(PublishSettings(max_held_requests=8, timeout_s=2.0, rate=1.0, burst=1.0))


async def test_so_many_answers_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound wrong tokens are refused at once, with the same answer: those that wait take bounded memory."""
    monkeypatch.setattr(gateway, "_MOST_HELD", 3)
    monkeypatch.setattr(gateway, "_HELD_SECONDS", 0.05)
    admission = ConnectLimiter(auth=AuthSettings(bad_token_rate=0.01, bad_token_burst=1.0))
    made = RouterClient(
        f"ipc://{tmp_path}/r",
        Tokens("s" * 32, ROLES, domain=DNS),
        ROLES,
        INTAKE,
        timeout=1.0,
        connect_limiter=admission,
    )
    try:
        with pytest.raises(InvalidToken):
            await made.identify("wrong", HERE)
        asking = [asyncio.ensure_future(made.identify("wrong", HERE)) for _ in range(10)]
        await asyncio.sleep(0)
        assert made.delayed_responses == 3
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert {answer.code for answer in answers if isinstance(answer, RequestRejected)} == {"too_many_auth_failures"}
        assert len(answers) == 10
        assert (made.delayed_responses, made.delayed_responses_total, made.auth_failures) == (0, 3, 11)
    finally:
        made.close()


async def test_wrong_tokens_are_counted_for_each_address(tmp_path: Path) -> None:
    """Where one address is slowed down for its guesses, another one is told what is wrong, and at once."""
    admission = ConnectLimiter(auth=AuthSettings(bad_token_rate=0.01, bad_token_burst=1.0))
    made = RouterClient(
        f"ipc://{tmp_path}/r",
        Tokens("s" * 32, ROLES, domain=DNS),
        ROLES,
        INTAKE,
        timeout=1.0,
        connect_limiter=admission,
    )
    try:
        for address in (HERE, "192.0.2.2"):
            with pytest.raises(InvalidToken):
                await made.identify("wrong", address)
        assert made.delayed_responses_total == 0
    finally:
        made.close()


async def test_an_answer_that_nobody_waits_for_is_not_held(tmp_path: Path) -> None:
    """A client that goes away while its answer is held gives its place back."""
    admission = ConnectLimiter(auth=AuthSettings(bad_token_rate=0.01, bad_token_burst=1.0))
    made = RouterClient(
        f"ipc://{tmp_path}/r",
        Tokens("s" * 32, ROLES, domain=DNS),
        ROLES,
        INTAKE,
        timeout=1.0,
        connect_limiter=admission,
    )
    try:
        admission.failed_auth.record_failure(HERE, asyncio.get_running_loop().time())
        asking = asyncio.ensure_future(made.identify("wrong", HERE))
        await asyncio.sleep(0)
        assert made.delayed_responses == 1
        asking.cancel()
        await asyncio.wait((asking,))
        assert made.delayed_responses == 0
    finally:
        made.close()


async def test_who_could_not_be_sent_on_has_not_published(tmp_path: Path) -> None:
    """While the router is away a publisher pays nothing for what it can't send, however often it tries."""
    intake = PublishLimiter(PublishSettings(max_held_requests=8, timeout_s=2.0, rate=0.001, burst=5.0))
    tokens = Tokens("s" * 32, ROLES, domain=DNS)
    made = RouterClient(f"ipc://{tmp_path}/r", tokens, ROLES, intake, timeout=1.0)
    try:
        publisher = tokens.identify(tokens.sign_token("pub", "publisher", now=time.time(), ttl=60), time.time())
        event = Event("id", "custom.x", b"{}", Priority.normal, Delivery.durable, "2026-01-01T00:00:00Z")
        now = asyncio.get_running_loop().time()
        for _ in range(5):
            room = intake.reserve("pub", now)
            with pytest.raises(RequestRejected) as refused:
                made.send_events(publisher, [event] * 5, 5, room, [])
            assert refused.value.code == "router_unavailable"
            intake.release(room)
        intake.charge("pub", 5, now)
        with pytest.raises(RequestRejected) as refused:
            intake.check("pub", 1, now)
        assert refused.value.code == "publish_rate_limited"
    finally:
        made.close()


async def test_who_waits_when_the_gateway_ends_may_get_the_answer_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the router answers in the last moment is given to whoever waits for it; the others get 503, and a time."""
    monkeypatch.setattr(gateway, "_LAST_ANSWERS_SECONDS", 0.05)
    hub = RouterSocket(f"ipc://{tmp_path}/r", lambda peer, raw: hub.send(peer, backplane.encode(RING)))
    tokens = Tokens("s" * 32, ROLES, domain=DNS)
    made = RouterClient(f"ipc://{tmp_path}/r", tokens, ROLES, INTAKE, timeout=ANSWER_SECONDS)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not made.is_router_alive:
                await asyncio.sleep(0.005)
        asking = [asyncio.ensure_future(made.fetch_stats()) for _ in range(2)]
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(made.finish())
        await asyncio.sleep(0)
        made._on_message(PublishAck(1, "e", [7], []))
        first, second = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, PublishAck)
        assert first == PublishAck(1, "e", [7], [])
        assert isinstance(second, RequestRejected)
        assert (second.status, second.code, second.retry_after) == (503, "router_unavailable", 1)
        await ending
    finally:
        made.close()
        hub.close()


async def test_who_is_refused_by_the_router_for_his_rate_hears_the_way_out(tmp_path: Path) -> None:
    """Over all gateways as at one of them: 429, when to try again, and which setting it is."""
    hub = RouterSocket(f"ipc://{tmp_path}/r", lambda peer, raw: hub.send(peer, backplane.encode(RING)))
    tokens = Tokens("s" * 32, ROLES, domain=DNS)
    intake = PublishLimiter(PublishSettings())
    made = RouterClient(f"ipc://{tmp_path}/r", tokens, ROLES, intake, timeout=ANSWER_SECONDS)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not made.is_ready:
                await asyncio.sleep(0.005)
        publisher = tokens.identify(tokens.sign_token("pub", "publisher", now=time.time(), ttl=60), time.time())
        event = Event("id", "custom.x", b"{}", Priority.normal, Delivery.durable, "2026-01-01T00:00:00Z")
        number = made.send_events(publisher, [event], 1, intake.reserve("pub", 0.0), [])
        waiting = asyncio.ensure_future(made.wait_for_ack(number))
        await asyncio.sleep(0)
        made._on_message(PublishNack(number, "publish_rate_limited", "too many bytes", 0.5))
        with pytest.raises(RequestRejected) as refused:
            await waiting
        assert (refused.value.status, refused.value.retry_after) == (429, 0.5)
        assert "SOLOWIRE_PUBLISH__BYTES_PER_S" in refused.value.hint
    finally:
        made.close()
        hub.close()


async def test_what_is_under_way_is_in_the_routers_queue_when_the_ring_changes(tmp_path: Path) -> None:
    """A shard that comes or goes frees no room; a log that begins anew does, and a router that tells the ring again."""
    intake = PublishLimiter(PublishSettings(max_held_requests=8, timeout_s=120.0, rate=100.0, burst=100.0))
    made = RouterClient(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES, domain=DNS), ROLES, intake, timeout=1.0)
    try:
        made._on_message(RING)
        for ring, held in (
            (RingState("e", 2, 0, []), 1),  # one that has changed
            (RingState("e", 2, 0, []), 0),  # told again: the router has asked who this is, or was away
            (RingState("e", 3, 0, RING.shards), 1),
            (RingState("f", 3, 0, RING.shards), 0),  # another log
        ):
            room = intake.reserve("pub", 0.0)
            intake.mark_sent(room, 1, 0.0)
            intake.release(room)
            made._on_message(ring)
            assert intake.requests == held, ring
            intake.reset()
    finally:
        made.close()


async def test_who_is_dropped_by_a_shard_that_is_there_comes_back_within_seconds(tmp_path: Path) -> None:
    """Not at once: the shard may have gone and the ring not know it yet. Nor all in one moment."""
    made = RouterClient(f"ipc://{tmp_path}/r", Tokens("s" * 32, ROLES, domain=DNS), ROLES, INTAKE, timeout=1.0)
    [lost] = RING.shards
    try:
        made._on_message(RING)
        users = [f"user-{n}" for n in range(100)]
        delays = [made.find_return_delay(user, lost, 0.0) or 0.0 for user in users]
        assert backplane.DEAD_AFTER_SECONDS < min(delays) < min(delays) + 1.0 < max(delays) <= 5.0
        assert [made.find_return_delay(user, lost, 5.0) for user in users] == [0.0] * 100
        made._on_message(RingState("e", 2, 0, []))
        assert made.find_return_delay("alice", lost, 5.0) is None
        made._on_message(RingState("e", 3, 0, [ShardAddress(0, "127.0.0.1", 1, "another")]))
        assert made.find_return_delay("alice", lost, 0.0) == 0.0
    finally:
        made.close()


async def test_refusals_leave_nothing_for_the_collector(tmp_path: Path) -> None:
    """An attack of refused users and wrong tokens makes no cycles: its memory is free at once, and no loop stops."""
    limits = LimitsSettings(connect=ConnectSettings(rate=0.001, burst=1.0))
    auth = AuthSettings(bad_token_rate=1e6, bad_token_burst=1.0)
    tokens = Tokens("s" * 32, ROLES, domain=DNS)
    made = RouterClient(
        f"ipc://{tmp_path}/r", tokens, ROLES, INTAKE, timeout=1.0, connect_limiter=ConnectLimiter(limits, auth)
    )
    made._on_message(RING)
    good = tokens.sign_token("ann", "viewer", now=time.time(), ttl=60)
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            for token in (good, "wrong"):
                with contextlib.suppress(RequestError):
                    await made.assign_shard(token, HERE)
        assert made.rejections.total() >= 99
        assert gc.collect() < 50
    finally:
        gc.enable()
        made.close()
