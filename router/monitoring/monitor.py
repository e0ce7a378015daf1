"""The monitor of the system: statistics of all processes as events, and alerts.

What it keeps true: what the log lines and the events say of one look are the same numbers; an event of the router's own
is checked like anybody's, and has a bound, however many groups there are; and so has what it remembers, MARKS moments
of the log beside what `solowire.router.monitoring.alerts` does.

It is asked twice a second and returns what to say: events of the router's own (`system_alert` to administrators,
`gateway_stats` each `stats_interval_s` seconds, one for each shard and one for `all`), and which shards are to log a
diagnosis. Log lines it writes itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import structlog

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.backplane.messages import PublishedEvent, ShardReport, ShardStats
from solowire.model.catalog import Catalog
from solowire.model.events import Delivery, Event, encode_event, name_state
from solowire.observability.stats_summary import COUNTER_FIELDS, aggregate, stats_to_dict, top_n_with_other
from solowire.router.monitoring.alerts import Alert, Alerts, Measurement
from solowire.runtime.settings.router_settings import AlertSettings

logger = structlog.get_logger("solowire.router")

MARKS = 1200
"""Ten minutes of marks, two a second: an event that has waited for longer is said to have waited so long."""


AGGREGATING_FEEDS = 1.0
"""Feeds for which something is aggregated: one is an alert already."""


def make_thresholds(settings: AlertSettings) -> dict[str, float]:
    """The thresholds of alerts, by metric: the names are those of the events, the log and the docs."""
    return {
        "shard_lag_seconds": settings.lag_s,
        "connection_lag_seconds": settings.connection_lag_s,
        "event_loop_lag_seconds": settings.loop_lag_s,
        "memory_bytes": settings.memory_bytes,
        "lease_use_percent": settings.lease_use_percent,
        "aggregating_feeds": AGGREGATING_FEEDS,
        "connections_rejected_per_second": settings.refused_per_s,
    }


ALERT_MESSAGES = {
    "shard_lag_seconds": ("oldest unacknowledged event is {0:.1f} s old", "s"),
    "connection_lag_seconds": ("slowest connection is {0:.1f} s behind", "s"),
    "event_loop_lag_seconds": ("event loop was {0:.2f} s late", "s"),
    "memory_bytes": ("process uses {0:,.0f} bytes of memory", "bytes"),
    "lease_use_percent": ("lease is {0:.0f} % used", "%"),
    "aggregating_feeds": ("{1} is aggregated for {0:.0f} feeds", "feeds"),
    "connections_rejected_per_second": ("{0:.0f} connections per second are rejected", "per second"),
}
"""The text of an alert, and the unit of its threshold."""

PERFORMANCE = frozenset({"shard_lag_seconds", "connection_lag_seconds", "event_loop_lag_seconds", "memory_bytes"})
"""Alerts upon which a shard logs a diagnosis."""


class ProcessStats(NamedTuple):
    """One process, as its last report says. name: on the bus, None for the router itself. report: a shard's."""

    component: str
    name: bytes | None
    stats: ShardStats
    report: ShardReport | None = None


class MonitorResult(NamedTuple):
    """What is to be done: events for the log, and (shard's name on the bus, metric) of those to diagnose themselves."""

    events: list[PublishedEvent]
    diagnoses: list[tuple[bytes, str]]


