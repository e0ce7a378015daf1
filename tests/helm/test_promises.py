"""What the chart's README promises: what an upgrade renews, who reaches whom, how many there are, and how they end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError

from solowire.observability import process_tracer
from tests.helm.cases import CASES, EVERYTHING
from tests.support.chart import (
    CHART,
    MINIMAL,
    ROLES,
    Manifest,
    find,
    find_workload,
    list_pod_specs,
    load_chart,
    merge,
    render,
    render_texts,
)

RELEASED = sorted((Path(__file__).parent / "released").glob("*.yaml"))


def list_renewed(before: list[Manifest], after: list[Manifest]) -> set[str]:
    """The roles whose pods an upgrade renews."""
    templates = [{role: find_workload(m, role)["spec"]["template"] for role in ROLES} for m in (before, after)]
    return {role for role in ROLES if templates[0][role] != templates[1][role]}


@pytest.mark.parametrize(
    ("values", "renewed"),
    [
        ({"settings": {"journal": {"max_age_s": 5}}}, {"router"}),
        ({"settings": {"alerts": {"lag_s": 5}}}, {"router"}),
        ({"settings": {"publish": {"rate": 5}}}, {"router", "gateway"}),
        ({"settings": {"gateway": {"max_http_connections": 9}}}, {"gateway"}),
        ({"settings": {"replay": {"rate": 9}}}, {"shard"}),
        ({"settings": {"session": {"heartbeat_interval_s": 20}}}, {"shard"}),
        ({"settings": {"session": {"heartbeat_interval_s": 30}}}, {"shard", "edge"}),
        ({"settings": {"publish": {"max_request_bytes": 9999}}}, {"router", "gateway"}),
        ({"settings": {"limits": {"lease_s": 60}}}, {"router", "gateway", "shard"}),
        ({"router": {"settings": {"logging": {"level": "debug"}}}}, {"router"}),
        ({"gateway": {"settings": {"logging": {"level": "debug"}}}}, {"gateway"}),
        ({"shard": {"settings": {"logging": {"level": "debug"}}}}, {"shard"}),
        ({"shard": {"drainUsersPerSecond": 100}}, {"shard", "gateway"}),
        ({"connections": {"perShard": 5000}}, {"router", "shard"}),
        ({"edge": {"accessLog": True}}, {"edge"}),
        ({"edge": {"image": {"tag": "1.29"}}}, {"edge"}),
        ({"image": {"tag": "9"}}, {"router", "gateway", "shard"}),
        ({"shard": {"replicas": 5}}, set()),
        ({"gateway": {"replicas": 5, "autoscaling": {"enabled": True}}}, set()),
        ({"shard": {"autoscaling": {"enabled": True}}}, set()),
        ({"metrics": {"serviceMonitor": {"enabled": True}, "dashboard": {"enabled": True}}}, set()),
        ({"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}, set()),
        ({"expose": {"type": "httpRoute", "httpRoute": {"parentRefs": [{"name": "x"}]}}}, set()),
        ({"sources": {"host": {"command": ["host"], "tokenSecret": "t"}}}, set()),
    ],
)
def test_a_change_renews_what_it_touches(values: dict[str, Any], renewed: set[str]) -> None:
    """No other role's pods."""
    assert list_renewed(render(), render(values)) == renewed


def test_a_new_version_of_the_chart_alone_renews_nothing() -> None:
    """No pod knows the chart's version."""
    for role in ROLES:
        template = json.dumps(find_workload(render(), role)["spec"]["template"])
        assert "helm.sh/chart" not in template
        assert "app.kubernetes.io/version" not in template


