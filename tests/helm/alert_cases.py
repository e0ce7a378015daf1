"""For each alert series that fire it and series that must not, as `promtool test rules` has them.

Values are promtool's: `0x20` is 0 and twenty more of it, `0+5x20` grows by 5; one each half minute.
"""

from __future__ import annotations

from typing import NamedTuple

Series = dict[str, str]


class AlertCase(NamedTuple):
    """One alert. fires: series under which it fires at `minutes`. quiet: under which it does not, however near."""

    alert: str
    minutes: int
    fires: Series
    quiet: tuple[Series, ...]


GATEWAY = 'job="solowire-gateway",instance="g:8000",namespace="dns"'
SECOND = 'job="solowire-gateway",instance="h:8000",namespace="dns"'
ROUTER = 'job="solowire-router",instance="r:9000",namespace="dns"'
SHARD = 'job="solowire-shard",instance="s:9000",namespace="dns",shard="0"'
OTHER = 'job="solowire-shard",instance="t:9000",namespace="dns",shard="1"'
ELSEWHERE = 'job="solowire-router",instance="q:9000",namespace="staging"'

SOURCE = 'job="solowire-source",instance="ns1:9000",kind="bind9",server="ns1"'

MIB = 1024**2
DAY = 86_400  # promtool begins at the time 0
INFINITE = " ".join(["Inf"] * 31)
LATENCY = f"solowire_shard_delivery_latency_seconds_bucket{{{SHARD},le="
COMMIT = f"solowire_router_journal_commit_seconds_bucket{{{ROUTER},le="
OPEN = f'solowire_shard_connections{{{SHARD},group="viewer",codec="json",transport="direct"}}'
CLOSED = f'solowire_shard_connections_closed_total{{{SHARD},code="4413"}}'

