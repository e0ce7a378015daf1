"""The files whose tests take longest, longest first.

Tests of a file run in one process. A file that takes a minute and comes last would keep one worker alone for it, so
these come first. `pytest --durations 0` says how long tests take.
"""

SLOW_FILES = (
    "tests/e2e/test_cli.py",
    "tests/e2e/test_commands.py",
    "tests/chaos/test_chaos.py",
    "tests/bench/test_locust.py",
    "tests/e2e/test_deployment.py",
    "tests/e2e/test_bind9.py",
    "tests/e2e/test_dnstap.py",
    "tests/e2e/test_zones.py",
    "tests/e2e/test_processes.py",
    "tests/e2e/test_supervision.py",
    "tests/sources/bind9/test_named.py",
    "tests/e2e/test_guarded_server.py",
    "tests/sources/bind9/zones/test_zones_part.py",
    "tests/sources/bind9/dnstap/test_dnstap_named.py",
    "tests/e2e/test_revocation.py",
    "tests/bench/test_comparison.py",
    "tests/bench/test_bench.py",
    "tests/e2e/test_operating.py",
    "tests/e2e/test_limits.py",
    "tests/e2e/test_sessions.py",
    "tests/e2e/test_http_api.py",
    "tests/e2e/test_drain.py",
    "tests/e2e/test_slow_readers.py",
    "tests/e2e/test_backpressure.py",
    "tests/e2e/test_strangers.py",
    "tests/e2e/test_autobahn.py",
    "tests/gateway/test_server.py",
    "tests/sdk/test_client.py",
    "tests/gateway/front/test_relay.py",
    "tests/gateway/front/test_http_front.py",
    "tests/fanout/test_recent_log.py",
    "tests/fanout/test_filter_index.py",
    "tests/e2e/test_admission.py",
    "tests/router/log/test_sqlite_journal.py",
    "tests/router/leases/test_coordinator.py",
    "tests/workers/test_shard_model.py",
)
