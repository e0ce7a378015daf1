"""The rules and the dashboard for Prometheus and Grafana: judged by promtool, and by a Prometheus of a real system."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.helm.alert_cases import CASES, AlertCase, Series
from tests.support.certificates import make_certificate
from tests.support.requirements import need_program
from tests.support.system import ANSWER_SECONDS, System, end, free_ports, ready, running

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm/solowire/files/alerts.yaml"
DASHBOARD = ROOT / "helm/solowire/files/dashboard.json"
RUNBOOK = ROOT / "docs/operations.md"
RUNBOOK_URL = "https://solowire.example/docs/operations.html#"

METRIC = re.compile(r"\b(?:solowire|process)_\w+")
LABELS = re.compile(r"\b(?:by|on|without|ignoring) \(([\w, ]+)\)|([a-z]\w*)(?:=|!=|=~|!~)\"")
SCRAPED = {"namespace", "job", "instance", "le", "alertname", "severity", "alertstate"}
"""Labels that Prometheus gives, and those of its own series."""
SUFFIXES = ("_bucket", "_count", "_sum")


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def read_alerts() -> list[dict[str, Any]]:
    return [rule for rule in read_rules() if "alert" in rule]


def read_panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def read_queries() -> list[str]:
    """The dashboard's, with its variables as "all" has them."""
    found = [target["expr"] for panel in read_panels() for target in panel["targets"]]
    return [query.replace("$__rate_interval", "1m").replace("$namespace", ".*") for query in found]


# ---------------------------------------------------------------------------------------------- what promtool says


def test_promtool_takes_the_rules() -> None:
    """Syntax, names and the templates of all texts are right."""
    done = subprocess.run(
        [need_program("promtool"), "check", "rules", "--lint-fatal", str(RULES)],
        capture_output=True,
        check=False,
        timeout=30,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def make_unit_test(name: str, series: Series, alert: str, minutes: int, count: int) -> dict[str, Any]:
    """One of promtool's: how many alerts of this name fire at `minutes`."""
    expected = [{"labels": "{}", "value": count}] if count else []
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "name": name,
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": expected}],
    }


def make_waiting_test(case: AlertCase, minutes: int) -> dict[str, Any]:
    """One of promtool's: before it fires, the alert was pending for so long, at each evaluation."""
    query = f'max(count_over_time(ALERTS{{alertname="{case.alert}",alertstate="pending"}}[3h]))'
    expected = [{"labels": "{}", "value": 2 * minutes}]
    test = make_unit_test(f"{case.alert} waits", case.fires, case.alert, case.minutes, 1)
    test["promql_expr_test"] = [{"expr": query, "eval_time": f"{case.minutes}m", "exp_samples": expected}]
    return test


