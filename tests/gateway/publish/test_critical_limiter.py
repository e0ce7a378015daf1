"""Critical events: one publisher may send so many, and what is more than that is only urgent."""

from __future__ import annotations

from solowire.gateway.publish.critical_limiter import CriticalLimiter
from solowire.model.events import Event, Priority
from solowire.runtime.settings.publish_settings import PublishSettings
from tests.support.factories import event


def make_limiter() -> CriticalLimiter:
    return CriticalLimiter(PublishSettings(critical_rate=1.0, critical_burst=3.0))


def make_criticals(count: int) -> list[Event]:
    return [event(priority=Priority.critical, id=f"{number}") for number in range(count)]


def count_critical(events: list[Event]) -> int:
    return sum(one.priority is Priority.critical for one in events)


def test_what_is_beyond_the_rate_is_high() -> None:
    """The first of a request stay critical, all others are as they were but for that, and it is counted."""
    limiter = make_limiter()
    events = [event(id="plain"), *make_criticals(5)]
    before = list(events)
    assert limiter.demote_excess("ann", events, 0.0) == 2
    assert events[:4] == before[:4]
    assert [one.priority for one in events[4:]] == [Priority.high, Priority.high]
    assert [one.id for one in events] == [one.id for one in before]
    assert limiter.demoted_count == 2


def test_each_publisher_has_a_rate_of_its_own_and_regains_it() -> None:
    """Whoever floods has its own alerts sent later, and nobody else's; after a second there is one more."""
    limiter = make_limiter()
    limiter.demote_excess("eve", make_criticals(100), 0.0)
    mine, later = make_criticals(3), make_criticals(2)
    assert limiter.demote_excess("ann", mine, 0.0) == 0
    assert limiter.demote_excess("eve", later, 1.0) == 1
    assert (count_critical(mine), count_critical(later)) == (3, 1)


def test_who_sends_no_critical_ones_is_not_remembered() -> None:
    """It costs nothing that most publishers never use it."""
    limiter = make_limiter()
    assert limiter.demote_excess("ann", [event()], 0.0) == 0
    assert (len(limiter._buckets), limiter.demoted_count) == (0, 0)
