"""The checker itself: it is silent about a run that kept the promise, and sees each way to break it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.chaos.checker import (
    ALTERED,
    DISORDERED,
    DUPLICATED,
    ENDED,
    GAP,
    LEAKED,
    LOST,
    UNKNOWN,
    Ack,
    Arrival,
    Story,
    check,
    check_acks,
)
from tests.chaos.load import Maker
from tests.chaos.oracle import Made, Who, due

EPOCH = "e"
VIEWER = Who("ann", "viewer", zones=("a.example",))
MAKER = Maker(1, "p", ["ann", "bob"])
MADE = {made.id: made for made in (MAKER.next() for _ in range(400))}
ACKS = {id: Ack(offset, EPOCH, offset / 10) for offset, id in enumerate(MADE, start=1)}


def kept(who: Who = VIEWER, cursor: int = 0) -> Story:
    """The story of a client that got all that it must get."""
    arrivals = []
    for id, made in MADE.items():
        data = due(who, made)
        if data is not None and ACKS[id].offset > cursor:
            arrivals.append(Arrival(ACKS[id].offset, EPOCH, id, made.type, data, ACKS[id].at + 0.01, 0))
    assert len(arrivals) > 20
    return Story(who, EPOCH, cursor, arrivals)


def kinds(story: Story) -> list[str]:
    return [violation.kind for violation in check(story, MADE, ACKS)]


def changed(arrival: Arrival, **fields: object) -> Arrival:
    return msgspec.structs.replace(arrival, **fields)


def foreign(accept: Callable[[Made], bool]) -> Arrival:
    """An event that the viewer must not get, as if it had."""
    made = next(m for m in MADE.values() if due(VIEWER, m) is None and accept(m))
    return Arrival(ACKS[made.id].offset, EPOCH, made.id, made.type, made.data)


def with_one_more(story: Story, arrival: Arrival) -> Story:
    story.arrivals = sorted([*story.arrivals, arrival], key=lambda a: a.offset)
    return story


@pytest.mark.parametrize("cursor", [0, 100])
@pytest.mark.parametrize("role", ["admin", "operator", "viewer"])
def test_a_promise_that_was_kept(role: str, cursor: int) -> None:
    """Nothing is found where there is nothing, wherever the client began."""
    assert kinds(kept(Who("bob", role), cursor)) == []


@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_lost_event(place: int) -> None:
    """Whether the first, the last or one between: an acknowledged event that did not arrive is a loss."""
    story = kept()
    del story.arrivals[place]
    assert kinds(story) == [LOST]


def test_telemetry_that_was_counted() -> None:
    """A query that a client was told of by a count is no loss; one more than that is, and so is any other type."""
    story = kept()
    queries = [a for a in story.arrivals if a.type == "dns_query_log"]
    story.arrivals = [a for a in story.arrivals if a not in queries[:2]]
    story.left_out = {"dns_query_log": 2}
    assert kinds(story) == []
    story.left_out = {"dns_query_log": 1}
    assert kinds(story) == [LOST, LOST]
    other = kept()
    del other.arrivals[next(n for n, a in enumerate(other.arrivals) if a.type != "dns_query_log")]
    other.left_out = {a.type: 9 for a in kept().arrivals}
    assert kinds(other) == [LOST]


def test_a_client_that_got_nothing() -> None:
    """A client that only was there has lost everything."""
    story = kept()
    expected = len(story.arrivals)
    story.arrivals = []
    assert kinds(story) == [LOST] * expected


def test_an_event_that_was_not_acknowledged() -> None:
    """It may have arrived or not, but not twice."""
    story = kept()
    id = story.arrivals[5].id
    acks = {other: ack for other, ack in ACKS.items() if other != id}
    assert check(story, MADE, acks) == []
    without = kept()
    del without.arrivals[5]
    assert check(without, MADE, acks) == []
    story.arrivals.insert(6, story.arrivals[5])
    assert [v.kind for v in check(story, MADE, acks)] == [DUPLICATED]


@pytest.mark.parametrize("later", [1, 9])
def test_a_duplicate(later: int) -> None:
    """The same event again, at once or later, is a duplicate, and only that."""
    story = kept()
    story.arrivals.insert(10 + later, story.arrivals[10])
    assert kinds(story) == [DUPLICATED]


def test_an_event_that_is_in_the_log_twice() -> None:
    """The same id at another offset is a duplicate, and its publisher was told otherwise."""
    story = kept()
    story.arrivals.append(changed(story.arrivals[10], offset=len(MADE) + 1))
    assert sorted(kinds(story)) == sorted([DUPLICATED, ALTERED])


def test_disorder() -> None:
    """Two events that changed places are out of order."""
    story = kept()
    story.arrivals[10], story.arrivals[11] = story.arrivals[11], story.arrivals[10]
    assert kinds(story) == [DISORDERED]


def test_an_event_from_before_the_beginning() -> None:
    """What lies behind the cursor of the first welcome must not come."""
    story = kept(cursor=100)
    story.arrivals.insert(0, kept().arrivals[0])
    assert kinds(story) == [DISORDERED]


@pytest.mark.parametrize(
    "accept",
    [
        lambda made: made.user == "bob" and made.attributes.get("zone") == "a.example",
        lambda made: made.type == "user_login",
        lambda made: made.type == "audit_event" and made.attributes.get("zone") == "a.example",
        lambda made: made.attributes.get("zone") == "xa.example",
        lambda made: made.type == "security_alert" and "zone" not in made.attributes,
    ],
    ids=["another user's", "another role's", "administrators'", "a like-named zone's", "without a zone"],
)
def test_a_leak(accept: Callable[[Made], bool]) -> None:
    """An event that the client may not see is a leak, whatever forbids it."""
    assert LEAKED in kinds(with_one_more(kept(), foreign(accept)))


@pytest.mark.parametrize("type", ["record_updated", "dns_query_log", "security_alert"])
def test_a_field_that_is_hidden(type: str) -> None:
    """An event that arrived with its sensitive fields is a leak, though the client gets the event."""
    story = kept()
    place = next(i for i, a in enumerate(story.arrivals) if a.type == type)
    arrival = story.arrivals[place]
    story.arrivals[place] = changed(arrival, data=MADE[arrival.id].data)
    assert kinds(story) == [LEAKED]


def test_data_that_was_altered() -> None:
    """Data that is less or other than what was published is found."""
    story = kept()
    story.arrivals[3] = changed(story.arrivals[3], data={})
    assert kinds(story) == [ALTERED]


def test_an_event_of_nobody() -> None:
    """What was never published must not arrive."""
    assert kinds(with_one_more(kept(), Arrival(10_000, EPOCH, "ghost", "custom.chaos", {}))) == [UNKNOWN]


def test_a_gap_and_an_end() -> None:
    """A gap that the SDK told, and a client that gave up, are violations by themselves."""
    story = kept()
    story.gaps.append((3.0, "retention"))
    story.ended = "4401"
    assert sorted(kinds(story)) == [ENDED, GAP]


def test_an_epoch_that_was_lost() -> None:
    """Offsets that begin anew in another epoch are not out of order; what was acknowledged there is due as well."""
    story = kept()
    made = next(m for m in MADE.values() if due(VIEWER, m) is not None)
    made = msgspec.structs.replace(made, id="anew")
    acks = {**ACKS, "anew": Ack(1, "f", 99.0)}
    assert [v.kind for v in check(story, {**MADE, "anew": made}, acks)] == [LOST]
    data = due(VIEWER, made)
    assert data is not None
    story.arrivals.append(Arrival(1, "f", "anew", made.type, data))
    assert check(story, {**MADE, "anew": made}, acks) == []


def test_one_offset_for_two_events() -> None:
    """Publishers that were told the same place were told something wrong."""
    assert check_acks(MADE, ACKS) == []
    first, second = list(MADE)[:2]
    assert [v.kind for v in check_acks(MADE, {**ACKS, second: ACKS[first]})] == [DUPLICATED]


def test_a_publisher_that_was_overtaken_by_itself() -> None:
    """What one publisher made later stands later."""
    first, second = list(MADE)[:2]
    assert [v.kind for v in check_acks(MADE, {**ACKS, first: ACKS[second], second: ACKS[first]})] == [DISORDERED]


def test_a_loss_says_where_to_look() -> None:
    """The report of a loss names the event and its neighbours."""
    story = kept()
    lost = story.arrivals.pop(10)
    [violation] = check(story, MADE, ACKS)
    assert (violation.user, violation.offset, violation.id) == ("ann", lost.offset, lost.id)
    assert str(story.arrivals[9].offset) in violation.detail
    assert str(story.arrivals[10].offset) in violation.detail
