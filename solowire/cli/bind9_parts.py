"""The parts of the BIND 9 source, made of the settings, and what one of them tells another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_data_directory
from solowire.runtime.settings import Settings

if TYPE_CHECKING:
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import SourcePart
    from solowire.sources.agent.traffic_figures import TrafficObserver
    from solowire.sources.bind9.dnstap.dnstap_part import DnstapPart
    from solowire.sources.bind9.queries.query_observer import QueryObserver
    from solowire.sources.bind9.security.drift_part import DriftPart
    from solowire.sources.bind9.security.security_part import SecurityPart
    from solowire.sources.bind9.server.bind_state import BindState
    from solowire.sources.bind9.server.config_part import ConfigPart
    from solowire.sources.bind9.server.server_lines import SecurityObserver
    from solowire.sources.bind9.statistics_channel import StatisticsChannel
    from solowire.sources.bind9.zones.observed_change import ChangeObserver
    from solowire.sources.bind9.zones.update_authors import UpdateAuthors
    from solowire.sources.forwarders.forwarders_part import ForwardersPart


def make_bind9_parts(settings: Settings, outlet: EventOutlet) -> Sequence[SourcePart]:
    """The parts that are set up. Raises ConfigError if there are none."""
    from solowire.sources.bind9.server.bind_state import BindState
    from solowire.sources.bind9.zones.update_authors import UpdateAuthors

    authors = UpdateAuthors(settings.source.zones.actors)
    security = _make_security_parts(settings, outlet)
    drift = _make_drift_parts(settings, outlet)
    configuration = _make_configuration_parts(settings, outlet)
    forwarders = _make_forwarders_parts(settings, outlet)
    dnstap = _make_dnstap_parts(settings, outlet, security, [part.note_traffic for part in forwarders])
    channel = _make_channel(settings)
    state = BindState(outlet.server)
    parts: list[SourcePart] = [
        *dnstap,
        *_make_query_parts(settings, outlet, security),
        *configuration,
        *_make_server_log_parts(settings, outlet, state, authors, security, configuration),
        *_make_statistics_parts(settings, outlet, channel, state, dnstap),
        *_make_zone_parts(settings, outlet, channel, authors, [part.observe_change for part in drift]),
        *drift,
        *forwarders,
    ]
    if parts:
        parts += security
    else:
        raise ConfigError(
            "nothing to watch: name a dnstap socket with --dnstap or a query log with --query-log, another log of "
            "named with --log, a name server with --zones-of, or see `solowire source bind9 --help`"
        )
    return parts


def _make_security_parts(settings: Settings, outlet: EventOutlet) -> Sequence[SecurityPart]:
    """What judges queries, policy hits and refusals that other parts tell of."""
    from solowire.sources.bind9.security.security_part import SecurityPart
    from solowire.sources.bind9.security.security_rule import DEFAULT_RULES, parse_rules

    security = settings.source.security
    if not security.enabled:
        return ()
    if security.rules is None:
        return [SecurityPart(parse_rules(DEFAULT_RULES, "that are built in"), outlet)]
    try:
        text = security.rules.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(
            f"the rules {security.rules} can't be read: {reason}; `solowire source rules` prints some to begin with"
        ) from None
    return [SecurityPart(parse_rules(text, str(security.rules)), outlet)]


def _make_drift_parts(settings: Settings, outlet: EventOutlet) -> Sequence[DriftPart]:
    """What judges changes of records. Raises ConfigError if nobody tells of them."""
    from solowire.sources.bind9.security.drift_part import DriftPart
    from solowire.sources.bind9.security.pipelines import Pipelines

    drift = settings.source.drift
    if not drift.pipelines:
        return ()
    if settings.source.zones.address is None:
        raise ConfigError(
            "source.drift.pipelines is set, but nobody watches the zones: name the name server with --zones-of"
        )
    if not settings.source.server_log.files:
        raise ConfigError(
            "source.drift.pipelines is set, but nobody reads who makes changes: name the log to which named writes the "
            "category update with --log"
        )
    pipelines = Pipelines(drift.pipelines)
    return [DriftPart(pipelines, outlet, allows_unknown=drift.allows_unknown)]


def _make_forwarders_parts(settings: Settings, outlet: EventOutlet) -> Sequence[ForwardersPart]:
    """What probes forwarders, if this source is to do it. Raises ConfigError if none are named."""
    from solowire.sources.forwarders.forwarders_part import ForwardersPart

    forwarders = settings.source.forwarders
    if not forwarders.with_bind9:
        return ()
    if forwarders.named_conf is None and not forwarders.addresses:
        named_conf = settings.source.configuration.named_conf
        if named_conf is None:
            raise ConfigError(
                "no forwarders to probe: give named's configuration, which names them, with --named-conf "
                "/etc/bind/named.conf, or name them in source.forwarders.addresses"
            )
        forwarders = forwarders.model_copy(update={"named_conf": named_conf})
    return [ForwardersPart(forwarders, outlet)]


def _make_dnstap_parts(
    settings: Settings,
    outlet: EventOutlet,
    observers: Sequence[QueryObserver],
    traffic_observers: Sequence[TrafficObserver],
) -> Sequence[DnstapPart]:
    """What is told of queries by dnstap. observers: are told of each. traffic_observers: of what forwarders did."""
    from solowire.sources.bind9.dnstap.dnstap_part import DnstapPart

    queries = settings.source.queries
    if queries.dnstap is None:
        return ()
    return [
        DnstapPart(
            queries.dnstap,
            outlet,
            group=queries.dnstap_group,
            zones=queries.zones,
            stats_interval_s=queries.stats_interval_s,
            observers=observers,
            traffic_observers=traffic_observers,
        )
    ]


def _make_query_parts(
    settings: Settings, outlet: EventOutlet, observers: Sequence[QueryObserver]
) -> Sequence[SourcePart]:
    """What reads queries in the query log. observers: are told of each."""
    from solowire.sources.bind9.queries.query_lines import QueryLines
    from solowire.sources.files.log_part import LogPart
    from solowire.sources.files.pipe_part import STANDARD_INPUT, PipePart

    queries = settings.source.queries
    if queries.query_log is not None and queries.dnstap is not None:
        raise ConfigError("--dnstap and --query-log together would tell of each query twice; name one of them")
    if queries.query_log is None:
        return ()
    lines = QueryLines(queries.zones, observers)
    if queries.query_log == STANDARD_INPUT:
        return [PipePart(lines, outlet, name="query_log")]
    state_dir = _find_state_dir(settings)
    from_start = queries.from_start
    return [LogPart(queries.query_log, lines, outlet, name="query_log", from_start=from_start, state_dir=state_dir)]


def _make_configuration_parts(settings: Settings, outlet: EventOutlet) -> Sequence[ConfigPart]:
    """What watches named.conf."""
    from solowire.sources.bind9.server.config_part import ConfigPart

    named_conf = settings.source.configuration.named_conf
    if named_conf is None:
        return ()
    has_outcomes = bool(settings.source.server_log.files)
    return [ConfigPart(named_conf, outlet, state_dir=_find_state_dir(settings), has_outcomes=has_outcomes)]


def _make_server_log_parts(
    settings: Settings,
    outlet: EventOutlet,
    state: BindState,
    authors: UpdateAuthors,
    security: Sequence[SecurityObserver],
    configuration: Sequence[ConfigPart],
) -> Sequence[SourcePart]:
    """What tells of reloads, status, policy hits, refusals and updates: one part for each log."""
    from solowire.sources.bind9.server.reload_log import ReloadLog
    from solowire.sources.bind9.server.secret_mask import SecretMask
    from solowire.sources.bind9.server.server_lines import ServerLines
    from solowire.sources.files.log_part import LogPart
    from solowire.sources.files.pipe_part import STANDARD_INPUT, PipePart

    server_log = settings.source.server_log
    if not server_log.files:
        return ()
    authors.has_feed = True
    mask_line = configuration[0].mask_line if configuration else SecretMask(b"").mask_text
    lines = ServerLines(
        ReloadLog(mask_line),
        state,
        authors=authors,
        security=security,
        outcomes=configuration,
    )
    if STANDARD_INPUT in server_log.files and settings.source.queries.query_log == STANDARD_INPUT:
        raise ConfigError("standard input can be one log: name a file with --query-log or with --log")
    state_dir = _find_state_dir(settings) / "server_log"  # a file may hold queries, too, and has two places then
    parts: list[SourcePart] = []
    for path, name in zip(server_log.files, _name_log_parts(server_log.files), strict=True):
        if path == STANDARD_INPUT:
            parts.append(PipePart(lines, outlet, name=name))
        else:
            from_start = server_log.from_start
            parts.append(LogPart(path, lines, outlet, name=name, from_start=from_start, state_dir=state_dir))
    return parts


def _make_zone_parts(
    settings: Settings,
    outlet: EventOutlet,
    channel: StatisticsChannel | None,
    authors: UpdateAuthors,
    observers: Sequence[ChangeObserver],
) -> Sequence[SourcePart]:
    """What tells of changed records and zones. observers: are told of each change."""
    from solowire.sources.bind9.zones.zones_part import ZonesPart

    zones = settings.source.zones
    if zones.address is None:
        return ()
    state_dir = _find_state_dir(settings)
    return [ZonesPart(zones, outlet, state_dir, channel=channel, authors=authors, observers=observers)]


def _make_channel(settings: Settings) -> StatisticsChannel | None:
    from solowire.sources.bind9.statistics_channel import StatisticsChannel

    url = settings.source.statistics.url
    return None if url is None else StatisticsChannel(url)


def _make_statistics_parts(
    settings: Settings,
    outlet: EventOutlet,
    channel: StatisticsChannel | None,
    state: BindState,
    dnstap: Sequence[DnstapPart],
) -> Sequence[SourcePart]:
    """What asks the statistics channel."""
    from solowire.sources.bind9.server.statistics_part import StatisticsPart

    statistics = settings.source.statistics
    if channel is None:
        return ()
    return [
        StatisticsPart(
            channel,
            outlet,
            state,
            interval_s=statistics.interval_s,
            zones_interval_s=statistics.zones_interval_s,
            counts_queries=not dnstap,
            drop_observers=[part.note_drops for part in dnstap],
        )
    ]


def _name_log_parts(paths: Sequence[Path]) -> list[str]:
    """What the statuses of several logs' parts are called: `server_log`, with the file's name if there are more."""
    if len(paths) == 1:
        return ["server_log"]
    names = [path.name for path in paths]
    return [f"server_log {path.name if names.count(path.name) == 1 else path}" for path in paths]


def _find_state_dir(settings: Settings) -> Path:
    return settings.source.state_dir or make_data_directory(settings) / "sources"
