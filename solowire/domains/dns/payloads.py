"""The payloads of event types: one struct for each, in the order of the catalogue's categories.

Few fields are required: those without which the event says nothing. All others may be absent or null.
Fields that are not declared here are accepted and carried (but see `solowire.model.access`: not every view is
shown them).

Throughout: times are RFC 3339 in UTC, names are DNS names in presentation form (zones and owners fully
qualified, the last dot optional), `client`, `client_ip` and `server_ip` are IP addresses as text, `actor`
is who caused the event and `user` whom it is about. The file is long because it is a list: there is nothing
in it but declarations.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Word = Annotated[str, Meta(min_length=1, max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=1024, description="a DNS name in presentation form")]
Text = Annotated[str, Meta(min_length=1)]
Time = Annotated[str, Meta(description="RFC 3339, UTC")]
Percent = Annotated[float, Meta(ge=0, le=100, description="percent, 0 to 100")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1, description="bytes")]
Rate = Annotated[float, Meta(ge=0, description="per second")]
Millis = Annotated[float, Meta(ge=0, description="milliseconds")]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]
Port = Annotated[int, Meta(ge=0, le=65535)]
Serial = Annotated[int, Meta(ge=0, le=2**32 - 1, description="SOA serial, RFC 1982")]
Ttl = Annotated[int, Meta(ge=0, le=2**31 - 1, description="seconds, RFC 2181")]
IntId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Annotated[str, Meta(max_length=256)] | IntId
RequiredId = Word | IntId
Severity = Literal["info", "low", "medium", "warning", "high", "error", "critical"]
Tally = dict[str, Count]


class Payload(msgspec.Struct, kw_only=True, frozen=True):
    """What any `data` may say. at: when, if not at the event's timestamp; server: where, by name."""

    message: str | None = None
    actor: str | None = None
    server: str | None = None
    at: Time | None = None
    details: dict[str, Any] | None = None


class ForwarderDetail(msgspec.Struct, kw_only=True, frozen=True):
    """One forwarder within a `health_update`. Servers are counted."""

    id: RequiredId
    status: Word
    name: str | None = None
    type: str | None = None
    healthy_servers: Count | None = None
    total_servers: Count | None = None
    last_checked: Time | None = None


class HealthUpdate(Payload, kw_only=True, frozen=True):
    """How all forwarders together are doing: how many in each state, and optionally each of them."""

    total_forwarders: Count
    active_forwarders: Count | None = None
    healthy_forwarders: Count | None = None
    unhealthy_forwarders: Count | None = None
    degraded_forwarders: Count | None = None
    unknown_forwarders: Count | None = None
    health_check_enabled: bool | None = None
    last_updated: Time | None = None
    forwarder_details: list[ForwarderDetail] | None = None


class HealthAlert(Payload, kw_only=True, frozen=True):
    """Something that is watched is unwell, or well again. `type` says what kind of alert it is.

    host, metric, subject: where and of what, such as `disk_usage` of `/var`; value, threshold: in the unit of `metric`.
    resolved: it is over; `id` is the same as when it began.
    """

    level: Literal["info", "warning", "critical"]
    message: Text
    id: Id | None = None
    type: str | None = None
    forwarder_id: Id | None = None
    forwarder_name: str | None = None
    created_at: Time | None = None
    acknowledged: bool | None = None
    host: str | None = None
    metric: str | None = None
    subject: str | None = None
    value: float | None = None
    threshold: float | None = None
    resolved: bool | None = None


class ForwarderStatusChange(Payload, kw_only=True, frozen=True):
    """A forwarder went from one status to another, such as `healthy`, `degraded`, `unhealthy`, `unknown`."""

    forwarder_id: RequiredId
    new_status: Word
    old_status: str | None = None
    forwarder_name: str | None = None
    reason: str | None = None


class PassiveTraffic(msgspec.Struct, kw_only=True, frozen=True):
    """Real queries to a forwarder in half a minute: how many, round trips in milliseconds, shares in percent."""

    queries: Count
    loss: Percent | None = None
    servfail_ratio: Percent | None = None
    rtt_ms: Millis | None = None
    rtt_p50_ms: Millis | None = None
    rtt_p95_ms: Millis | None = None


