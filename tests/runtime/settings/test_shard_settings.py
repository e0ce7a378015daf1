"""When a shard sends what: delays by priority, rates and intervals by event type."""

from __future__ import annotations

from solowire.runtime.settings.shard_settings import AggregationSettings, ConflationSettings


def test_a_type_may_have_a_rate_of_its_own() -> None:
    """The others have the common one."""
    settings = AggregationSettings(events_per_s=100, type_events_per_s={"rpz_hit": 5})
    assert [settings.rate_for(name) for name in ("rpz_hit", "dns_query_log")] == [5, 100]


def test_a_type_may_have_an_interval_of_its_own() -> None:
    """How often statistics come has a setting already: they are not held back, unless that is said, too."""
    settings = ConflationSettings(interval_s=7, type_interval_s={"bulk_progress": 0})
    assert [settings.interval_for(n) for n in ("system_metrics", "bulk_progress", "gateway_stats")] == [7, 0, 0]
    assert ConflationSettings(type_interval_s={"gateway_stats": 3}).interval_for("gateway_stats") == 3
