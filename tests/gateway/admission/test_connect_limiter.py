"""Who may ask for a place, what the others are told, and that they don't come back all at once."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.backplane.messages import DEAD_AFTER_SECONDS, AdmissionState
from solowire.errors import RequestRejected
from solowire.gateway.admission.connect_limiter import (
    LONGEST_SPREAD_SECONDS,
    REMEMBERED_USERS,
    ConnectLimiter,
)
from solowire.model.access import Identity
from solowire.protocol.problem_details import to_http_response
from solowire.runtime.settings import Settings
from solowire.runtime.settings.auth_settings import AuthSettings
from solowire.runtime.settings.limits_settings import ConnectSettings
from solowire.sdk.return_schedule import make_backoff
from tests.support.examples import examples
from tests.support.factories import change

HERE = "192.0.2.1"


def limiter(
    settings: Settings | None = None, bad_token_rate: float = 1.0, bad_token_burst: float = 20.0, **connect: float
) -> ConnectLimiter:
    """connect: how fast new connections may come."""
    limits = change((settings or Settings()).limits, connect=ConnectSettings(**connect))
    return ConnectLimiter(limits, AuthSettings(bad_token_rate=bad_token_rate, bad_token_burst=bad_token_burst))


def viewer(user: str = "ann", tenant: str = "") -> Identity:
    return Identity(user, "viewer", (), tenant=tenant)


def admin() -> Identity:
    return Identity("root", "admin", ("*",))


def ask(admission: ConnectLimiter, identity: Identity, address: str, now: float) -> RequestRejected | None:
    """The refusal; None if there is none."""
    try:
        admission.check(identity, address, now)
        admission.record(identity, address, now)
    except RequestRejected as refusal:
        return refusal
    return None


def say(admission: ConnectLimiter, doors: AdmissionState, now: float) -> None:
    """The router's word; the one stranger who may try a closed door just then has done so."""
    admission.update(doors, now)
    somebody = next(iter(doors.full_groups), "nobody")
    ask(admission, Identity("somebody", somebody, (), tenant=somebody), "203.0.113.1", now)


def codes(admission: ConnectLimiter, count: int, now: float, address: str = HERE) -> Counter[str]:
    """What so many users of one address are told at one moment; "" for those who may."""
    found: Counter[str] = Counter()
    for number in range(count):
        refusal = ask(admission, viewer(f"u{number}"), address, now)
        found[refusal.code if refusal else ""] += 1
    return found


def refused(refusal: RequestRejected | None) -> tuple[int, str]:
    assert refusal is not None
    assert refusal.retry_after is not None
    assert refusal.retry_after > 0
    assert refusal.message
    return refusal.status, refusal.code


def limited(refusal: RequestRejected | None) -> tuple[int, str, str]:
    """A refusal with whose limit it is, as its problem body has it."""
    status, code = refused(refusal)
    assert refusal is not None
    body = msgspec.json.decode(to_http_response(refusal)[2])
    assert body["scope"] == refusal.scope
    return status, code, refusal.scope


# ------------------------------------------------------------------------------------------------------ the doors


def test_before_the_router_has_said_anything_the_shard_decides() -> None:
    """A gateway that knows of no closed door closes none."""
    assert ask(ConnectLimiter(), viewer(), HERE, 0.0) is None


def test_a_closed_group_is_refused_and_others_are_not() -> None:
    """Where viewers have all that they may have, an administrator gets in."""
    admission = ConnectLimiter()
    say(admission, AdmissionState(["viewer"], False, 2.0), 100.0)
    assert refused(ask(admission, viewer(), HERE, 100.0)) == (503, "over_limit")
    assert ask(admission, admin(), HERE, 100.0) is None
    say(admission, AdmissionState([], False, 2.0), 101.0)
    assert ask(admission, viewer(), HERE, 101.0) is None


