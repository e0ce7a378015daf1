"""What a gateway takes of publishers: a bounded amount at a time, and of each no more than its rate."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from solowire.errors import RequestRejected
from solowire.gateway.publish.publish_limiter import MAX_PUBLISHERS, PublishLimiter, Reservation
from solowire.runtime.settings.publish_settings import PublishSettings
from tests.support.examples import examples
from tests.support.factories import change


def intake(**changed: Any) -> PublishLimiter:
    """As small that tests can fill it. Others are refused after 2 s; after 8 s something is lost."""
    few = change(PublishSettings(), max_held_requests=4, max_held_bytes=1000, timeout_s=4.0, rate=100.0, burst=200.0)
    return PublishLimiter(change(few, **changed))


def refused(call: Any, *arguments: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        call(*arguments)
    return caught.value


def hold(it: PublishLimiter, user: str, size: int = 0) -> list[Reservation]:
    """Requests of `user` of which so many bytes have come, one after the other until one is refused, and no end."""
    rooms: list[Reservation] = []
    with suppress(RequestRejected):
        while len(rooms) <= 10_000:
            room = it.reserve(user, 0.0)
            rooms.append(room)
            it.grow(room, size)
    return rooms


def under_way(it: PublishLimiter, number: int, now: float = 0.0, size: int = 10, user: str = "ann") -> Reservation:
    room = it.reserve(user, now)
    it.grow(room, size)
    it.mark_sent(room, number, now)
    return room


def test_requests_beyond_the_bound_are_refused_at_once() -> None:
    """What is held has a bound in number; room that is given back is there for the next."""
    it = intake()
    rooms = [it.reserve(user, 0.0) for user in ("ann", "ann", "bob", "cid")]
    error = refused(it.reserve, "bob", 0.0)
    assert (error.status, error.code, error.retry_after, it.overload_count) == (503, "overloaded", 1.0, 1)
    it.release(rooms[0])
    it.reserve("dan", 0.0)


def test_bytes_beyond_the_bound_are_refused_while_they_are_read() -> None:
    """Bodies that are being read count, piece by piece, before anything is made of them."""
    it = intake()
    first, second = it.reserve("ann", 0.0), it.reserve("bob", 0.0)
    it.grow(first, 600)
    assert refused(it.grow, second, 600).code == "overloaded"  # more than its share
    it.release(second)
    assert (it.requests, it.bytes) == (1, 600)
    it.release(first)
    assert (it.requests, it.bytes) == (0, 0)
    it.grow(room := it.reserve("ann", 0.0), 1000)
    it.mark_sent(room, 1, 0.0)
    assert refused(it.reserve, "bob", 0.0).code == "overloaded"  # before anything of it is read


def test_one_publisher_holds_half_of_the_requests() -> None:
    """Whoever opens many requests and sends nothing is refused itself, and others publish."""
    it = intake()
    rooms = [it.reserve("ann", 0.0) for _ in range(2)]
    error = refused(it.reserve, "ann", 0.0)
    assert (error.status, error.code, error.retry_after, it.overload_count) == (503, "overloaded", 1.0, 1)
    it.reserve("bob", 0.0)
    it.release(rooms[0])
    it.reserve("ann", 0.0)


def test_one_publisher_holds_half_of_the_bytes() -> None:
    """What is kept of one publisher's requests leaves room for the others; a request alone may be as large as any."""
    it = intake()
    first = it.reserve("ann", 0.0)
    it.grow(first, 700)
    second = it.reserve("ann", 0.0)
    assert refused(it.grow, second, 1).code == "overloaded"
    it.grow(it.reserve("bob", 0.0), 300)
    it.release(first)
    it.grow(second, 500)


