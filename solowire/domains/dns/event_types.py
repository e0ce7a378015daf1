"""The event types of DNS administration, each declared once.

A declaration has the payload, the permission, the delivery, what it hides and what filters see. It is one domain's
catalogue. The core is given it, and knows none of these names.
"""

from __future__ import annotations

from functools import partial

import msgspec

from solowire.domains.dns import payloads as p
from solowire.domains.dns.query_rollup import roll_up_queries
from solowire.model.catalog import FAMILY, Attribute, Catalog, EventType, Rollup
from solowire.model.events import Delivery, Priority
from solowire.model.payload_schema import AnyPayload, StructPayload

DURABLE, STATE, TELEMETRY = Delivery.durable, Delivery.state, Delivery.telemetry
HIGH = Priority.high


_UNINDEXED = frozenset({"client_ip", "server", "view"})
"""`client_ip` has too many values, the others too few: and `query_domain` is within `zone` where events are queries."""


def _plain(*names: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(name, (name,), indexed=name not in _UNINDEXED) for name in names)


_ZONE = Attribute("zone", ("zone",), hierarchical=True)
_DOMAIN = Attribute("query_domain", ("query_domain",), hierarchical=True, indexed=False)

_ALERT = (Attribute("severity", ("level",)), *_plain("forwarder_id", "type", "server"))
_ZONES = (_ZONE, *_plain("zone_type", "server", "view", "actor"))
_TRANSFER = (*_ZONES, *_plain("operation_id"))
_RECORD = (
    _ZONE,
    Attribute("name", ("name",), hierarchical=True),
    Attribute("record_type", ("type",)),
    *_plain("server", "view", "actor"),
)
_QUERY = (
    Attribute("zone", ("zone", "query_domain"), hierarchical=True),
    _DOMAIN,
    *_plain("client_ip", "query_type", "rcode", "blocked", "server", "view"),
)
_CONFIG = (_ZONE, *_plain("entity_type", "component", "action", "server", "actor"))
_FINDING = (_ZONE, _DOMAIN, *_plain("severity", "threat_type", "client_ip", "query_type", "server", "view"))
_HIT = (_ZONE, _DOMAIN, *_plain("client_ip", "query_type", "action", "server", "view"))
_BACKUP = (_ZONE, *_plain("backup_id", "host", "actor"))
_SESSION = _plain("user", "role", "client_ip")
_BULK = (_ZONE, *_plain("operation_id", "operation", "actor", "server", "view"))
_AUDIT = (_ZONE, *_plain("actor", "action", "entity_type", "severity", "client_ip"))

_IP = {"client_ip": "sensitive.client_ip"}
_TSIG = {"tsig_key": "sensitive.tsig_key"}
_UPDATER = {"client": "sensitive.client_ip", **_TSIG}
_PATH = {"path": "sensitive.path"}
_DIFF = {"before": "sensitive.config_diff", "after": "sensitive.config_diff"}
_DETAILS = {"details": "sensitive.details"}  # a free object, in which what a type hides is usual: see `_type`
_OBSERVED = frozenset({"server", "transfer", "serial_before", "duration_ms"})
"""What sources of a primary and of its secondaries say differently of one change: who saw it, and how."""
_AUTHORED = frozenset({"client", "tsig_key", "actor"})
"""Only where the update came in, somebody knows who sent it."""
_TOLD_BY_SEVERAL = frozenset(
    {
        *("zone_created", "zone_updated", "zone_deleted", "record_created", "record_updated", "record_deleted"),
        *("record_changes", "bulk_started", "bulk_progress", "bulk_completed"),
    }
)
_AS_SEEN_FIRST = {"zone_created": frozenset({"serial", "record_count"})}
_PERSON = {
    **_IP,
    "session_id": "sensitive.session_id",
    "user_agent": "sensitive.user_agent",
}


def _type(
    category: str,
    name: str,
    payload: type[msgspec.Struct] | None,
    delivery: Delivery,
    attributes: tuple[Attribute, ...] = (),
    sensitive: dict[str, str] | None = None,
    *,
    key: tuple[str, ...] = (),
    priority: Priority = Priority.normal,
    permission: str = "",
    rollup: Rollup | None = None,
) -> EventType:
    needed = permission or f"{category}.read"
    guarded = {**sensitive, **_DETAILS} if sensitive else {}
    schema = AnyPayload() if payload is None else StructPayload(payload)
    several = name in _TOLD_BY_SEVERAL
    return EventType(
        name,
        category,
        schema,
        needed,
        delivery,
        priority,
        guarded,
        attributes,
        key,
        rollup=rollup,
        observed_fields=_OBSERVED | _AS_SEEN_FIRST.get(name, frozenset()) if several else frozenset(),
        authored_fields=_AUTHORED if several else frozenset(),
    )


_health, _dns, _security, _system = (partial(_type, c) for c in ("health", "dns", "security", "system"))
_user = partial(_type, "user", permission="users.read")
_bulk, _audit, _custom = (partial(_type, c) for c in ("bulk", "audit", "custom"))
_admin = partial(_type, "system", permission="admin.read")

