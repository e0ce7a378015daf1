"""The settings of the sources: what each part of one watches. A part whose first setting isn't set is off."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from solowire.runtime.settings.section import PathList, Section, Table, TextList, make_conflict


class QueriesSettings(Section):
    """The queries that a BIND 9 server gets."""

    query_log: Path | None = Field(None, description="the query log that named writes; - for standard input")
    dnstap: Path | None = Field(None, description="the unix socket on which named tells of queries by dnstap")
    dnstap_group: str | None = Field(
        None, description="the group that may connect to it, named's; default: the group of its directory"
    )
    stats_interval_s: float = Field(
        10.0, ge=0, le=3600, description="between two dns_query_stats, made of what dnstap tells; 0: none"
    )
    from_start: bool = Field(False, description="begin at the log's start, not at its end, if no place is known yet")
    zones: TextList = Field(default_factory=list, description="queries beneath one of these zones are labelled with it")


class ServerLogSettings(Section):
    """What a BIND 9 server logs beside its queries."""

    files: PathList = Field(
        default_factory=list, description="logs that named writes: reloads, status, policy hits, refusals, updates"
    )
    from_start: bool = Field(False, description="begin at the logs' start, not at their end, if no place is known yet")


class ZonesSettings(Section):
    """The changes of records and zones, from a BIND 9 server's zone transfers."""

    address: str | None = Field(None, description="the name server, such as 127.0.0.1#53")
    names: TextList = Field(
        default_factory=list,
        description="the zones to watch; if none are named, all that source.statistics.url lists",
    )
    notify: str | None = Field(
        None,
        description="address and port to which named sends NOTIFY, such as 127.0.0.1#5353; without it, polls alone",
    )
    notify_from: TextList = Field(
        default_factory=list,
        description="addresses and networks that may send NOTIFY; default: the name server's address",
    )
    key_file: Path | None = Field(None, description="TSIG keys, as named.conf has them or as algorithm:name:secret")
    key: str | None = Field(None, description="the name of the key to use, if the file has several")
    views: Table[str] = Field(
        default_factory=dict, description="BIND's views to watch, each with the name of the key that leads into it"
    )
    poll_interval_s: float = Field(15.0, ge=0.1, le=86_400, description="how often each zone's serial is asked for")
    find_interval_s: float = Field(
        10.0, ge=0.1, le=86_400, description="how often the zones are listed anew; less often where that takes long"
    )
    concurrency: int = Field(8, ge=1, le=1000, description="questions to the name server at once")
    max_zone_records: int = Field(2_000_000, ge=1, le=10**10, description="records of a zone; larger ones are left out")
    page_bytes: int = Field(
        24_000,
        ge=4_096,
        le=56 * 1024,
        description="a page of many changes as JSON: 4 KB below publish.max_event_bytes, alike for all sources",
    )
    left_out_types: TextList = Field(
        ["RRSIG", "NSEC", "NSEC3", "NSEC3PARAM", "DNSKEY", "CDS", "CDNSKEY", "TYPE65534"],
        description="record types whose changes are only counted: what named itself maintains in signed zones",
    )
    actors: Table[str] = Field(
        default_factory=dict, description="who is behind a TSIG key's name or a client's address, for `actor`"
    )


class ConfigurationSettings(Section):
    """The configuration of a BIND 9 server."""

    named_conf: Path | None = Field(None, description="named's configuration; what it includes is watched, too")


class StatisticsSettings(Section):
    """The statistics channel of a BIND 9 server."""

    url: str | None = Field(None, description="its address, such as http://127.0.0.1:8053")
    interval_s: float = Field(10.0, ge=10, le=3600, description="how often it is asked")
    zones_interval_s: float = Field(
        300.0,
        ge=10,
        le=86_400,
        description="how often it is asked for all zones, if source.zones doesn't ask for them anyway",
    )


class SecuritySettings(Section):
    """Findings about what clients do, by rules: queries, policy hits and refused requests that other parts read."""

    rules: Path | None = Field(
        None, description="a TOML file of rules; default: those that `solowire source rules` prints"
    )
    enabled: bool = Field(True, description="judge what is read by rules")


class DriftSettings(Section):
    """Changes of records that came by no pipeline: a `security_alert` each."""

    pipelines: TextList = Field(
        default_factory=list,
        description="who may change records: key:NAME, client:ADDRESS, client:NETWORK or actor:NAME; none: all may",
    )
    allows_unknown: bool = Field(False, description="a change whose author the update log doesn't tell is no drift")