@pytest.mark.parametrize("greedy", range(1, 12))
def test_whatever_others_hold_without_end_a_newcomer_gets_its_share(greedy: int) -> None:
    """However many take all the places that they can, and send nothing: another publisher publishes at once."""
    it = intake(max_held_requests=100)
    held = [room for n in range(greedy) for room in hold(it, f"eve{n}")]
    honest = [it.reserve("ann", 0.0) for _ in range(100 // (greedy + 2))]
    for room in honest:
        it.grow(room, 1)
    assert it.requests == len(honest) + sum(not room.is_evicted for room in held) <= 100
    assert not any(room.is_evicted for room in honest)


@pytest.mark.parametrize("greedy", range(1, 12))
def test_whatever_others_hold_without_end_a_newcomer_has_its_share_of_the_bytes(greedy: int) -> None:
    """However many send all that is kept of them, and no end of it: another publisher's request is kept and sent on."""
    it = intake(max_held_requests=100, max_held_bytes=100_000)
    for n in range(greedy):
        hold(it, f"eve{n}", 999)
    room = it.reserve("ann", 0.0)
    for _ in range(10):
        it.grow(room, 10_000 // (greedy + 2))
    assert it.bytes <= 100_000


def test_a_request_is_ended_that_has_been_read_for_longest() -> None:
    """Of the publisher with the most it is the oldest that goes; it is told once, and holds nothing afterwards."""
    it = intake(max_held_requests=4)
    told: list[str] = []
    rooms = [it.reserve(user, 0.0) for user in ("eve", "eve", "bob", "cid")]
    for number, room in enumerate(rooms):
        room.on_evicted = partial(told.append, f"room {number}")
    it.grow(rooms[0], 300)
    it.reserve("ann", 0.0)
    assert (told, it.requests, it.bytes, rooms[0].is_evicted) == (["room 0"], 4, 0, True)
    error = refused(it.grow, rooms[0], 1)
    assert (error.status, error.code, error.retry_after, it.slow_count) == (408, "too_slow", 1.0, 1)
    it.release(rooms[0])
    it.release(rooms[0])
    assert it.requests == 4
    assert refused(it.reserve, "eve", 0.0).code == "overloaded"  # it has its share, one of four


def test_what_is_under_way_to_the_router_is_not_ended() -> None:
    """It can't be taken back: at the bound a newcomer is refused, until some of it has been taken."""
    it = intake(max_held_requests=4)
    rooms = [under_way(it, number, user=user) for number, user in enumerate(("eve", "eve", "bob", "cid"))]
    assert refused(it.reserve, "ann", 0.0).code == "overloaded"
    it.mark_received(0, 0.0)
    it.release(rooms[0])
    it.reserve("ann", 0.0)


def test_who_wants_more_than_its_share_leaves_a_quarter_free() -> None:
    """Places that nobody wants are for whoever does, but for some that a newcomer finds without anybody's end."""
    it = intake(max_held_requests=100)
    busy = [it.reserve(f"user{n}", 0.0) for n in range(20)]
    busy += hold(it, "user0")
    assert (len(busy), it.requests) == (20 + 49, 69)  # half of all, though its share were four
    busy += hold(it, "user1")
    assert it.requests == 75
    assert not any(room.is_evicted for room in busy)


def test_a_gateway_that_holds_one_request_takes_one_of_anybody() -> None:
    """Half of the smallest bound is still one request."""
    it = intake(max_held_requests=1)
    it.grow(it.reserve("ann", 0.0), 1000)


def test_what_is_read_and_forgotten_holds_no_bytes() -> None:
    """The bytes of a request that was refused in its midst are there for others before it ends."""
    it = intake()
    room = it.reserve("ann", 0.0)
    it.grow(room, 600)
    it.discard_body(room)
    assert (it.requests, it.bytes) == (1, 0)
    other = it.reserve("bob", 0.0)
    it.grow(other, 1000)
    it.release(room)
    it.release(other)
    assert (it.requests, it.bytes) == (0, 0)


def test_a_request_that_was_given_up_here_holds_its_room_until_the_router_has_taken_it() -> None:
    """What nobody waits for any more may lie in a queue still, and counts as long as it does."""
    it = intake()
    it.release(under_way(it, 7))
    assert (it.requests, it.bytes) == (1, 10)
    it.mark_received(7, 0.0)
    assert (it.requests, it.bytes) == (0, 0)


def test_an_answer_tells_of_its_own_request_alone() -> None:
    """The router takes those of publishers in turn: what was sent before may lie in its queue still."""
    it = intake()
    for number in (3, 5, 6):
        it.release(under_way(it, number, user=f"user{number}"))
    it.mark_received(5, 0.0)
    assert it.requests == 2


def test_a_request_that_was_taken_holds_its_room_until_it_is_answered() -> None:
    """An answer that is held back holds the room of its request: so publishers that wait are bounded, too."""
    it = intake()
    room = under_way(it, 1)
    it.mark_received(1, 0.0)
    assert it.requests == 1
    it.release(room)
    assert it.requests == 0


def test_others_are_refused_while_the_router_is_silent_for_too_long() -> None:
    """Behind a router that takes nothing, a publisher is told so at once instead of waiting in vain."""
    it = intake()
    under_way(it, 1, now=0.0)
    under_way(it, 2, now=2.0)
    assert refused(it.reserve, "bob", 2.1).code == "overloaded"
    it.mark_received(1, 2.1)
    it.reserve("bob", 2.1)


def test_who_has_much_under_way_waits_and_others_do_not() -> None:
    """The router takes turns: that it is busy with one publisher's for seconds is nothing to another."""
    it = intake()
    under_way(it, 1, now=0.0, user="eve")
    under_way(it, 2, now=1.0, user="eve")
    it.mark_received(1, 2.0)
    assert refused(it.reserve, "eve", 3.1).code == "overloaded"
    it.reserve("ann", 3.1)


def test_what_is_lost_does_not_stop_publishing_for_ever() -> None:
    """A request that nobody will ever answer is given up after a while, or when the router is another."""
    it = intake()
    it.release(under_way(it, 1, now=0.0))
    refused(it.reserve, "bob", 5.0)
    it.release(it.reserve("bob", 10.1))
    assert it.requests == 0
    it.release(under_way(it, 2, now=11.0))
    it.reset()
    assert (it.requests, it.bytes) == (0, 0)
    it.reset()


def test_a_publisher_over_its_rate_is_told_how_long_to_wait() -> None:
    """Each has a rate of its own: one that floods is refused, before it is read, and others are not."""
    it = intake()
    it.charge("ann", 200, 0.0)
    error = refused(it.check, "ann", 50, 0.0)
    assert (error.status, error.code, error.retry_after, it.rate_limited_count) == (429, "publish_rate_limited", 0.5, 1)
    it.charge("bob", 200, 0.0)
    it.check("ann", 500, 2.0)
    it.charge("ann", 500, 2.0)
    assert refused(it.reserve, "ann", 2.0).code == "publish_rate_limited"
    assert it.requests == 0


def test_a_publisher_has_a_rate_in_bytes_too() -> None:
    """Few and large events would else write as much as the disk takes, and take the log from all others."""
    it = intake(bytes_per_s=1000.0, burst_bytes=5000.0)
    it.check_bytes("ann", 5000, 0.0)
    it.charge_bytes("ann", 5000, 0.0)
    error = refused(it.check_bytes, "ann", 1000, 0.0)
    assert (error.status, error.code, error.retry_after, it.rate_limited_count) == (429, "publish_rate_limited", 1.0, 1)
    it.check_bytes("bob", 5000, 0.0)
    it.charge_bytes("ann", 3000, 3.0)
    it.check_bytes("ann", 0, 3.0)
    it.charge_bytes("ann", 9000, 3.0)
    assert refused(it.reserve, "ann", 3.0).code == "publish_rate_limited"
    assert it.requests == 0


def test_what_was_read_is_paid_for_also_where_it_is_refused() -> None:
    """Else heavy events could be read all the time at no cost, of one who sends but a few that are taken. The wait is
    that after which they are."""
    it = intake()
    it.charge("ann", 100, 0.0)
    error = refused(lambda: it.check("ann", 150, 0.0, read_weight=140))
    assert "count as 150" in error.message
    assert error.retry_after == pytest.approx(1.9)
    assert refused(it.reserve, "ann", 0.0).code == "publish_rate_limited"
    it.check("ann", 150, 1.91, read_weight=140)


def test_the_bounds_are_those_of_the_settings() -> None:
    """Requests, bytes, patience, rate and burst are what an operator has set."""
    it = PublishLimiter(
        PublishSettings(
            max_held_requests=4, max_held_bytes=2**22, max_request_bytes=2**22, timeout_s=3, rate=10, burst=20
        )
    )
    rooms = [it.reserve(user, 0.0) for user in ("ann", "ann", "bob", "cid")]
    assert refused(it.reserve, "bob", 0.0).code == "overloaded"
    it.release(rooms[0])
    it.grow(rooms[1], 2**22)
    it.mark_sent(rooms[1], 1, 0.0)
    assert refused(it.grow, rooms[2], 1).code == "overloaded"
    it.mark_received(1, 0.0)
    it.release(rooms[1])
    it.mark_sent(rooms[2], 2, 0.0)
    it.release(it.reserve("dan", 1.5))
    assert refused(it.reserve, "dan", 1.6).code == "overloaded"
    it.charge("eve", 20, 0.0)
    assert refused(it.check, "eve", 10, 0.0).retry_after == 1.0


def test_the_publishers_that_are_known_have_a_bound() -> None:
    """However many names come by, those heard last are kept."""
    it = intake()
    it.charge("ann", 200, 0.0)
    for n in range(MAX_PUBLISHERS - 1):
        it.charge(f"user{n}", 1, 0.0)
    refused(it.check, "ann", 1, 0.0)
    for n in range(MAX_PUBLISHERS):
        it.charge(f"other{n}", 1, 0.0)
    assert len(it._buckets) == MAX_PUBLISHERS
    it.check("ann", 1, 0.0)


class Requests(RuleBasedStateMachine):
    """Requests that are read, sent, answered, given up and lost in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.it = intake(rate=1e9, burst=1e9)
        self.now = 0.0
        self.number = 0
        self.reading: list[Reservation] = []
        self.waiting: list[Reservation] = []

    @rule(user=st.sampled_from(["ann", "bob", "cid", "dan"]), size=st.integers(0, 500), closes=st.booleans())
    def begin(self, user: str, size: int, closes: bool) -> None:
        publishers = {room.user for room in self.held()} | {user}
        try:
            room = self.it.reserve(user, self.now)
        except RequestRejected as refusal:
            if any(room.user == user for room in self.held()) or refusal.code != "overloaded":
                return
            # It holds nothing and is refused: then nobody has too much but of what is under way.
            waited = self.now - min((sent for sent, _ in self.it._under_way.values()), default=self.now)
            if waited <= 2.0 and self.it.bytes < 1000:
                reading = Counter(room.user for room in self.held())
                greedy = {name for name, count in reading.items() if count > max(1.0, 4 / (len(publishers) + 1))}
                assert not [room for room in self.reading if room.user in greedy and not room.is_evicted]
            return
        try:
            self.it.grow(room, size)
        except RequestRejected:
            self.it.discard_body(room)
            if closes:
                self.it.release(room)
                return
        self.reading.append(room)

    def held(self) -> list[Reservation]:
        """All that counts: what is being read, waits for its answer, or lies in the router's queue."""
        under_way = [room for _, room in self.it._under_way.values()]
        return list({*self.reading, *self.waiting, *under_way} - {room for room in self.reading if room.is_evicted})

    @precondition(lambda self: self.reading)
    @rule(fails=st.booleans())
    def send(self, fails: bool) -> None:
        room = self.reading.pop()
        if fails or room.is_evicted:
            self.it.release(room)
            return
        self.number += 1
        self.it.mark_sent(room, self.number, self.now)
        self.waiting.append(room)

    @rule(back=st.integers(0, 4))
    def answer(self, back: int) -> None:
        self.it.mark_received(self.number - back, self.now)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.it.release(self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def router_is_another(self) -> None:
        self.it.reset()

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.it.requests <= 4
        assert 0 <= self.it.bytes <= 1000
        for share in self.it._usage_by_user.values():
            assert 0 < share.requests <= 2
            assert 0 <= share.bytes <= 500
        assert sum(share.bytes for share in self.it._usage_by_user.values()) == self.it.bytes
        assert sum(share.requests for share in self.it._usage_by_user.values()) == self.it.requests

    def teardown(self) -> None:
        for room in self.reading + self.waiting:
            self.it.release(room)
        self.it.reset()
        assert (self.it.requests, self.it.bytes, self.it._usage_by_user) == (0, 0, {})


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)