_QUERY_STATS = _dns(
    "dns_query_stats",
    p.DnsQueryStats,
    STATE,
    (_ZONE, *_plain("server", "view")),
    {"top_clients": "sensitive.client_ip"},
    key=("server", "view", "zone"),
)

CATALOG = Catalog(
    (
        _health("health_update", p.HealthUpdate, STATE, _plain("server")),
        _health("health_alert", p.HealthAlert, DURABLE, _ALERT, priority=HIGH),
        _health(
            "forwarder_status_change",
            p.ForwarderStatusChange,
            DURABLE,
            _plain("forwarder_id", "new_status", "server"),
            priority=HIGH,
        ),
        _health(
            "forwarder_health",
            p.ForwarderHealth,
            STATE,
            _plain("forwarder_id", "status", "server"),
            key=("forwarder_id",),
        ),
        _dns("zone_created", p.ZoneCreated, DURABLE, _ZONES, _UPDATER),
        _dns("zone_updated", p.ZoneUpdated, DURABLE, _ZONES, {**_UPDATER, **_DIFF}),
        _dns("zone_deleted", p.ZoneDeleted, DURABLE, _ZONES, _UPDATER),
        _dns("zone_imported", p.ZoneImported, DURABLE, _TRANSFER, {**_UPDATER, **_PATH}),
        _dns("zone_exported", p.ZoneExported, DURABLE, _TRANSFER, {**_UPDATER, **_PATH}),
        _dns("record_created", p.RecordCreated, DURABLE, _RECORD, _UPDATER),
        _dns("record_updated", p.RecordUpdated, DURABLE, _RECORD, _UPDATER),
        _dns("record_deleted", p.RecordDeleted, DURABLE, _RECORD, _UPDATER),
        _dns("record_changes", p.RecordChanges, DURABLE, _TRANSFER, _UPDATER),
        _dns("record_imported", p.RecordImported, DURABLE, _TRANSFER, {**_UPDATER, **_PATH}),
        _dns("record_exported", p.RecordExported, DURABLE, _TRANSFER, {**_UPDATER, **_PATH}),
        _dns("bind_reload", p.BindReload, DURABLE, (_ZONE, *_plain("server", "success"))),
        _dns("bind_status", p.BindStatus, STATE, _plain("server", "status"), key=("server",)),
        _dns("config_change", p.ConfigChange, DURABLE, _CONFIG, _DIFF | _PATH | {"diff": _DIFF["after"]}),
        _dns(
            "dns_query_log",
            p.DnsQueryLog,
            TELEMETRY,
            _QUERY,
            {**_IP, **_TSIG},
            rollup=Rollup(_QUERY_STATS, roll_up_queries, hides={"client_ip": "top_clients"}),
        ),
        _QUERY_STATS,
        _security("security_alert", p.SecurityAlert, DURABLE, _FINDING, _IP, priority=HIGH),
        _security("threat_detected", p.ThreatDetected, DURABLE, _FINDING, _IP, priority=HIGH),
        _security("rpz_update", p.RpzUpdate, DURABLE, (_ZONE, *_plain("category", "server", "actor"))),
        _security("rpz_hit", p.RpzHit, TELEMETRY, _HIT, _IP),
        _system("system_metrics", p.SystemMetrics, STATE, _plain("host", "server"), key=("host",)),
        _system(
            "system_status", p.SystemStatus, STATE, _plain("host", "component", "server"), key=("host", "component")
        ),
        _system(
            "source_status",
            p.SourceStatus,
            STATE,
            _plain("server", "kind", "part", "status"),
            key=("server", "kind", "part"),
        ),
        _admin("system_alert", p.SystemAlert, DURABLE, _plain("severity", "host", "component"), priority=HIGH),
        _admin("gateway_stats", p.GatewayStats, STATE, _plain("node"), key=("node",)),
        _system("backup_started", p.BackupStarted, DURABLE, _BACKUP, _PATH),
        _system("backup_completed", p.BackupCompleted, DURABLE, _BACKUP, _PATH),
        _system("backup_failed", p.BackupFailed, DURABLE, _BACKUP, _PATH, priority=HIGH),
        _user("user_login", p.UserLogin, DURABLE, _SESSION, _PERSON),
        _user("user_logout", p.UserLogout, DURABLE, _SESSION, _PERSON),
        _user("session_created", p.SessionCreated, DURABLE, _SESSION, _PERSON),
        _user("session_expired", p.SessionExpired, DURABLE, _SESSION, _PERSON),
        _bulk("bulk_started", p.BulkStarted, DURABLE, _BULK),
        _bulk("bulk_progress", p.BulkProgress, STATE, _BULK, key=("operation_id",)),
        _bulk("bulk_completed", p.BulkCompleted, DURABLE, _BULK),
        _bulk("bulk_failed", p.BulkFailed, DURABLE, _BULK, priority=HIGH),
        _audit("audit_log", p.AuditLog, DURABLE, _AUDIT, {**_PERSON, **_DIFF}),
        _audit("audit_event", p.AuditEvent, DURABLE, _AUDIT, {**_PERSON, **_DIFF}),
        _custom(FAMILY, None, DURABLE, (_ZONE, *_plain("topic"))),
    )
)