class ForwarderHealth(Payload, kw_only=True, frozen=True):
    """The newest measurement of one forwarder: status, round trip in milliseconds, loss in percent.

    rtt_p50_ms, rtt_p95_ms, loss, servfail_ratio: of the last minutes; probes: how many queries they are made of.
    passive: the same of real queries, where a source hears of them.
    views, zones: of the name server that forwards to it; none for all. last_changed: when the status did.
    """

    forwarder_id: RequiredId
    status: Word
    forwarder_name: str | None = None
    type: str | None = None
    server_ip: str | None = None
    port: Port | None = None
    rtt_ms: Millis | None = None
    rtt_p50_ms: Millis | None = None
    rtt_p95_ms: Millis | None = None
    loss: Percent | None = None
    servfail_ratio: Percent | None = None
    probes: Count | None = None
    views: list[str] | None = None
    zones: list[str] | None = None
    last_changed: Time | None = None
    consecutive_failures: Count | None = None
    healthy_servers: Count | None = None
    total_servers: Count | None = None
    last_checked: Time | None = None
    error: str | None = None
    passive: PassiveTraffic | None = None


class ZoneChange(Payload, kw_only=True, frozen=True):
    """What all events about a zone may say. view: BIND's; client, tsig_key: who sent the update.

    serial_before, serial: the zone's serials before and after the change.
    """

    zone: Name
    zone_id: Id | None = None
    zone_type: str | None = None
    view: str | None = None
    serial_before: Serial | None = None
    serial: Serial | None = None
    record_count: Count | None = None
    client: str | None = None
    tsig_key: str | None = None


class ZoneCreated(ZoneChange, kw_only=True, frozen=True):
    """A zone was created."""


class ZoneUpdated(ZoneChange, kw_only=True, frozen=True):
    """A zone's settings or serial changed. changed: names of the settings; before, after: their values.

    created, updated, deleted: changed sets of records, by type; left_out: those that are not told one by one.
    transfer: how the change was seen, a step of its own (`ixfr`) or in the whole zone (`axfr`), in which several steps
    may be one. rollback: the serial went back. operation_id: of the bulk operation that the changes were told as.
    """

    changed: list[str] | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    created: Tally | None = None
    updated: Tally | None = None
    deleted: Tally | None = None
    left_out: Tally | None = None
    transfer: Literal["ixfr", "axfr"] | None = None
    rollback: bool | None = None
    operation_id: Id | None = None


class ZoneDeleted(ZoneChange, kw_only=True, frozen=True):
    """A zone was deleted."""


class ZoneTransfer(ZoneChange, kw_only=True, frozen=True):
    """A zone or its records were copied in or out: how many, how (`axfr`, `file`), and from or to where."""

    format: str | None = None
    count: Count | None = None
    failed: Count | None = None
    size_bytes: Bytes | None = None
    duration_ms: Millis | None = None
    operation_id: Id | None = None
    path: str | None = None
    types: Tally | None = None


class ZoneImported(ZoneTransfer, kw_only=True, frozen=True):
    """A whole zone was imported. count, failed: records; path: the file, on the server."""


class ZoneExported(ZoneTransfer, kw_only=True, frozen=True):
    """A whole zone was exported. count: records; path: the file, on the server."""


class RecordState(msgspec.Struct, kw_only=True, frozen=True):
    """A record, or all records of one name and type, before or after a change. ttl: seconds.

    value: RDATA in presentation form, where it is one record; records: of all of them. truncated: a record is longer
    than an event may be; it ends with `…`.
    """

    value: str | None = None
    ttl: Ttl | None = None
    records: list[str] | None = None
    truncated: bool | None = None


class RecordChange(ZoneChange, kw_only=True, frozen=True):
    """What all events about one record say. name: its owner; value: RDATA as text; ttl: seconds.

    Where a source watches the zone, it is about all records of one name and type: see `before` and `after`.
    """

    name: Name
    type: Word
    value: str | None = None
    ttl: Ttl | None = None
    record_id: Id | None = None
    before: RecordState | None = None
    after: RecordState | None = None


class RecordCreated(RecordChange, kw_only=True, frozen=True):
    """A record was added to a zone. ttl: seconds."""


class RecordUpdated(RecordChange, kw_only=True, frozen=True):
    """A record's value or TTL changed: `before` and `after`, TTLs in seconds."""


class RecordDeleted(RecordChange, kw_only=True, frozen=True):
    """A record was removed from a zone. value, ttl (seconds): what it was."""


class PagedChange(msgspec.Struct, kw_only=True, frozen=True):
    """One change within a page. part, parts: where it is too long for one page; then each has some of the records."""

    action: Literal["created", "updated", "deleted"]
    name: Name
    type: Word
    before: RecordState | None = None
    after: RecordState | None = None
    part: Count | None = None
    parts: Count | None = None


