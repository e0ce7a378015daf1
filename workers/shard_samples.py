"""The metrics of a shard's own work: connections, events, frames, its log and its lease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from solowire.fanout.skipped_events import FAILED, UNDECODABLE, UNKNOWN_TYPE
from solowire.observability.metrics import Distribution, LabelledSample, MultiLabelledSample, Sample
from solowire.workers.connections.dialect_usage import DialectUsage
from solowire.workers.departures import CLOSED
from solowire.workers.shard import Shard
from solowire.workers.stats.report import ShardReporter


def read_shard_samples(
    shard: Shard, reporter: ShardReporter, rejections: Mapping[str, int], now: float
) -> Iterator[Sample]:
    """What /metrics shows of it. rejections: handshakes, by error code. now: monotonic seconds."""
    stats = reporter.build_report(now)
    totals, skipped = shard.totals, shard.log.skipped.totals
    history = shard.history
    yield "history_queries", "History queries under way.", len(history)
    yield "history_pages_total", "Pages of history made.", history.answered_count
    yield "history_events_total", "Events in pages of history.", history.event_count
    yield "history_rejected_total", "History queries rejected.", history.rejected_count
    yield MultiLabelledSample(
        "connections",
        "Open connections by group, codec and transport.",
        ("group", "codec", "transport"),
        reporter.count_connections(),
    )
    yield "connections_opened_total", "Connections accepted.", stats.connections_opened
    yield LabelledSample(
        "connections_closed_total",
        "Connections closed, by close code; client_disconnected: the client closed it or was lost.",
        "code",
        {name.removeprefix(CLOSED): count for name, count in totals.items() if name.startswith(CLOSED)},
    )
    yield LabelledSample("connections_rejected_total", "Handshakes rejected, by error code.", "reason", rejections)
    yield "feeds", "Feeds with at least one connection.", stats.feeds
    yield "lagging_connections", "Connections behind their feed.", stats.lagging
    yield (
        "max_connection_lag_seconds",
        "Age of the next event of the slowest connection.",
        stats.max_connection_lag_s,
    )
    yield "slow_consumers_total", "Times that a connection became a slow consumer.", totals["slow_consumers"]
    yield "log_end_offset", "Newest offset in the recent log.", stats.log_end_offset
    yield "log_events", "Events in the recent log.", stats.log_events
    yield "log_bytes", "Memory of the recent log.", stats.log_bytes
    yield "events_received_total", "Events received from the router.", stats.events
    yield "deliveries_total", "Events sent, times the connections they were sent to.", stats.deliveries
    yield "frames_total", "Frames of events sent.", stats.frames
    yield "sent_bytes_total", "Bytes of the frames of events sent.", stats.sent_bytes
    yield Distribution(
        "delivery_latency_seconds",
        "From the gateway to the socket: oldest event of each frame, for each connection.",
        shard.dispatcher.latency,
    )
    yield "omitted_events_total", "Events counted instead of sent, times the connections.", totals["omitted_events"]
    yield "aggregated_events_total", "Telemetry events summarised instead of sent.", totals["aggregated_events"]
    yield (
        "conflated_states_total",
        "States replaced by a newer value before they were sent.",
        totals["conflated_states"],
    )
    aggregating = stats.aggregating
    usage = shard.dialects.usage if shard.dialects is not None else DialectUsage()
    yield LabelledSample(
        "legacy_connections_total", "Old frontends' WebSockets accepted, by path.", "path", usage.paths
    )
    yield LabelledSample("legacy_messages_total", "Messages of old frontends, by type.", "type", usage.messages)
    yield LabelledSample(
        "legacy_user_agents_total", "Old frontends' WebSockets accepted, by user agent.", "agent", usage.agents
    )
    yield LabelledSample("aggregating_feeds", "Feeds that get a type summarised now.", "type", aggregating)
    yield "client_message_errors_total", "Client messages answered with an error.", totals["message_errors"]
    yield "event_decode_errors_total", "Events of the log that failed to decode.", skipped[UNDECODABLE]
    yield "unknown_type_events_total", "Events of the log of an unknown type.", skipped[UNKNOWN_TYPE]
    yield "event_processing_errors_total", "Events of the log that failed to match or encode.", skipped[FAILED]
    yield "lease_used_slots", "Slots of the lease in use.", stats.lease_used
    yield "lease_granted_slots", "Slots of the lease.", stats.lease_granted