def test_who_was_let_in_before_may_come_again_while_its_group_is_closed() -> None:
    """Its shard knows what the gateway doesn't: that its older connection gives its slot up."""
    admission = ConnectLimiter()
    assert ask(admission, viewer("ann"), HERE, 0.0) is None
    say(admission, AdmissionState(["viewer"], False, 2.0), 10.0)
    assert refused(ask(admission, viewer("bob"), HERE, 10.0)) == (503, "over_limit")
    assert ask(admission, viewer("ann"), HERE, 10.0) is None
    assert ask(admission, viewer("ann"), HERE, 11.0) is None
    found = {refusal.code if refusal else "" for refusal in (ask(admission, viewer("ann"), HERE, 11.1) for _ in "abc")}
    assert "over_limit" in found


def test_a_few_strangers_may_try_a_closed_door() -> None:
    """Ten a second get a ticket, so that the shard decides; all others are refused as cheaply as before."""
    admission = ConnectLimiter()
    admission.update(AdmissionState(["viewer"], False, 2.0), 0.0)
    found: Counter[str] = Counter()
    for n in range(1000):
        refusal = ask(admission, viewer(f"u{n}"), HERE, n / 500)
        found[refusal.code if refusal else ""] += 1
    assert found == {"": 20, "over_limit": 980}


def test_groups_that_nobody_is_in_yet() -> None:
    """A group that the settings don't name is closed with the others; of those they name the router speaks itself."""
    admission = limiter(Settings(limits={"group_by": "tenant", "groups": {"named": {}}}))
    say(admission, AdmissionState([], True, 1.0), 0.0)
    assert refused(ask(admission, viewer(tenant="new"), HERE, 0.0)) == (503, "over_limit")
    assert ask(admission, viewer(tenant="named"), HERE, 0.0) is None


def test_tenants_are_groups_if_the_settings_say_so() -> None:
    """One tenant's door is closed to its users alone, whatever their role."""
    admission = limiter(Settings(limits={"group_by": "tenant"}))
    say(admission, AdmissionState(["a.example"], False, 1.0), 0.0)
    assert refused(ask(admission, viewer(tenant="a.example"), HERE, 0.0)) == (503, "over_limit")
    assert ask(admission, viewer(tenant="b.example"), HERE, 0.0) is None


def test_a_word_that_is_not_repeated_is_none() -> None:
    """While the router is away nobody is refused for what it said: slots come free without its saying so."""
    admission = ConnectLimiter()
    admission.update(AdmissionState(["viewer"], True, 1.0, [HERE]), 100.0)
    later = 100.0 + DEAD_AFTER_SECONDS - 0.1
    assert codes(admission, 5, later, "192.0.2.9") == {"": 1, "over_limit": 4}
    assert codes(admission, 5, 100.0 + DEAD_AFTER_SECONDS) == {"": 5}


def test_an_address_with_as_many_as_it_may_have() -> None:
    """It is the asker's doing, so 429, and no other address is refused."""
    admission = ConnectLimiter()
    admission.update(AdmissionState([], False, 1.0, [HERE]), 0.0)
    assert refused(ask(admission, viewer(), HERE, 0.0)) == (429, "too_many_from_address")
    assert ask(admission, viewer(), "192.0.2.2", 0.0) is None


# ------------------------------------------------------------------------------------------------------ the rates


def test_the_rate_of_the_whole_system() -> None:
    """A burst, then so many a second; what is too much is the system's state, so 503."""
    admission = limiter(rate=10.0, burst=30.0)
    assert codes(admission, 40, 0.0) == {"": 30, "connect_rate_limited": 10}
    assert codes(admission, 40, 1.0) == {"": 10, "connect_rate_limited": 30}
    assert limited(ask(admission, viewer(), HERE, 1.0)) == (503, "connect_rate_limited", "system")


def test_administrators_do_not_wait_for_everybody_else() -> None:
    """In the midst of a wave they get in at once; where even their slots are taken they come again in a second."""
    admission = limiter(rate=1.0, burst=2.0)
    assert codes(admission, 10_000, 100.0)["connect_rate_limited"] == 9_998
    assert ask(admission, admin(), HERE, 100.0) is None
    say(admission, AdmissionState(["admin", "viewer"], True, 5.0), 100.0)
    codes(admission, 10_000, 100.0)
    again = [ask(admission, Identity(f"root{n}", "admin", ("*",)), HERE, 100.0) for n in range(30)]
    assert {refusal.retry_after for refusal in again if refusal is not None} == {1.0}