class RecordChanges(ZoneChange, kw_only=True, frozen=True):
    """Many changes of records, page by page, from 1 to `pages`, within the bulk operation `operation_id`."""

    operation_id: RequiredId
    page: Count
    pages: Count
    changes: list[PagedChange]


class RecordImported(ZoneTransfer, kw_only=True, frozen=True):
    """Records were imported into a zone. count, failed: records; types: how many of each type."""


class RecordExported(ZoneTransfer, kw_only=True, frozen=True):
    """Records of a zone were exported. count: records; types: how many of each type."""


class BindReload(Payload, kw_only=True, frozen=True):
    """BIND reloaded or reconfigured itself, or failed to; of one zone only where `zone` is given."""

    success: bool
    zone: Name | None = None
    view: str | None = None
    duration_ms: Millis | None = None
    error: str | None = None


class BindStatus(Payload, kw_only=True, frozen=True):
    """How one BIND server is doing. boot_time: when it started; config_time: when it last read its configuration.

    cache_bytes, memory_bytes: of its cache, and of all that it has allocated. hit_ratio: of the cache, percent.
    serials: of its zones, of hundreds those that changed last; a view's name stands behind the zone's, after a slash.
    """

    status: Literal["running", "stopped", "unknown"]
    version: str | None = None
    reason: str | None = None
    boot_time: Time | None = None
    config_time: Time | None = None
    zones: Count | None = None
    serials: dict[str, Serial] | None = None
    memory_bytes: Bytes | None = None
    cache_bytes: Bytes | None = None
    cache_entries: Count | None = None
    hit_ratio: Percent | None = None
    uptime_s: Seconds | None = None


class ConfigChange(Payload, kw_only=True, frozen=True):
    """The configuration changed. action: such as `created`; before, after, diff: what changed."""

    action: Word
    entity_type: str | None = None
    entity_name: str | None = None
    entity_id: Id | None = None
    component: str | None = None
    status: str | None = None
    zone: Name | None = None
    path: str | None = None
    before: Any = None
    after: Any = None
    diff: str | list[str] | None = None


class DnsQueryLog(Payload, kw_only=True, frozen=True):
    """One DNS query that a server got. duration_ms: from query to response; size_bytes: of the response.

    flags: of the query, as in BIND's query log; response_flags: as `dig` prints them, such as `aa rd ra`.
    """

    client_ip: Word
    query_domain: Name
    query_type: Word
    client_port: Port | None = None
    query_class: str | None = None
    flags: str | list[str] | None = None
    response_flags: str | None = None
    protocol: str | None = None
    server_ip: str | None = None
    view: str | None = None
    zone: Name | None = None
    blocked: bool | None = None
    rcode: str | None = None
    duration_ms: Millis | None = None
    size_bytes: Bytes | None = None
    tsig_key: str | None = None


class DnsQueryStats(Payload, kw_only=True, frozen=True):
    """Queries of one server over the last `window_s` seconds; counts by query type and response code.

    top_names, top_clients: the commonest with their counts, commonest first.
    """

    queries_per_second: Rate
    window_s: Seconds | None = None
    view: str | None = None
    zone: Name | None = None
    total_queries: Count | None = None
    blocked_queries: Count | None = None
    query_types: Tally | None = None
    rcodes: Tally | None = None
    rtt_ms: Millis | None = None
    recursive_clients: Count | None = None
    memory_bytes: Bytes | None = None
    dropped: Count | None = None
    top_names: Tally | None = None
    top_clients: Tally | None = None


class SecurityFinding(Payload, kw_only=True, frozen=True):
    """What alerts and threats say alike. count: how often it was seen; first_seen, last_seen: when."""

    severity: Severity
    message: Text
    id: Id | None = None
    threat_type: str | None = None
    category: str | None = None
    zone: Name | None = None
    view: str | None = None
    query_domain: Name | None = None
    query_type: str | None = None
    client_ip: str | None = None
    action: str | None = None
    count: Count | None = None
    first_seen: Time | None = None
    last_seen: Time | None = None


class SecurityAlert(SecurityFinding, kw_only=True, frozen=True):
    """Something that someone responsible for security should look at."""


class ThreatDetected(SecurityFinding, kw_only=True, frozen=True):
    """A threat was recognised. confidence: percent; feed: the threat list that knew it."""

    confidence: Percent | None = None
    feed: str | None = None