CASES = [
    AlertCase(
        "SolowireProcessDown",
        5,
        {f"up{{{GATEWAY}}}": "1 0x20"},
        ({f"up{{{GATEWAY}}}": "1 0x3 1x20"}, {'up{job="node",instance="n:9100"}': "0x20"}),
    ),
    AlertCase(
        "SolowireProcessRestarts",
        12,
        {f"process_start_time_seconds{{{SHARD}}}": "100x5 200x5 300x5 400x10"},
        (
            {f"process_start_time_seconds{{{SHARD}}}": "100x5 200x20"},
            {'process_start_time_seconds{job="node",instance="n:9100"}': "100x5 200x5 300x5 400x10"},
        ),
    ),
    AlertCase(
        "SolowirePublishUnavailable",
        3,
        {f"solowire_gateway_publish_available{{{g}}}": "1 0x20" for g in (GATEWAY, SECOND)},
        (
            {
                f"solowire_gateway_publish_available{{{GATEWAY}}}": "0x20",
                f"solowire_gateway_publish_available{{{SECOND}}}": "1x20",
            },
            {f"solowire_gateway_publish_available{{{GATEWAY}}}": "1 0 1x20"},
        ),
    ),
    AlertCase(
        "SolowireGatewayCutOff",
        3,
        {
            f"solowire_gateway_publish_available{{{GATEWAY}}}": "0x20",
            f"solowire_gateway_publish_available{{{SECOND}}}": "1x20",
        },
        ({f"solowire_gateway_publish_available{{{g}}}": "0x20" for g in (GATEWAY, SECOND)},),
    ),
    AlertCase(
        "SolowireJournalUnavailable",
        3,
        {f"solowire_router_journal_available{{{ROUTER}}}": "1 0x20"},
        ({f"solowire_router_journal_available{{{ROUTER}}}": "1 0 1x20"},),
    ),
    AlertCase(
        "SolowireNoShards",
        3,
        {f"solowire_router_shards{{{ROUTER}}}": "2 0x20"},
        ({f"solowire_router_shards{{{ROUTER}}}": "1x20"},),
    ),
    AlertCase(
        "SolowireShardOutOfRing",
        8,
        {
            f"solowire_shard_lease_granted_slots{{{SHARD}}}": "10x30",
            f"solowire_shard_lease_granted_slots{{{OTHER}}}": "0x30",
            f"solowire_router_shards{{{ROUTER}}}": "1x30",
            f"solowire_router_draining_shards{{{ROUTER}}}": "0x30",
        },
        (
            {
                f"solowire_shard_lease_granted_slots{{{SHARD}}}": "10x30",
                f"solowire_shard_lease_granted_slots{{{OTHER}}}": "0x30",
                f"solowire_router_shards{{{ROUTER}}}": "1x30",
                f"solowire_router_draining_shards{{{ROUTER}}}": "1x30",
            },
        ),
    ),
    AlertCase(
        "SolowireTwoRouters",
        4,
        {
            f"solowire_router_shards{{{ROUTER}}}": "2x20",
            'solowire_router_shards{job="solowire-router",instance="q:9000",namespace="dns"}': "2x20",
        },
        (
            {f"solowire_router_shards{{{ROUTER}}}": "2x20", f"solowire_router_shards{{{ELSEWHERE}}}": "2x20"},
            # One router, scraped by two jobs.
            {
                f"solowire_router_shards{{{ROUTER}}}": "2x20",
                'solowire_router_shards{job="again",instance="r:9000",namespace="dns"}': "2x20",
            },
        ),
    ),
    AlertCase(
        "SolowireDrainStuck",
        70,
        {f"solowire_router_draining_shards{{{ROUTER}}}": "1x200"},
        ({f"solowire_router_draining_shards{{{ROUTER}}}": "1x60 0x10 1x60"},),
    ),
    AlertCase(
        "SolowireUsersLost",
        15,
        {OPEN: "150x20 20x20"},
        ({OPEN: "1000x20 100x2 980x20"}, {OPEN: "1000x20 600x20"}, {OPEN: "60x20 2x20"}),
    ),
    AlertCase(
        "SolowireJournalDiskFull",
        3,
        {f"solowire_router_journal_disk_free_bytes{{{ROUTER}}}": f"{100 * MIB}x20"},
        (
            {f"solowire_router_journal_disk_free_bytes{{{ROUTER}}}": f"{300 * MIB}x20"},
            {f"solowire_router_journal_disk_free_bytes{{{ROUTER}}}": INFINITE},
        ),
    ),
    AlertCase(
        "SolowireJournalDiskTooSmall",
        12,
        {
            f"solowire_router_journal_disk_free_bytes{{{ROUTER}}}": f"{900 * MIB}x40",
            f"solowire_router_journal_bytes{{{ROUTER}}}": f"{100 * MIB}x40",
            f"solowire_router_journal_max_bytes{{{ROUTER}}}": f"{2048 * MIB}x40",
        },
        (
            {
                f"solowire_router_journal_disk_free_bytes{{{ROUTER}}}": f"{900 * MIB}x40",
                f"solowire_router_journal_bytes{{{ROUTER}}}": f"{1600 * MIB}x40",
                f"solowire_router_journal_max_bytes{{{ROUTER}}}": f"{2048 * MIB}x40",
            },
        ),
    ),
    AlertCase(
        "SolowireCommitsSlow",
        12,
        {COMMIT + '"0.181019"}': "0+10x40", COMMIT + '"0.512"}': "0+20x40", COMMIT + '"+Inf"}': "0+20x40"},
        ({COMMIT + '"0.181019"}': "0+1000x40", COMMIT + '"0.512"}': "0+1001x40", COMMIT + '"+Inf"}': "0+1001x40"},),
    ),
    AlertCase(
        "SolowireEventsSkipped",
        5,
        {f"solowire_shard_unknown_type_events_total{{{SHARD}}}": "0x4 3x20"},
        (
            {
                f"solowire_shard_unknown_type_events_total{{{SHARD}}}": "3x20",
                f"solowire_shard_event_decode_errors_total{{{SHARD}}}": "0x20",
                f"solowire_shard_event_processing_errors_total{{{SHARD}}}": "0x20",
            },
        ),
    ),
    AlertCase(
        "SolowireHistoryIndexFails",
        30,
        {f"solowire_router_history_index_errors_total{{{ROUTER}}}": "0x10 1x10 2x10 4x40"},
        ({f"solowire_router_history_index_errors_total{{{ROUTER}}}": "0x10 1x60"},),
    ),
    AlertCase(
        "SolowireLogOverloaded",
        12,
        {f'solowire_router_publish_rejected_total{{{ROUTER},reason="overloaded"}}': "0+6x40"},
        (
            {f'solowire_router_publish_rejected_total{{{ROUTER},reason="overloaded"}}': "0+2x40"},
            {f'solowire_router_publish_rejected_total{{{ROUTER},reason="journal_unavailable"}}': "0+30x40"},
        ),
    ),
    AlertCase(
        "SolowireGatewayOverloaded",
        12,
        {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="overloaded"}}': "0+6x40"},
        (
            {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="overloaded"}}': "0+2x40"},
            {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="too_slow"}}': "0+30x40"},
        ),
    ),
    AlertCase(
        "SolowirePublisherTooFast",
        25,
        {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="publish_rate_limited"}}': "0+60x80"},
        (
            {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="publish_rate_limited"}}': "0+15x80"},
            {f'solowire_gateway_publish_rejected_total{{{GATEWAY},reason="publish_rate_limited"}}': "0+300x10 3000x80"},
        ),
    ),
    AlertCase(
        "SolowireShardLags",
        3,
        {f'solowire_router_shard_lag_seconds{{{ROUTER},shard="0"}}': "0 3x20"},
        ({f'solowire_router_shard_lag_seconds{{{ROUTER},shard="0"}}': "0 3 1.5x20"},),
    ),
    AlertCase(
        "SolowireDeliverySlow",
        20,
        {LATENCY + '"1.024"}': "0+10x60", LATENCY + '"4.096"}': "0+20x60", LATENCY + '"+Inf"}': "0+20x60"},
        ({LATENCY + '"1.024"}': "0+1000x60", LATENCY + '"4.096"}': "0+1001x60", LATENCY + '"+Inf"}': "0+1001x60"},),
    ),
    AlertCase(
        "SolowireReadersCutOff",
        20,
        {CLOSED: "0+5x60", OPEN: "100x60"},
        ({CLOSED: "0+5x60", OPEN: "100000x60"}, {CLOSED: "0x20 3x60", OPEN: "10x60"}),
    ),
    AlertCase(
        "SolowireLoopLate",
        4,
        {f"solowire_router_event_loop_lag_seconds{{{ROUTER}}}": "0.01 0.9x20"},
        ({f"solowire_router_event_loop_lag_seconds{{{ROUTER}}}": "0.01 0.9 0.02x20"},),
    ),
    AlertCase(
        "SolowireNearConnectionLimit",
        15,
        {
            f'solowire_router_group_used_slots{{{ROUTER},group="viewer"}}': "800x40",
            f'solowire_router_group_used_slots{{{ROUTER},group="admin"}}': "150x40",
            f"solowire_router_max_connections{{{ROUTER}}}": "1000x40",
        },
        (
            {
                f'solowire_router_group_used_slots{{{ROUTER},group="viewer"}}': "800x40",
                f"solowire_router_max_connections{{{ROUTER}}}": "1000x40",
            },
        ),
    ),
    AlertCase(
        "SolowireUsersRefused",
        12,
        {f'solowire_shard_connections_rejected_total{{{SHARD},reason="over_limit"}}': "0+60x40"},
        (
            {f'solowire_gateway_connections_rejected_total{{{GATEWAY},reason="over_limit"}}': "0+10x40"},
            {f'solowire_gateway_connections_rejected_total{{{GATEWAY},reason="missing_token"}}': "0+600x40"},
        ),
    ),
    AlertCase(
        "SolowireFilesNearLimit",
        8,
        {f"process_open_fds{{{SHARD}}}": "950x30", f"process_max_fds{{{SHARD}}}": "1000x30"},
        ({f"process_open_fds{{{SHARD}}}": "850x30", f"process_max_fds{{{SHARD}}}": "1000x30"},),
    ),
    AlertCase(
        "SolowireTokensFail",
        20,
        {f"solowire_gateway_auth_failures_total{{{GATEWAY}}}": "0+300x60"},
        ({f"solowire_gateway_auth_failures_total{{{GATEWAY}}}": "0+60x60"},),
    ),
    AlertCase(
        "SolowireKeysStale",
        8,
        {f"solowire_gateway_jwks_age_seconds{{{GATEWAY}}}": "4000x30"},
        (
            {f"solowire_gateway_jwks_age_seconds{{{GATEWAY}}}": "0x30"},
            {f"solowire_gateway_jwks_age_seconds{{{GATEWAY}}}": "3000x30"},
        ),
    ),
    AlertCase(
        "SolowireAuditIncomplete",
        5,
        {f"solowire_gateway_audit_records_dropped_total{{{GATEWAY}}}": "0x4 2x20"},
        ({f"solowire_gateway_audit_records_dropped_total{{{GATEWAY}}}": "2x20"},),
    ),
    AlertCase(
        "SolowireVersionsMixed",
        15,
        {f"solowire_shard_backplane_decode_errors_total{{{SHARD}}}": "0+1x60"},
        ({f"solowire_shard_backplane_decode_errors_total{{{SHARD}}}": "7x60"},),
    ),
    AlertCase(
        "SolowireClocksApart",
        8,
        {
            f"solowire_router_clock_seconds{{{ROUTER}}}": "0+30x30",
            f"solowire_shard_clock_seconds{{{SHARD}}}": "12+30x30",
        },
        (
            {
                f"solowire_router_clock_seconds{{{ROUTER}}}": "0+30x30",
                f"solowire_shard_clock_seconds{{{SHARD}}}": "-1+30x30",
                f"solowire_gateway_clock_seconds{{{GATEWAY}}}": "1+30x30",
            },
            # Another system's clocks are its own.
            {
                f"solowire_router_clock_seconds{{{ROUTER}}}": "0+30x30",
                f"solowire_router_clock_seconds{{{ELSEWHERE}}}": "60+30x30",
            },
        ),
    ),
    AlertCase(
        "SolowireStrangersAtBackplane",
        20,
        {
            f"solowire_router_backplane_connections_accepted_total{{{ROUTER}}}": "0+2x60",
            f"solowire_router_backplane_connections_authenticated_total{{{ROUTER}}}": "0+1x60",
        },
        (
            {
                f"solowire_router_backplane_connections_accepted_total{{{ROUTER}}}": "0x20 5x60",
                f"solowire_router_backplane_connections_authenticated_total{{{ROUTER}}}": "0x80",
            },
            {
                f"solowire_router_backplane_connections_accepted_total{{{ROUTER}}}": "0+5x60",
                f"solowire_router_backplane_connections_authenticated_total{{{ROUTER}}}": "0+5x60",
            },
        ),
    ),
    AlertCase(
        "SolowireCertificateEnds",
        70,
        {f"solowire_certificate_expiry_timestamp_seconds{{{GATEWAY}}}": f"{13 * DAY}x200"},
        (
            {f"solowire_certificate_expiry_timestamp_seconds{{{GATEWAY}}}": f"{30 * DAY}x200"},
            # It is renewed.
            {f"solowire_certificate_expiry_timestamp_seconds{{{GATEWAY}}}": f"{13 * DAY}x100 {90 * DAY}x100"},
        ),
    ),
    AlertCase(
        "SolowireCertificateEndsSoon",
        10,
        {f"solowire_certificate_expiry_timestamp_seconds{{{SHARD}}}": f"{DAY}x60"},
        ({f"solowire_certificate_expiry_timestamp_seconds{{{SHARD}}}": f"{5 * DAY}x60"},),
    ),
    AlertCase(
        "SolowireAlertsActive",
        35,
        {f"solowire_router_alerts_active{{{ROUTER}}}": "1x90"},
        ({f"solowire_router_alerts_active{{{ROUTER}}}": "1x20 0x2 1x50"},),
    ),
    AlertCase(
        "SolowireSourcePartStands",
        12,
        {f'solowire_source_part_running{{{SOURCE},part="zones"}}': "0x40"},
        ({f'solowire_source_part_running{{{SOURCE},part="zones"}}': "0x10 1 0x30"},),
    ),
    AlertCase(
        "SolowireSourceLoses",
        5,
        {f'solowire_source_events_lost_total{{{SOURCE},part="dnstap"}}': "0x4 9x20"},
        ({f'solowire_source_events_dropped_total{{{SOURCE},part="dnstap"}}': "9x20"},),
    ),
    AlertCase(
        "SolowireSourceClockSkewed",
        12,
        {f"solowire_source_clock_skew_seconds{{{SOURCE}}}": "-3x40"},
        ({f"solowire_source_clock_skew_seconds{{{SOURCE}}}": "1.5x40"},),
    ),
]
