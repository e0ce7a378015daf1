"""Steps that the log has already, whoever told them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from solowire.errors import SubscriptionDenied
from solowire.sources.bind9.zones import told_steps
from solowire.sources.bind9.zones.told_steps import ToldSpan, ToldSteps, covers_span
from solowire.sources.bind9.zones.zone_identity import ZoneName
from tests.support.recorded_outlet import RecordedOutlet

ZONE = ZoneName("z.example")

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=12)


@given(spans, st.integers(0, 30), st.integers(1, 10), st.sampled_from([0, 7, 2**31 - 10, 2**32 - 15]))
def test_a_span_is_told_if_each_of_its_serials_is(
    told: list[tuple[int, int]], begin: int, size: int, base: int
) -> None:
    """Wherever in the circle of serials they are, and in whatever order they were told."""
    serials = {serial for start, length in told for serial in range(start + 1, start + length + 1)}
    expected = serials >= set(range(begin + 1, begin + size + 1))
    found = [ToldSpan((base + start) % 2**32, (base + start + length) % 2**32, "ns2") for start, length in told]
    assert covers_span(found, (base + begin) % 2**32, (base + begin + size) % 2**32) is expected


async def tell(outlet: RecordedOutlet, before: int, serial: int, server: str, **more: object) -> None:
    data = {"zone": "z.example", "serial_before": before, "serial": serial, "server": server, **more}
    await outlet.publish("zone_updated", data)


async def test_steps_count_since_the_zone_went_back_and_of_its_own_view() -> None:
    """What was told before a rollback, of another view or of a zone beneath it tells nothing of this one."""
    outlet = RecordedOutlet()
    told = ToldSteps(outlet)
    await tell(outlet, 1, 3, "ns2")
    assert await told.is_told(ZONE, 1, 3, waits=True)
    assert not await told.is_told(ZoneName("z.example", "inside"), 1, 3, waits=False)
    await tell(outlet, 3, 1, "ns2", rollback=True)
    assert not await told.is_told(ZONE, 1, 3, waits=False)
    await tell(outlet, 1, 2, "ns2")
    await tell(outlet, 2, 3, "ns3")
    assert await told.is_told(ZONE, 1, 3, waits=False)


async def test_it_waits_where_another_source_watches_the_zone_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lone source tells a step at once; of two, the one that sees single steps has a start."""
    asked: list[None] = []

    class Outlet(RecordedOutlet):
        def read_newest(self, *given: object) -> object:  # type: ignore[override]
            asked.append(None)
            return super().read_newest(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(told_steps, "LOOK_S", 0.01)
    monkeypatch.setattr(told_steps, "WAIT_S", 0.5)
    outlet = Outlet(server="ns1")
    await tell(outlet, 1, 2, "ns1")
    assert not await ToldSteps(outlet).is_told(ZONE, 2, 5, waits=True)
    assert len(asked) == 1
    await tell(outlet, 2, 3, "ns2")
    assert not await ToldSteps(outlet).is_told(ZONE, 2, 5, waits=True)
    assert len(asked) > 2


async def test_without_the_right_to_read_steps_are_told_and_that_is_said_once() -> None:
    """The log line names the role that a source's token should have."""

    class Deaf(RecordedOutlet):
        async def read_newest(self, *_: object) -> object:  # type: ignore[override]
            raise SubscriptionDenied("not granted", "", {"zone_updated": "it needs dns.read"})
            yield

    told = ToldSteps(Deaf())
    with capture_logs() as logs:
        assert not await told.is_told(ZONE, 1, 3, waits=True)
        assert not await told.is_told(ZONE, 1, 3, waits=True)
    assert [(line["event"], "`source`" in line["hint"]) for line in logs] == [("zone_log_unreadable", True)]