class RpzUpdate(Payload, kw_only=True, frozen=True):
    """A response policy zone changed. rule_count: rules it has now; added, removed: rules."""

    zone: Name
    action: str | None = None
    category: str | None = None
    rule: str | None = None
    serial: Serial | None = None
    rule_count: Count | None = None
    added: Count | None = None
    removed: Count | None = None
    feed: str | None = None


class RpzHit(Payload, kw_only=True, frozen=True):
    """A query was answered by policy. action: such as `NXDOMAIN`; rule: what matched; zone: the policy's."""

    query_domain: Name
    action: Word
    client_ip: str | None = None
    client_port: Port | None = None
    query_type: str | None = None
    query_class: str | None = None
    trigger: str | None = None
    rule: str | None = None
    zone: Name | None = None
    view: str | None = None


class DiskUsage(msgspec.Struct, kw_only=True, frozen=True):
    """One file system within `system_metrics`. path: where it is mounted."""

    path: str
    usage: Percent | None = None
    used_bytes: Bytes | None = None
    total_bytes: Bytes | None = None


class NetworkUsage(msgspec.Struct, kw_only=True, frozen=True):
    """One network interface within `system_metrics`. Errors and drops are those of both directions."""

    name: str
    received_bytes_per_second: Rate | None = None
    sent_bytes_per_second: Rate | None = None
    errors_per_second: Rate | None = None
    drops_per_second: Rate | None = None


class ProcessUsage(msgspec.Struct, kw_only=True, frozen=True):
    """One process within `system_metrics`. cpu_usage: percent of one core, so that it may be over 100."""

    name: str
    pid: Count | None = None
    cpu_usage: Rate | None = None
    memory_bytes: Bytes | None = None
    threads: Count | None = None
    open_files: Count | None = None
    uptime_s: Seconds | None = None


class SystemMetrics(Payload, kw_only=True, frozen=True):
    """Load of one host: CPU, memory and disk in percent, rates per second, uptime in seconds.

    disk_usage: of the root, or of the fullest file system. In a container memory is that of its limit, if it has one.
    """

    cpu_usage: Percent
    memory_usage: Percent | None = None
    disk_usage: Percent | None = None
    host: str | None = None
    load_1m: Rate | None = None
    load_5m: Rate | None = None
    load_15m: Rate | None = None
    cpu_count: Count | None = None
    memory_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    swap_usage: Percent | None = None
    swap_bytes: Bytes | None = None
    disks: list[DiskUsage] | None = None
    network: list[NetworkUsage] | None = None
    processes: list[ProcessUsage] | None = None
    active_connections: Count | None = None
    uptime_s: Seconds | None = None


class SystemStatus(Payload, kw_only=True, frozen=True):
    """Whether the parts of one host run. Usage in percent; uptime: when it started (RFC 3339)."""

    status: str | None = None
    host: str | None = None
    component: str | None = None
    bind9_running: bool | None = None
    bind9_version: str | None = None
    cpu_usage: Percent | None = None
    memory_usage: Percent | None = None
    disk_usage: Percent | None = None
    active_connections: Count | None = None
    uptime: str | None = None
    uptime_s: Seconds | None = None


class SourceStatus(Payload, kw_only=True, frozen=True):
    """How one part of a source of events is doing. Counts are of events, since the source began.

    kind: the source, such as `bind9`; part: what it watches, such as `dnstap`. events_lost: what the watched system
    told, or said that it had, and could not be had; events_dropped: for which there was no room while the gateway was
    away. clock_skew_ms: how far the source's clock is ahead of the gateway's.
    """

    kind: Word
    part: Word
    status: Literal["starting", "running", "waiting", "failed", "stopped"]
    reason: str | None = None
    events_read: Count | None = None
    events_published: Count | None = None
    events_dropped: Count | None = None
    events_lost: Count | None = None
    clock_skew_ms: float | None = None
    uptime_s: Seconds | None = None


class SystemAlert(Payload, kw_only=True, frozen=True):
    """A host or service needs an administrator. value, threshold: in the unit of `metric`."""

    severity: Severity
    message: Text
    id: Id | None = None
    host: str | None = None
    component: str | None = None
    metric: str | None = None
    value: float | None = None
    threshold: float | None = None