class ForwardersSettings(Section):
    """The forwarders that are probed. Shares are in percent."""

    addresses: TextList = Field(
        default_factory=list, description="the forwarders, such as 192.0.2.1 or 192.0.2.1#5353; or see named_conf"
    )
    named_conf: Path | None = Field(None, description="named's configuration, whose forwarders are probed")
    with_bind9: bool = Field(
        False, description="`source bind9` probes them, too, and adds to their figures what dnstap tells of them"
    )
    name: str = Field(".", min_length=1, max_length=255, description="the name that probes ask for")
    type: str = Field("SOA", min_length=1, max_length=32, description="the record type that probes ask for")
    interval_s: float = Field(30.0, ge=1, le=86_400, description="between two forwarder_health of one forwarder")
    probe_interval_s: float = Field(
        5.0, ge=0.1, le=3600, description="between two probes of one forwarder; a tenth more or less each time"
    )
    timeout_s: float = Field(2.0, ge=0.05, le=60, description="for an answer, until it counts as lost")
    concurrency: int = Field(20, ge=1, le=20, description="probes at once; more would falsify each other's round trips")
    window_s: float = Field(120.0, ge=1, le=86_400, description="of which loss, SERVFAIL and round trips are made")
    failures: int = Field(3, ge=1, le=100, description="probes in a row that fail, and it is unhealthy")
    recoveries: int = Field(3, ge=1, le=100, description="probes in a row that succeed, and it is not any more")
    degraded_rtt_ms: float = Field(500.0, gt=0, le=60_000, description="95th percentile from which on it is degraded")
    degraded_loss_percent: float = Field(
        20.0, gt=0, le=100, description="share of lost probes from which on it is degraded"
    )
    degraded_servfail_percent: float = Field(
        20.0, gt=0, le=100, description="share of SERVFAIL from which on it is degraded"
    )


class HostSettings(Section):
    """The measurements of a host, and when they are an alert. Usages are in percent; a threshold of 0 is off."""

    interval_s: float = Field(30.0, ge=1, le=86_400, description="between two system_metrics")
    disks: TextList = Field(
        default_factory=list,
        description="where the file systems are mounted that are measured; default: all local ones",
    )
    processes: TextList = Field(["named"], description="names of the processes that are measured")
    cpu_warning_percent: float = Field(90.0, ge=0, le=100, description="CPU usage that is a warning")
    cpu_critical_percent: float = Field(98.0, ge=0, le=100, description="CPU usage that is critical")
    memory_warning_percent: float = Field(90.0, ge=0, le=100, description="memory usage that is a warning")
    memory_critical_percent: float = Field(97.0, ge=0, le=100, description="memory usage that is critical")
    swap_warning_percent: float = Field(80.0, ge=0, le=100, description="swap usage that is a warning")
    disk_warning_percent: float = Field(85.0, ge=0, le=100, description="usage of a file system that is a warning")
    disk_critical_percent: float = Field(95.0, ge=0, le=100, description="usage of a file system that is critical")
    load_warning_per_core: float = Field(
        4.0, ge=0, le=1000, description="load of one minute per core that is a warning"
    )
    alert_after: int = Field(3, ge=1, le=100, description="measurements in a row until an alert begins, or is over")
    ease_percent: float = Field(
        5.0, ge=0, le=50, description="how far below its threshold a usage has to be to be over"
    )

    @model_validator(mode="after")
    def _agree(self) -> HostSettings:
        for name in ("cpu", "memory", "disk"):
            warning, critical = f"{name}_warning_percent", f"{name}_critical_percent"
            if 0 < getattr(self, critical) < getattr(self, warning):
                raise make_conflict("{} must not be above {}", warning, critical)
        return self


class SourceSettings(Section):
    """The sources: `solowire source …`."""

    server: str | None = Field(
        None, max_length=256, description="what to call the server that is watched; default: this host's name"
    )
    state_dir: Path | None = Field(
        None, description="where sources keep their places; default: sources in the data directory"
    )
    queries: QueriesSettings = QueriesSettings()
    server_log: ServerLogSettings = ServerLogSettings()
    zones: ZonesSettings = ZonesSettings()
    configuration: ConfigurationSettings = ConfigurationSettings()
    statistics: StatisticsSettings = StatisticsSettings()
    security: SecuritySettings = SecuritySettings()
    drift: DriftSettings = DriftSettings()
    forwarders: ForwardersSettings = ForwardersSettings()
    host: HostSettings = HostSettings()