def test_gateways_share_the_rate() -> None:
    """Of four gateways each lets a quarter in, so that together they keep to the setting."""
    admission = limiter(rate=40.0, burst=80.0)
    admission.update(AdmissionState([], False, 1.0, gateway_count=4), 0.0)
    assert codes(admission, 40, 0.0)[""] == 20
    assert codes(admission, 40, 1.0)[""] == 10
    admission.update(AdmissionState([], False, 1.0, gateway_count=1), 100.0)
    assert codes(admission, 100, 100.0)[""] == 80


def test_the_rate_of_an_address() -> None:
    """One address that connects too fast is told so, 429, and takes nothing from the others."""
    admission = limiter(
        rate=1000.0,
        burst=100.0,
        rate_per_address=1.0,
        burst_per_address=5.0,
        burst_per_user=100,
    )
    assert codes(admission, 50, 0.0) == {"": 5, "connect_rate_limited": 45}
    assert limited(ask(admission, viewer(), HERE, 0.0)) == (429, "connect_rate_limited", "address")
    assert codes(admission, 5, 0.0, "192.0.2.2") == {"": 5}
    assert sum(codes(admission, 1, 0.0, f"198.51.100.{n}")[""] for n in range(100)) == 90


def test_the_rate_of_a_user() -> None:
    """A user who asks for ticket after ticket is told so, 429, and no other user notices, from the same address too."""
    admission = limiter(rate_per_user=2.0, burst_per_user=5.0)
    found = [ask(admission, viewer("eve"), HERE, 0.0) for _ in range(50)]
    assert [refusal is None for refusal in found] == [True] * 5 + [False] * 45
    assert limited(found[-1]) == (429, "connect_rate_limited", "user")
    assert found[-1] is not None
    assert found[-1].retry_after == pytest.approx(0.5)
    assert ask(admission, viewer("ann"), HERE, 0.0) is None
    assert ask(admission, viewer("eve"), HERE, 0.5) is None
    assert ask(admission, Identity("root", "admin", ("*",)), HERE, 0.0) is None


def test_what_a_user_may_is_not_less_where_gateways_are_many() -> None:
    """Its attempts may all come to one of them: so each allows all of it."""
    admission = limiter(rate_per_user=2.0, burst_per_user=5.0)
    admission.update(AdmissionState([], False, 1.0, gateway_count=50), 0.0)
    assert [ask(admission, viewer(), HERE, 0.0) is None for _ in range(7)] == [True] * 5 + [False] * 2


def test_who_is_refused_for_another_reason_has_had_no_ticket() -> None:
    """Only tickets count: who waits at a closed door may come in as soon as it opens."""
    admission = limiter(rate_per_user=1.0, burst_per_user=1.0)
    say(admission, AdmissionState(["viewer"], False, 1.0), 0.0)
    for _ in range(100):
        assert refused(ask(admission, viewer(), HERE, 0.05)) == (503, "over_limit")
    say(admission, AdmissionState([], False, 1.0), 0.2)
    assert ask(admission, viewer(), HERE, 0.2) is None