class GatewayStats(Payload, kw_only=True, frozen=True):
    """How Solowire itself is doing. Counts are of now; rates per second; lag: events not yet delivered.

    node: `all`, or one process, such as `shard 0`. latency: from the gateway to the sockets. lagging: connections that
    are behind their feed, or whose socket is busy. aggregating: feeds by the event type that they get summed up now.
    legacy: what was served to old frontends, by `path …`, `message …`, `agent …`, and what is open, by `open …`.
    """

    connections: Count
    users: Count | None = None
    shards: Count | None = None
    feeds: Count | None = None
    events_per_second: Rate | None = None
    lag: Count | None = None
    node: str | None = None
    groups: Tally | None = None
    codecs: Tally | None = None
    transports: Tally | None = None
    gateways: Count | None = None
    deliveries_per_second: Rate | None = None
    frames_per_second: Rate | None = None
    sent_bytes_per_second: Rate | None = None
    connections_rejected_per_second: Rate | None = None
    latency_p50_ms: Millis | None = None
    latency_p95_ms: Millis | None = None
    latency_p99_ms: Millis | None = None
    lagging: Count | None = None
    max_connection_lag_s: Seconds | None = None
    log_bytes: Bytes | None = None
    memory_bytes: Bytes | None = None
    event_loop_lag_ms: Millis | None = None
    lease_used: Count | None = None
    lease_granted: Count | None = None
    aggregating: Tally | None = None
    legacy: Tally | None = None


class Backup(Payload, kw_only=True, frozen=True):
    """What all events about a backup say. path: where it is kept, on the server."""

    backup_id: RequiredId
    kind: str | None = None
    zone: Name | None = None
    host: str | None = None
    path: str | None = None
    duration_ms: Millis | None = None


class BackupStarted(Backup, kw_only=True, frozen=True):
    """A backup began."""


class BackupCompleted(Backup, kw_only=True, frozen=True):
    """A backup is done. size_bytes: of what was written; duration_ms: from its beginning."""

    size_bytes: Bytes | None = None


class BackupFailed(Backup, kw_only=True, frozen=True):
    """A backup failed. duration_ms: from its beginning."""

    error: Text


class Session(Payload, kw_only=True, frozen=True):
    """What all events about a user's session say. user: the name they sign in with."""

    user: Word
    user_id: Id | None = None
    role: str | None = None
    session_id: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    method: str | None = None
    success: bool | None = None
    reason: str | None = None
    duration_s: Seconds | None = None
    expires_at: Time | None = None


class UserLogin(Session, kw_only=True, frozen=True):
    """A user signed in, or failed to (`success` false)."""


class UserLogout(Session, kw_only=True, frozen=True):
    """A user signed out. duration_s: how long the session lasted."""


class SessionCreated(Session, kw_only=True, frozen=True):
    """A session began."""


class SessionExpired(Session, kw_only=True, frozen=True):
    """A session ended by itself. duration_s: how long it lasted."""


class Bulk(Payload, kw_only=True, frozen=True):
    """What all events about a bulk operation say. Counts are of items, such as records. view: BIND's.

    errors: of the first items that failed; errors_omitted: how many errors are not among them.
    """

    operation_id: RequiredId
    operation: str | None = None
    zone: Name | None = None
    view: str | None = None
    total: Count | None = None
    processed: Count | None = None
    succeeded: Count | None = None
    failed: Count | None = None
    errors: list[Any] | None = None
    errors_omitted: Count | None = None
    duration_ms: Millis | None = None


class BulkStarted(Bulk, kw_only=True, frozen=True):
    """A bulk operation began. total: items to do."""


class BulkProgress(Bulk, kw_only=True, frozen=True):
    """How far a bulk operation is: items done so far, percent, and seconds still to go.

    status: `running`, or at last `completed` or `failed`.
    """

    status: str | None = None
    percent: Percent | None = None
    eta_s: Seconds | None = None


class BulkCompleted(Bulk, kw_only=True, frozen=True):
    """A bulk operation is done, perhaps with items that failed. duration_ms: from its beginning."""


class BulkFailed(Bulk, kw_only=True, frozen=True):
    """A bulk operation was given up. processed: items done before that; duration_ms: from its beginning."""

    error: Text


class Audit(Payload, kw_only=True, frozen=True):
    """Who did what to what. before, after: of the entity; success: whether it was allowed and done."""

    action: Word
    actor_id: Id | None = None
    role: str | None = None
    entity_type: str | None = None
    entity_name: str | None = None
    entity_id: Id | None = None
    zone: Name | None = None
    severity: Severity | None = None
    success: bool | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    session_id: str | None = None
    before: Any = None
    after: Any = None


class AuditLog(Audit, kw_only=True, frozen=True):
    """A line of the application's audit log."""


class AuditEvent(Audit, kw_only=True, frozen=True):
    """An event that must be kept as evidence, from any part of the system."""
