"""The settings of the sources: what each part of one watches. A part whose first setting isn't set is off."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from solowire.runtime.settings.section import PathList, Section, TextList


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