def test_the_users_that_are_remembered_have_a_bound() -> None:
    """However many connect, those that came last are known."""
    admission = limiter(
        rate=1e9,
        burst=1e9,
        rate_per_user=0.01,
        burst_per_user=1.0,
    )
    for number in range(REMEMBERED_USERS + 10):
        assert ask(admission, viewer(f"u{number}"), HERE, 0.0) is None
    assert len(admission._by_user) == REMEMBERED_USERS
    assert refused(ask(admission, viewer(f"u{number}"), HERE, 0.0)) == (429, "connect_rate_limited")


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=examples(50), deadline=None)
def test_clients_that_back_off_never_meet_the_rate_of_their_user(seed: int, connections: int) -> None:
    """As many clients of one user as may be connected, each refused by its shard every time it comes, for ten minutes:
    with the default settings none of them is told that it connects too fast.
    """
    defaults = Settings()
    admission = limiter(Settings(limits={"max_connections_per_user": connections}))
    chance = Random(seed)
    due = []
    for client in range(connections):
        backoff = make_backoff(defaults.session.reconnect_min_ms, defaults.session.reconnect_max_ms, chance.random)
        due.append((0.0, client, backoff))
    heapify(due)
    while (now := due[0][0]) < 600:
        _, client, backoff = heappop(due)
        assert ask(admission, viewer(), HERE, now) is None
        if chance.random() < 0.1:
            backoff.reset()  # it was connected for a while
        heappush(due, (now + backoff.next_delay(), client, backoff))


def test_gateways_share_what_one_address_may() -> None:
    """Of four gateways each gives an address a quarter of its rate and burst, and a burst of one at the least."""
    admission = limiter(
        rate_per_address=4.0,
        burst_per_address=8.0,
        bad_token_rate=4.0,
        bad_token_burst=8.0,
    )
    admission.update(AdmissionState([], False, 1.0, gateway_count=4), 0.0)
    assert codes(admission, 20, 0.0)[""] == 2
    assert [admission.failed_auth.record_failure(HERE, 0.0) for _ in range(3)].count(None) == 2
    assert codes(admission, 20, 1.0)[""] == 1
    assert [admission.failed_auth.record_failure(HERE, 1.0) for _ in range(3)].count(None) == 1
    admission.update(AdmissionState([], False, 1.0, gateway_count=100), 100.0)
    assert codes(admission, 20, 100.0)[""] == 1
    admission.update(AdmissionState([], False, 1.0, gateway_count=1), 1000.0)
    assert codes(admission, 20, 1000.0)[""] == 8


def test_who_was_refused_has_not_connected() -> None:
    """Attempts that a closed door ended don't count against the address, nor against the system."""
    admission = limiter(
        rate=1.0,
        burst=5.0,
        rate_per_address=1.0,
        burst_per_address=5.0,
    )
    admission.update(AdmissionState(["viewer"], False, 1.0), 0.0)
    assert codes(admission, 50, 0.0) == {"": 1, "over_limit": 49}
    admission.update(AdmissionState([], False, 1.0), 0.1)
    assert codes(admission, 5, 0.1)[""] == 4


def test_an_unknown_address_is_not_one_address() -> None:
    """Where the server can't tell whence a connection comes, limits by address don't hold."""
    admission = limiter(rate_per_address=1.0, burst_per_address=1.0, bad_token_burst=1.0)
    assert codes(admission, 10, 0.0, "") == {"": 10}
    assert [admission.failed_auth.record_failure("", 0.0) for _ in range(5)] == [None] * 5


# ------------------------------------------------------------------------------------------------- wrong tokens


def test_wrong_tokens_are_slowed_down() -> None:
    """Twenty are told so at once, then one a second; other addresses and right tokens are not concerned."""
    admission = ConnectLimiter()
    assert [admission.failed_auth.record_failure(HERE, 0.0) for _ in range(20)] == [None] * 20
    assert refused(admission.failed_auth.record_failure(HERE, 0.0)) == (429, "too_many_auth_failures")
    assert admission.failed_auth.record_failure("192.0.2.2", 0.0) is None
    assert ask(admission, viewer(), HERE, 0.0) is None
    assert admission.failed_auth.record_failure(HERE, 1.0) is None
    assert refused(admission.failed_auth.record_failure(HERE, 1.0)) == (429, "too_many_auth_failures")


# ------------------------------------------------------------------------------------------------ coming again


def times(admission: ConnectLimiter, count: int, now: float) -> list[float]:
    found = []
    for number in range(count):
        refusal = ask(admission, viewer(f"user-{number}"), f"10.0.{number >> 8}.{number & 255}", now)
        assert refusal is not None
        assert refusal.retry_after is not None
        found.append(refusal.retry_after)
    return found