class Monitor:
    """Watches the numbers of all processes, and says what to publish.

    Times: seconds, monotonic; wall: unix seconds. own: memory and loop lag of the router.

    stats_interval_s: 0 for never.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        new_id: Callable[[], str],
        alerts: AlertSettings | None = None,
        stats_interval_s: float = 0.0,
        own: Callable[[], ShardStats] = ShardStats,
    ) -> None:
        alerts = alerts or AlertSettings()
        self.alerts = Alerts(make_thresholds(alerts), after=alerts.raise_after_s, over=alerts.clear_after_s)
        self.fired_count = 0
        self._catalog = catalog
        self._new_id = new_id
        self._stats_interval_s = stats_interval_s
        self._stats_due: float | None = None
        self._own_stats = own
        self._offset_times: deque[tuple[float, int]] = deque(maxlen=MARKS)  # when the log had come to which offset

    def check_processes(
        self,
        shards: Iterable[tuple[bytes, ShardReport]],
        gateways: Iterable[tuple[bytes, ShardStats]],
        last: int,
        now: float,
        wall: float,
    ) -> MonitorResult:
        """What there is to say about these numbers. gateways: by name on the bus. last: the newest offset."""
        processes = [ProcessStats(f"shard {r.address.index}", name, r.stats, r) for name, r in shards]
        known = list(gateways)
        # By the name of each: by its place in the list, an alert would end and begin with each one that comes or goes.
        others = [ProcessStats(name_component(name), None, stats) for name, stats in known]
        self._record_offset(last, now)
        measurements = [
            measurement for p in (*processes, *others) for measurement in self._measure_process(p, last, now)
        ]
        measurements += self._measure_process(ProcessStats("router", None, self._own_stats()), last, now)
        refused = sum(p.stats.connections_rejected_per_s for p in (*processes, *others))
        measurements.append(Measurement("solowire", "connections_rejected_per_second", refused))
        result = MonitorResult([], [])
        names = {p.component: p.name for p in processes}
        for alert in self.alerts.evaluate_measurements(measurements, now):
            self.fired_count += alert.has_begun
            result.events.append(self._make_alert_event(alert, wall))
            name = names.get(alert.measurement.component)
            if alert.has_begun and name is not None and alert.measurement.metric in PERFORMANCE:
                result.diagnoses.append((name, alert.measurement.metric))
        if self._stats_due is None:
            self._stats_due = now + self._stats_interval_s
        if self._stats_interval_s and now >= self._stats_due:
            self._stats_due = now + self._stats_interval_s
            reports = [p.report for p in processes if p.report is not None]
            result.events.extend(self._make_stats_events(reports, len(known), refused, wall))
        return result

    def _record_offset(self, last: int, now: float) -> None:
        if not self._offset_times or self._offset_times[-1][1] != last:
            self._offset_times.append((now, last))

    def measure_offset_age(self, acked: int, now: float) -> float:
        """For how long the oldest offset behind `acked` has been in the log, seconds; exact to half a second."""
        age = 0.0
        for at, offset in reversed(self._offset_times):
            if offset <= acked:
                break
            age = now - at
        return age

    def _measure_process(self, process: ProcessStats, last: int, now: float) -> Iterable[Measurement]:
        component, _, stats, report = process
        yield Measurement(component, "event_loop_lag_seconds", stats.event_loop_lag_s)
        yield Measurement(component, "memory_bytes", stats.memory_bytes)
        if report is None:
            return
        behind = f"; {report.lag_offsets:,} offsets behind" if report.lag_offsets else ""
        yield Measurement(
            component, "shard_lag_seconds", self.measure_offset_age(last - report.lag_offsets, now), note=behind
        )
        lagging = f"; {stats.lagging:,} connections lag"
        yield Measurement(component, "connection_lag_seconds", stats.max_connection_lag_s, note=lagging)
        if stats.lease_granted:
            note = f"; {stats.lease_used:,} of {stats.lease_granted:,} slots"
            yield Measurement(component, "lease_use_percent", 100 * stats.lease_used / stats.lease_granted, note=note)
        for name, feeds in stats.aggregating.items():
            yield Measurement(component, "aggregating_feeds", feeds, name)

    def _make_alert_event(self, alert: Alert, wall: float) -> PublishedEvent:
        component, metric, value, about, note = alert.measurement
        text, unit = ALERT_MESSAGES[metric]
        now, threshold = text.format(value, about) + note, f"threshold {alert.threshold:,.10g} {unit}"
        message = f"{component}: {now} ({threshold})"
        if not alert.has_begun:
            message = (
                f"{component}: resolved after {alert.seconds:,.0f} s: {now} ({alert.highest:,.4g} at most, {threshold})"
            )
        severity = "warning" if alert.has_begun else "info"
        write = logger.warning if alert.has_begun else logger.info
        write(
            "alert_fired" if alert.has_begun else "alert_resolved",
            component=component,
            metric=metric,
            value=round(value, 3),
            threshold=alert.threshold,
            **({"about": about} if about else {}),
            **({} if alert.has_begun else {"fired_for_s": round(alert.seconds, 1), "highest": round(alert.highest, 3)}),
        )
        data = {
            "severity": severity,
            "message": message,
            "component": component,
            "metric": metric,
            "value": round(value, 3),
            "threshold": alert.threshold,
            "details": {"state": "firing" if alert.has_begun else "resolved", **({"about": about} if about else {})},
        }
        return self._make_event("system_alert", data, wall)

    def _make_stats_events(
        self, reports: list[ShardReport], gateways: int, refused: float, wall: float
    ) -> Iterable[PublishedEvent]:
        for report in reports:
            data = {
                **_make_stats_payload(stats_to_dict(report.stats)),
                "node": f"shard {report.address.index}",
                "lag": report.lag_offsets,
            }
            yield self._make_event("gateway_stats", data, wall)
        whole = _make_stats_payload(aggregate(report.stats for report in reports))
        lag = max((report.lag_offsets for report in reports), default=0)
        more = {
            "node": "all",
            "shards": len(reports),
            "gateways": gateways,
            "lag": lag,
            "connections_rejected_per_second": refused,
        }
        yield self._make_event("gateway_stats", {**whole, **more}, wall)

    def _make_event(self, name: str, data: dict[str, Any], wall: float) -> PublishedEvent:
        """An event like any publisher's. Its payload is checked like any other's, too."""
        event_type = self._catalog[name]
        state = event_type.delivery is Delivery.state
        key = data["node"] if state else None
        event = Event(
            id=self._new_id(),
            type=name,
            data=msgspec.json.encode(data),
            priority=event_type.priority,
            delivery=event_type.delivery,
            timestamp=format_unix_time(wall),
            key=key,
            attributes=self._catalog.validate_data(event_type, data),
            source="solowire",
            taken=wall,
            publisher="router",
        )
        return PublishedEvent(event.id, None, encode_event(event), name_state(name, key, None) if state else None)


def name_component(gateway: bytes) -> str:
    """What a gateway is called in alerts, given its name on the bus, which the router logs, too."""
    return "gateway " + gateway.decode(errors="replace").removeprefix("gateway-")


def _make_stats_payload(numbers: dict[str, Any]) -> dict[str, Any]:
    """`payloads.GatewayStats` of a shard's numbers, or of all shards'."""
    latency = numbers["latency_s"]
    data = {
        "connections": numbers["connections"],
        "users": numbers["users"],
        "feeds": numbers["feeds"],
        "events_per_second": numbers["events_per_s"],
        "deliveries_per_second": numbers["deliveries_per_s"],
        "frames_per_second": numbers["frames_per_s"],
        "sent_bytes_per_second": numbers["sent_bytes_per_s"],
        "connections_rejected_per_second": numbers["connections_rejected_per_s"],
        "lagging": numbers["lagging"],
        "max_connection_lag_s": numbers["max_connection_lag_s"],
        "log_bytes": numbers["log_bytes"],
        "memory_bytes": numbers["memory_bytes"],
        "event_loop_lag_ms": round(1000 * numbers["event_loop_lag_s"], 1),
        "lease_used": numbers["lease_used"],
        "lease_granted": numbers["lease_granted"],
        **{name: top_n_with_other(numbers[name]) for name in COUNTER_FIELDS},
    }
    return data | {f"latency_{p}_ms": round(1000 * s, 2) for p, s in latency.items() if s is not None}