def test_pods_are_renewed_in_order() -> None:
    """Gateways and edge pods: a new one first. Shards: one after the other, behind the router."""
    manifests = render()
    for role in ("gateway", "edge"):
        strategy = find_workload(manifests, role)["spec"]["strategy"]
        assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    shards = find_workload(manifests, "shard")["spec"]
    assert shards["updateStrategy"] == {"type": "RollingUpdate"}
    assert shards["minReadySeconds"] > 0
    assert read_wait(manifests, "shard") > find_workload(manifests, "router")["spec"].get("minReadySeconds", 0)
    for role in ("gateway", "shard", "edge"):
        spec = find_workload(manifests, role)["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > read_wait(manifests, role) > 0


def read_wait(manifests: list[Manifest], role: str) -> int:
    [container] = find_workload(manifests, role)["spec"]["template"]["spec"]["containers"]
    seconds: int = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return seconds


def test_a_wait_of_nothing_is_none() -> None:
    """Kubernetes takes no sleep of zero seconds everywhere."""
    manifests = render({role: {"preStopSeconds": 0} for role in ("gateway", "shard", "edge")})
    for name, spec in list_pod_specs(manifests):
        assert all("lifecycle" not in container for container in spec["containers"]), name


@pytest.mark.parametrize("role", ROLES)
def test_probes(role: str) -> None:
    """Each role is given time to start, is started again if it is stuck, and gets nobody while it is not ready."""
    [container] = find_workload(render(), role)["spec"]["template"]["spec"]["containers"]
    paths = {
        probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths["startupProbe"] == "/healthz"
    assert paths["readinessProbe"] == ("/healthz" if role == "edge" else "/readyz")
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 60
    assert container["livenessProbe"]["timeoutSeconds"] >= 5


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_selectors_find_pods(values: dict[str, Any]) -> None:
    """Each Service, policy, budget and spread selects the pods of its role, and a workload its own."""
    manifests = render(values)
    labels = {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in manifests
        if m["kind"] in ("Deployment", "StatefulSet")
    }
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector is None or manifest["kind"] == "ServiceMonitor":
            continue
        selector = selector.get("matchLabels", selector)
        found = {pods for pods, of_pods in labels.items() if selector.items() <= of_pods.items()}
        assert found == {pods for pods in labels if pods == name or pods.startswith(f"{name}-")}, (
            manifest["kind"],
            name,
        )


def list_allowed(manifests: list[Manifest], role: str, port: str) -> set[str]:
    """The roles whose pods may connect to a port of a role."""
    spec = find(manifests, "NetworkPolicy", role)["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    peers = [
        p for rule in spec["ingress"] if port in {r["port"] for r in rule["ports"]} for p in rule.get("from", [{}])
    ]
    return {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        if "podSelector" in peer and "namespaceSelector" not in peer
        else "others"
        for peer in peers
    }


def test_only_who_must_may_reach_a_role() -> None:
    """The router hears shards and gateways; users come to shards by the edge; all else is for scrapers."""
    manifests = render({"sources": {"host": {"command": ["host"], "tokenSecret": "t"}}})
    assert list_allowed(manifests, "router", "backplane") == {"gateway", "shard"}
    assert list_allowed(manifests, "router", "api") == {"others"}
    assert list_allowed(manifests, "shard", "ws") == {"edge", "gateway", "router"}
    assert list_allowed(manifests, "shard", "api") == {"gateway", "others"}
    assert list_allowed(manifests, "gateway", "http") == {"edge", "source", "others"}
    assert list_allowed(manifests, "edge", "http") == {"others"}
    assert list_allowed(manifests, "source", "api") == {"others"}
    alone = render({"networkPolicy": {"prometheusFrom": [], "edgeFrom": [{"namespaceSelector": {}}]}})
    assert list_allowed(alone, "router", "api") == set()
    assert list_allowed(alone, "gateway", "http") == {"edge"}
    assert list_allowed(alone, "edge", "http") == {"check", "others"}


def test_shards_are_scaled_by_connections() -> None:
    """At 70 % of what a shard may have; one goes at a time, when the last has drained."""
    manifests = render({"shard": {"autoscaling": {"enabled": True}}})
    scaler = find(manifests, "HorizontalPodAutoscaler", "shard")["spec"]
    [metric] = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "solowire_connections"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "7000"}
    down = scaler["behavior"]["scaleDown"]
    [policy] = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    grace_s = find_workload(manifests, "shard")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert policy["periodSeconds"] >= max(300, grace_s)
    assert down["stabilizationWindowSeconds"] >= 300
    assert find_workload(manifests, "shard")["spec"]["replicas"] == scaler["minReplicas"]


@pytest.mark.parametrize(("limit", "most"), [(10_000, 2), (14_000, 2), (14_001, 3)])
def test_as_many_shards_may_come_as_can_be_asked_for(limit: int, most: int) -> None:
    """At 7,000 each: one less couldn't hold the limit at the target, and one more would never be asked for."""
    manifests = render({"shard": {"autoscaling": {"enabled": True}}, "connections": {"max": limit}})
    assert find(manifests, "HorizontalPodAutoscaler", "shard")["spec"]["maxReplicas"] == most


def test_gateways_are_scaled_by_cpu() -> None:
    """Of what they request."""
    manifests = render({"gateway": {"autoscaling": {"enabled": True, "minReplicas": 3}}})
    scaler = find(manifests, "HorizontalPodAutoscaler", "gateway")["spec"]
    assert scaler["metrics"] == [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
    ]
    assert find_workload(manifests, "gateway")["spec"]["replicas"] == 3


def test_a_platform_may_choose_user_ids() -> None:
    """Where ids are given by the platform (OpenShift), `null` takes ours away, and no pod is root for it."""
    ids = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    manifests = render({"podSecurityContext": ids, "edge": {"runAsUser": None}})
    for name, spec in list_pod_specs(manifests):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"]), name
        assert not {"runAsUser", "runAsGroup"} & set(spec["containers"][0]["securityContext"]), name
        assert spec["securityContext"]["runAsNonRoot"], name


@pytest.mark.parametrize("has_both", [False, True])
def test_services_have_the_families_that_pods_listen_on(has_both: bool) -> None:
    """Who asks for a Service's name is given no address at which its pods refuse."""
    manifests = render({"network": {"ipv6": has_both}, "sources": {"host": {"command": ["host"], "tokenSecret": "t"}}})
    policies = {m["spec"].get("ipFamilyPolicy") for m in manifests if m["kind"] == "Service"}
    assert policies == {"PreferDualStack" if has_both else "SingleStack"}
    variables = {
        (v["name"], v.get("value"))
        for _, spec in list_pod_specs(manifests)
        for container in spec["containers"]
        for v in container.get("env", [])
    }
    address = "::" if has_both else "0.0.0.0"
    assert {value for name, value in variables if name in ("SOLOWIRE_HOST", "SOLOWIRE_LISTEN__API_HOST")} == {address}
    configuration = find(manifests, "ConfigMap", "edge")["data"]["nginx.conf"]
    assert configuration.count("listen [::]:") == (2 if has_both else 0)


def test_budgets_let_one_pod_go() -> None:
    """Of each role of several; the router has none, or its node could not be drained."""
    budgets = {m["metadata"]["name"]: m["spec"] for m in render() if m["kind"] == "PodDisruptionBudget"}
    assert set(budgets) == {"solowire-gateway", "solowire-shard", "solowire-edge"}
    assert all(b["maxUnavailable"] == 1 and b["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for b in budgets.values())


@pytest.mark.parametrize("role", ROLES)
def test_pods_are_spread_and_placed(role: str) -> None:
    """Over nodes and zones, among those of their role, unless that is off; and as each role's own values say."""
    template = find_workload(render(), role)["spec"]["template"]
    spread = {each["topologyKey"]: each for each in template["spec"]["topologySpreadConstraints"]}
    assert set(spread) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for each in spread.values():
        assert each["whenUnsatisfiable"] == "ScheduleAnyway"
        assert each["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    own = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "live", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }
    values = {"topologySpread": {"host": "off", "zone": "off"}, "priorityClassName": "usual", role: own}
    spec = find_workload(render(values), role)["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" not in spec
    assert {name: spec[name] for name in own} == own
    assert spec["priorityClassName"] == "usual"
    spec = find_workload(render(merge(values, {role: {"priorityClassName": "high"}})), role)["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "high"


def test_secrets_are_made_and_kept() -> None:
    """Random ones of the chart's own, which no uninstall takes away; or those that are given, and then no others."""
    made = find(render(), "Secret", "secrets")
    assert made["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert set(made["data"]) == {"secret", "curve-seed"}
    assert all(len(value) > 64 for value in made["data"].values())
    assert len(set(made["data"].values())) == 2
    given = render({"secrets": {"existingSecret": "mine"}})
    assert not [m for m in given if m["kind"] == "Secret"]
    assert re.findall(r'"secretKeyRef": {"name": "([^"]+)"', json.dumps(given)).count("mine") >= 7


@pytest.mark.parametrize("kind", ["ingress", "httpRoute", "loadBalancer", "none"])
def test_ways_in(kind: str) -> None:
    """One of four, each to the edge; TLS ends where the values say."""
    values = {"expose": {"type": kind, "httpRoute": {"parentRefs": [{"name": "public"}]}}}
    manifests = render(values)
    found = {m["kind"]: m for m in manifests if m["kind"] in ("Ingress", "HTTPRoute")}
    assert set(found) == {"ingress": {"Ingress"}, "httpRoute": {"HTTPRoute"}}.get(kind, set())
    service = find(manifests, "Service", "edge")["spec"]
    ports = {port["name"]: port["port"] for port in service["ports"]}
    assert service["type"] == ("LoadBalancer" if kind == "loadBalancer" else "ClusterIP")
    assert ports == ({"http": 80, "https": 443} if kind == "loadBalancer" else {"http": 80})
    configuration = find(manifests, "ConfigMap", "edge")["data"]["nginx.conf"]
    assert ("ssl_certificate " in configuration) == (kind == "loadBalancer")
    assert ("set_real_ip_from 10.0.0.0/8" in configuration) == (kind in ("ingress", "httpRoute"))
    if kind == "ingress":
        [rule] = found["Ingress"]["spec"]["rules"]
        assert rule["host"] == "live.example.com"
        assert found["Ingress"]["spec"]["tls"] == [{"hosts": ["live.example.com"], "secretName": "live-tls"}]
    if kind == "httpRoute":
        assert found["HTTPRoute"]["spec"]["hostnames"] == ["live.example.com"]
        assert found["HTTPRoute"]["spec"]["rules"][0]["backendRefs"] == [{"name": "solowire-edge", "port": 80}]


def test_idle_sockets_live_for_three_heartbeats() -> None:
    """And 75 seconds at least, so that a quicker heartbeat renews no edge. Less than two can't be set."""
    for heartbeat_s, idle in ((25, 0), (5, 0), (25.5, 0), (600, 0), (25, 50), (1, 3)):
        values = {"settings": {"session": {"heartbeat_interval_s": heartbeat_s}}, "edge": {"idleSeconds": idle}}
        configuration = find(render(values), "ConfigMap", "edge")["data"]["nginx.conf"]
        assert f"proxy_read_timeout {idle or max(75, -int(-3 * heartbeat_s // 1))}s;" in configuration
    with pytest.raises(HelmError, match="idleSeconds: 49 s are less than two heartbeats"):
        render({"edge": {"idleSeconds": 49}})


def test_prometheus_and_grafana_get_the_files() -> None:
    """Alerts and dashboard are those of the files, and the jobs are called as they expect it."""
    manifests = render(EVERYTHING, {"metrics": {"prometheusRule": {"runbookUrl": "https://wiki.example/runbook"}}})
    [rule] = [m for m in manifests if m["kind"] == "PrometheusRule"]
    text = (
        (CHART / "files/alerts.yaml")
        .read_text()
        .replace("https://solowire.example/docs/operations.html", "https://wiki.example/runbook")
    )
    assert rule["spec"] == yaml.safe_load(text)
    [dashboard] = [m for m in manifests if m["metadata"]["name"] == "solowire-dashboard"]
    assert json.loads(dashboard["data"]["solowire.json"]) == json.loads((CHART / "files/dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    [monitor] = [m for m in manifests if m["kind"] == "ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    [expression] = monitor["spec"]["selector"]["matchExpressions"]
    scraped = {
        (m["metadata"]["name"], port["name"])
        for m in manifests
        if m["kind"] == "Service"
        and wanted.items() <= m["metadata"]["labels"].items()
        and m["metadata"]["labels"][expression["key"]] in expression["values"]
        for port in m["spec"]["ports"]
        for endpoint in monitor["spec"]["endpoints"]
        if port["name"] == endpoint["port"]
    }
    assert scraped == {
        ("solowire-router", "api"),
        ("solowire-gateway", "http"),
        ("solowire-shard", "api"),
        ("solowire-source", "api"),
    }


def test_tracing_is_off_unless_it_has_an_endpoint() -> None:
    """Then each role has variables that its tracer takes, every sampler included."""
    assert "OTEL_" not in json.dumps(render())
    samplers = load_chart().schema["properties"]["tracing"]["properties"]["sampler"]["enum"]  # type: ignore[index]
    assert set(samplers) == set(process_tracer._SAMPLERS)
    for sampler in samplers:
        manifests = render({"tracing": {"endpoint": "http://collector:4318", "sampler": sampler}})
        for role in ("router", "gateway", "shard"):
            [container] = find_workload(manifests, role)["spec"]["template"]["spec"]["containers"]
            variables = {v["name"]: v.get("value", "") for v in container["env"]}
            assert process_tracer.read_tracer_settings(variables) is not None
            assert "k8s.namespace.name=live" in variables["OTEL_RESOURCE_ATTRIBUTES"]


def test_the_router_keeps_its_log() -> None:
    """On a volume that stays when the release goes."""
    spec = find_workload(render(), "router")["spec"]
    [claim] = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert spec["replicas"] == 1
    kept_nowhere = find_workload(render({"router": {"persistence": {"enabled": False}}}), "router")["spec"]
    assert "volumeClaimTemplates" not in kept_nowhere


def test_a_source_is_one_agent() -> None:
    """With its own settings, its token from a Secret, and its places on a volume."""
    manifests = render(EVERYTHING)
    source = find(manifests, "Deployment", "source-zones")["spec"]
    assert (source["replicas"], source["strategy"]) == (1, {"type": "Recreate"})
    [container] = source["template"]["spec"]["containers"]
    assert container["args"] == ["source", "bind9", "--config", "/etc/solowire/settings.toml"]
    settings = find(manifests, "ConfigMap", "source-zones")["data"]["settings.toml"]
    assert 'source.server = "zones"' in settings
    assert 'source.zones.address = "192.0.2.53#53"' in settings
    assert find(manifests, "PersistentVolumeClaim", "source-zones")["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert {p["port"] for p in find(manifests, "Service", "source-zones")["spec"]["ports"]} == {53}


def test_notes_say_what_comes_next() -> None:
    """And warn of what should not stay so."""
    said = render_texts(dict(MINIMAL))["templates/NOTES.txt"]
    assert "helm -n live test solowire" in said
    assert "https://live.example.com" in said
    assert "WARNING" not in said
    assert "custom.metrics" not in said
    scaled = render_texts(merge(MINIMAL, {"shard": {"autoscaling": {"enabled": True}}}))["templates/NOTES.txt"]
    assert "/namespaces/live/pods/*/solowire_connections" in scaled
    careless = {
        "tls": {"enabled": False},
        "router": {"persistence": {"enabled": False}},
        "networkPolicy": {"enabled": False},
    }
    assert render_texts(merge(MINIMAL, careless))["templates/NOTES.txt"].count("WARNING") == 3


def test_helm_test_runs_a_check() -> None:
    """A pod of its own, which goes when it has succeeded."""
    pod = find(render(), "Pod", "check")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    compile(find(render(), "ConfigMap", "check")["data"]["check.py"], "check.py", "exec")


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_values_of_each_released_version_still_say_something(path: Path) -> None:
    """Values that were good once install, or end with a sentence of files/removed-values.yaml: no schema's riddle."""
    failed = ""
    try:
        render_texts(yaml.safe_load(path.read_text()))
    except HelmError as error:
        failed = str(error)
    sentences = yaml.safe_load((CHART / "files/removed-values.yaml").read_text()).values()
    assert not failed or any(sentence in failed for sentence in sentences), failed