def test_a_wave_does_not_come_back_as_a_wave() -> None:
    """Of 20,000 who are refused in one moment at most 1.5 times the rate come back in any second, a few soon."""
    admission = limiter(rate=1000.0)
    say(admission, AdmissionState(["viewer"], False, 1.0), 0.0)
    seconds = Counter(int(t) for t in times(admission, 20_000, 0.0))
    assert max(seconds.values()) <= 1500
    assert max(seconds) <= 21
    few = limiter(rate=1000.0)
    say(few, AdmissionState(["viewer"], False, 1.0), 0.0)
    assert max(times(few, 100, 0.0)) <= 2.0


def test_who_hammers_sends_nobody_away_for_long() -> None:
    """However many attempts there are, the wait that is told has a bound, and shrinks when they end."""
    admission = limiter(rate=10.0)
    say(admission, AdmissionState(["viewer"], False, 1.0), 0.0)
    assert max(times(admission, 5000, 0.0)) <= 1.0 + LONGEST_SPREAD_SECONDS
    say(admission, AdmissionState(["viewer"], False, 1.0), 60.0)
    assert max(times(admission, 5, 60.0)) <= 2.0


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30), st.floats(0.1, 10), st.floats(0, 1e6))
def test_a_user_is_told_the_same_each_time(user: str, retry_after: float, now: float) -> None:
    """A user's place in the window depends on its name alone: asking again gains nothing."""
    found = []
    for _ in range(2):
        admission = ConnectLimiter()
        say(admission, AdmissionState(["viewer"], False, retry_after), now)
        refusal = ask(admission, viewer(user), HERE, now)
        assert refusal is not None
        found.append(refusal.retry_after)
    assert found[0] == found[1]
    assert found[0] is not None
    assert retry_after <= found[0] <= 2 * retry_after


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_those_of_one_address_are_spread_too(burst: float) -> None:
    """Users behind one address are told times over as long as it takes until so many may come again."""
    admission = limiter(rate_per_address=0.5, burst_per_address=burst)
    told = []
    for number in range(200):
        refusal = ask(admission, viewer(f"u{number}"), HERE, 0.0)
        if refusal is not None:
            assert refusal.retry_after is not None
            told.append(refusal.retry_after)
    assert min(told) >= 2.0
    assert max(told) <= 2.0 + burst / 0.5
    assert max(told) - min(told) > 0.9 * burst / 0.5


def full(*addresses: str, closed: tuple[str, ...] = ()) -> AdmissionState:
    return AdmissionState(
        full_groups=list(closed),
        unknown_groups_full=False,
        full_addresses=list(addresses),
        retry_after=1,
        gateway_count=1,
    )


@pytest.mark.parametrize(
    ("limits", "doors", "code", "words"),
    [
        (
            {},
            full(closed=("viewer",)),
            "over_limit",
            ["'viewer'", "SOLOWIRE_LIMITS__MAX_CONNECTIONS", "SOLOWIRE_LIMITS__GROUPS"],
        ),
        ({}, full(HERE), "too_many_from_address", ["SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_ADDRESS"]),
        (
            {"rate_per_address": 3, "burst_per_address": 1},
            full(),
            "connect_rate_limited",
            ["3 a second", "SOLOWIRE_LIMITS__CONNECT__RATE_PER_ADDRESS"],
        ),
        (
            {"rate": 2, "burst": 1},
            full(),
            "connect_rate_limited",
            ["2 a second", "SOLOWIRE_LIMITS__CONNECT__RATE"],
        ),
    ],
)
def test_each_limit_is_named_with_its_setting(
    limits: dict[str, Any], doors: AdmissionState, code: str, words: list[str]
) -> None:
    """Whoever is refused, and the operator that it asks, reads which limit it was."""
    admission = limiter(**limits)
    admission.update(doors, 0.0)
    refusals = [ask(admission, viewer(f"u{number}"), HERE, 0.0) for number in range(20)]
    told = str(next(refusal for refusal in refusals if refusal is not None and refusal.code == code))
    assert all(word in told for word in words), told
