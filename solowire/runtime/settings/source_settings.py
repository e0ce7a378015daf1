"""The settings of the sources: what each part of one watches. A part whose first setting isn't set is off."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from solowire.runtime.settings.section import PathList, Section, Table, TextList


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
        default_factory=list, description="the zones to watch; if none are named, all that are found"
    )
    found_at: str | None = Field(
        None, description="named's statistics channel, such as http://127.0.0.1:8053, which lists the zones"
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
    find_interval_s: float = Field(10.0, ge=0.1, le=86_400, description="how often the zones are listed anew")
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
    security: SecuritySettings = SecuritySettings()
    drift: DriftSettings = DriftSettings()