def read_minutes(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([mh])", duration).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "h" else 1)


def test_each_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    """Every alert has series that fire it, when they have lasted long enough, and series that come near and don't."""
    assert Counter(case.alert for case in CASES) == Counter(rule["alert"] for rule in read_alerts())
    tests = [make_unit_test(f"{c.alert} fires", c.fires, c.alert, c.minutes, 1) for c in CASES]
    tests += [
        make_unit_test(f"{c.alert} is quiet, {n}", series, c.alert, c.minutes, 0)
        for c in CASES
        for n, series in enumerate(c.quiet, 1)
    ]
    waits = {rule["alert"]: read_minutes(rule["for"]) for rule in read_alerts() if "for" in rule}
    tests += [make_waiting_test(case, waits[case.alert]) for case in CASES if case.alert in waits]
    file = tmp_path / "alerts.json"
    # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": tests}))
    done = subprocess.run(
        [need_program("promtool"), "test", "rules", str(file)], capture_output=True, check=False, timeout=60, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------- what operators are told


def test_each_alert_says_what_an_operator_needs() -> None:
    """A severity, two texts, and the runbook's own part about it."""
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    alerts = read_alerts()
    assert [name for name in headings if name.startswith("Solowire")] == [rule["alert"] for rule in alerts]
    for rule in alerts:
        name, texts = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(texts) == {"summary", "description", "runbook_url"}, name
        assert texts["summary"][-1] != ".", name
        assert texts["description"][-1] == ".", name
        assert texts["runbook_url"] == RUNBOOK_URL + name.lower(), name


def test_what_wakes_somebody_waits_for_a_minute() -> None:
    """No critical alert for what is over within a scrape or two."""
    for rule in read_alerts():
        if rule["labels"]["severity"] == "critical":
            assert re.fullmatch(r"[1-9]\d*m", rule["for"]), rule["alert"]


def test_each_panel_has_its_place() -> None:
    """Ids are given once, panels don't overlap, and each says what it shows, of which source."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in read_panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
    assert dashboard["uid"] == "solowire"


# ------------------------------------------------------------------------------- on a system that really runs


class Watched(NamedTuple):
    """A running system, and a Prometheus that scrapes it and evaluates the rules. names, labels: in its /metrics."""

    system: System
    prometheus: httpx.Client
    names: set[str]
    labels: set[str]

    def ask(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = self.prometheus.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        found: dict[str, Any] = answer["data"]
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    need_program("prometheus")
    place = tmp_path_factory.mktemp("watched")
    first = free_ports(5)
    ports = {"shard-0": first, "shard-1": first + 1, "router": first + 2, "source": first + 4}
    certificate = make_certificate(place, "127.0.0.1", days=90)
    settings = {
        "SHARD__API_PORT": first,
        "ROUTER__METRICS_PORT": ports["router"],
        "LISTEN__TLS_CERTIFICATE_FILE": certificate,
        "LISTEN__TLS_KEY_FILE": certificate,
    }
    trust = ssl.create_default_context(cafile=str(certificate))
    with running(place / "data", shards=2, settings=settings) as system:
        targets = {**ports, "gateway": system.port}
        source = start_source(system, certificate, ports["source"])
        jobs = {"router": ["router"], "gateway": ["gateway"], "shard": ["shard-0", "shard-1"], "source": ["source"]}
        schemes = dict.fromkeys(targets, "http") | {"gateway": "https"}
        addresses = [f"{schemes[name]}://127.0.0.1:{port}/metrics" for name, port in targets.items()]
        texts = [httpx.get(address, trust_env=False, verify=trust).text for address in addresses]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": f"solowire-{job}",
                    "scheme": schemes[names[0]],
                    "tls_config": {"ca_file": str(certificate)},
                    "static_configs": [{"targets": [f"127.0.0.1:{targets[name]}" for name in names]}],
                }
                for job, names in jobs.items()
            ],
        }
        (place / "prometheus.yml").write_text(json.dumps(config))
        process = start_prometheus(place, first + 3)
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{first + 3}", timeout=ANSWER_SECONDS, trust_env=False
            ) as http:
                found = Watched(system, http, *read_metrics("".join(texts)))
                found.names.add("solowire_source_clock_skew_seconds")  # which a source says when it has measured it
                system.wait_until(lambda: has_scraped(found), "Prometheus has scraped all and judged the rules")
                yield found
        finally:
            assert (end(process), end(source)) == (0, 0)


def start_source(system: System, certificate: Path, port: int) -> subprocess.Popen[str]:
    """A source of this host, which serves its metrics; returns when it is ready."""
    system.environment |= {"SOLOWIRE_LISTEN__API_PORT": str(port), "SOLOWIRE_CA_FILE": str(certificate)}
    source = system.spawn("source", "host", "--url", f"https://127.0.0.1:{system.port}", "--server", "ns1")
    system.wait_until(lambda: ready(f"http://127.0.0.1:{port}"), "the source is ready")
    return source


def start_prometheus(place: Path, port: int) -> subprocess.Popen[str]:
    with (place / "prometheus.log").open("w") as log:
        return subprocess.Popen(
            [
                need_program("prometheus"),
                f"--config.file={place}/prometheus.yml",
                f"--storage.tsdb.path={place}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
        )


def read_metrics(text: str) -> tuple[set[str], set[str]]:
    """Names and labels in the text of scrapes."""
    names = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    labels = set(re.findall(r"[{,](\w+)=\"", text))
    table = re.findall(r"^\| `solowire_\w+{([\w,]+)}` \|", RUNBOOK.read_text(), re.MULTILINE)
    return names, labels | {label for labels in table for label in labels.split(",")}


def has_scraped(watched: Watched) -> bool:
    try:
        up = watched.ask("query", query="up")["result"]
        rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    except (httpx.HTTPError, AssertionError, json.JSONDecodeError):
        return False
    return len(up) == 5 and len(rules) == len(read_rules()) and all(rule["health"] == "ok" for rule in rules)


def test_every_metric_that_is_named_exists(watched: Watched) -> None:
    """Rules and dashboard name no metric and no label that gateway, router and shards don't tell."""
    recorded = {rule["record"] for rule in read_rules() if "record" in rule}
    for query in [*(rule["expr"] for rule in read_rules()), *read_queries()]:
        for name in METRIC.findall(query):
            base = next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)
            assert {name, base} & (watched.names | recorded), query
        for several, one in LABELS.findall(query):
            for label in [one] if one else several.split(", "):
                assert label in watched.labels | SCRAPED, query


def test_a_system_that_is_well_fires_nothing(watched: Watched) -> None:
    """Prometheus could evaluate each rule, and none of those that need no time is true of a system that idles."""
    for group in watched.ask("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            # The disk of a machine for tests is what it is.
            if rule["type"] == "alerting" and "Disk" not in rule["name"]:
                assert rule["alerts"] == [], rule


def test_every_panel_has_a_query_that_prometheus_takes(watched: Watched) -> None:
    """No query of the dashboard is a fault, and what the autoscaler goes by is recorded, shard by shard."""
    for query in read_queries():
        watched.ask("query", query=query)
    recorded = {"query": 'solowire_connections{shard=~"0|1"}'}
    watched.system.wait_until(lambda: len(watched.ask("query", **recorded)["result"]) == 2, "it is recorded")


def test_a_router_that_is_away_is_seen(watched: Watched) -> None:
    """The gateway says that nothing can be published, and the alert is on its way."""
    router = watched.system.pid_of("router")
    os.kill(router, signal.SIGSTOP)
    try:
        watched.system.wait_until(lambda: "SolowirePublishUnavailable" in list_firing(watched), "the alert is pending")
    finally:
        os.kill(router, signal.SIGCONT)


def list_firing(watched: Watched) -> set[str]:
    """Names of the alerts that fire or are about to."""
    return {alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"]}
