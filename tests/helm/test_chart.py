"""The chart as `helm lint`, `helm install` and the API server see it."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import HelmError, lint

from tests.helm.cases import CASES
from tests.helm.make_snapshots import SNAPSHOTS, render_snapshot
from tests.support.chart import CHART, EXAMPLES, MINIMAL, list_pod_specs, merge, render, render_texts

OLDEST, NEWEST = "1.31.0", "1.37.0"
FOREIGN = ("HTTPRoute", "ServiceMonitor", "PrometheusRule")
"""Kinds that are not Kubernetes' own: nobody's schema of them is at hand."""
WARNING = 2


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    """`helm lint --strict` has nothing to say but that there is no icon."""
    report = lint(CHART, merge(MINIMAL, values), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= WARNING] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_api_server_takes_every_object(values: dict[str, Any], version: str) -> None:
    """The oldest and the newest Kubernetes know every field, and no object is told twice."""
    manifests = render(values)
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            validate(json.dumps(manifest, sort_keys=True), version)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))


@cache
def validate(manifest: str, version: str) -> None:
    """Each object once, of those that are the same in several cases."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_as_they_were(path: Path) -> None:
    """What changes in an example's objects is seen in a review: `make chart` writes the snapshot anew."""
    assert (SNAPSHOTS / path.name).read_text() == render_snapshot(path)


def test_versions_agree() -> None:
    """The chart installs the version of Solowire that it is in, on the Kubernetes that is tested."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert chart["kubeVersion"] == f">={OLDEST}-0"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"host": 7}, "at '/host': got number, want string"),
        ({"host": "https://live.example.com"}, "at '/host': 'https://live.example.com' does not match pattern"),
        ({"expose": {"type": "nodePort"}}, "at '/expose/type': value must be one of 'ingress', 'httpRoute'"),
        ({"connections": {"max": 0}}, "at '/connections/max': minimum: got 0, want 1"),
        ({"connections": {"maximum": 5}}, "at '/connections': additional properties 'maximum' not allowed"),
        (
            {"shard": {"autoscaling": {"stabilizationSeconds": 60}}},
            "at '/shard/autoscaling/stabilizationSeconds': minimum: got 60, want 300",
        ),
        (
            {"settings": {"journal": {"max_agee_s": 5}}},
            "at '/settings/journal': additional properties 'max_agee_s' not allowed",
        ),
        (
            {"settings": {"session": {"heartbeat_interval_s": 0}}},
            "at '/settings/session/heartbeat_interval_s': minimum: got 0, want 0.2",
        ),
        (
            {"settings": {"logging": {"level": "loud"}}},
            "at '/settings/logging/level': value must be one of 'debug', 'info'",
        ),
        (
            {"gateway": {"settings": {"journal": {"max_age_s": 5}}}},
            "at '/gateway/settings': additional properties 'journal' not allowed",
        ),
        ({"router": {"persistence": {"size": "8GB"}}}, "at '/router/persistence/size': '8GB' does not match pattern"),
        ({"edge": {"image": {"digest": "latest"}}}, "at '/edge/image/digest': 'latest' does not match pattern"),
        ({"sources": {"x": {"command": ["bind9"]}}}, "at '/sources/x': missing property 'tokenSecret'"),
        (
            {"sources": {"x": {"command": ["bind9"], "tokenSecret": "t", "settings": {"zone": {}}}}},
            "at '/sources/x/settings': additional properties 'zone' not allowed",
        ),
        (
            {"edge": {"trustedProxies": ["proxy.example"]}},
            "at '/edge/trustedProxies/0': 'proxy.example' does not match",
        ),
        ({"topologySpread": {"zone": "yes"}}, "at '/topologySpread/zone': value must be one of"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], sentence: str) -> None:
    """The schema says which value it is, and what it should be."""
    with pytest.raises(HelmError) as refused:
        render_texts(merge(MINIMAL, values))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"host": ""}, "host: name the DNS name by which users come"),
        (
            {"expose": {"type": "loadBalancer"}, "tls": {"secretName": ""}},
            "tls.secretName: with expose.type loadBalancer",
        ),
        ({"expose": {"type": "httpRoute"}}, "expose.httpRoute.parentRefs: name the Gateway"),
        ({"connections": {"max": 30_000}}, "shard.replicas: 2 shards hold 20000 connections"),
        (
            {"shard": {"autoscaling": {"enabled": True, "maxReplicas": 4}}, "connections": {"max": 40_001}},
            "shard.autoscaling.maxReplicas: 4 shards hold 40000 connections (connections.perShard)",
        ),
        (
            {"shard": {"autoscaling": {"enabled": True, "maxReplicas": 5}}, "connections": {"max": 28_000}},
            "which are 4 shards at the target of 7000 each: more than 4 are never asked for",
        ),
        (
            {"shard": {"autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 4}}},
            "minReplicas is above maxReplicas",
        ),
        ({"podSecurityContext": {"runAsUser": 0}}, "podSecurityContext.runAsUser: 0 is root"),
        ({"edge": {"workerConnections": 512}}, "edge: its pods pass 1024 WebSockets on"),
        (
            {"shard": {"resources": {"limits": {"memory": "500Mi"}}}},
            "shard.resources.limits.memory: 500 MiB are less than",
        ),
        (
            {"edge": {"resources": {"limits": {"memory": "300Mi"}}}},
            "edge.resources.limits.memory: 300 MiB are less than",
        ),
        ({"settings": {"journal": {"max_bytes": 2**33}}}, "router.persistence.size: 8192 MiB are less than twice"),
        ({"sources": {"a-very-long-name": {"command": ["host"], "tokenSecret": "t"}}}, "longer than 15 characters"),
        (
            {"commonLabels": {"app.kubernetes.io/name": "x"}},
            "commonLabels: the label app.kubernetes.io/name is the chart's own",
        ),
        ({"edge": {"podLabels": {"helm.sh/chart": "x"}}}, "edge.podLabels: the label helm.sh/chart is the chart's own"),
        (
            {"shard": {"resources": {"limits": {"memory": "1280m"}}}},
            "shard.resources.limits.memory: 1280m is no amount of memory",
        ),
        (
            {"edge": {"resources": {"limits": {"memory": "768MB"}}}},
            "edge.resources.limits.memory: 768MB is no amount of memory",
        ),
        (
            {"shard": {"resources": {"limits": {"memory": 100_000_000}}}},
            "shard.resources.limits.memory: 95 MiB are less than",
        ),
        (
            {"sources": {"z": {"command": ["bind9"], "tokenSecret": "t", "notifyPort": 5353}}},
            "sources.z.notifyPort: nothing listens there",
        ),
        (
            {
                "sources": {
                    "z": {
                        "command": ["bind9"],
                        "tokenSecret": "t",
                        "notifyPort": 5353,
                        "settings": {"zones": {"address": "192.0.2.1#53", "notify": "0.0.0.0#5454"}},
                    }
                }
            },
            "sources.z.notifyPort: nothing listens there",
        ),
        ({"sources": {"Zones_1": {"command": ["bind9"], "tokenSecret": "t"}}}, "sources.Zones_1: its name"),
        ({"nameOverride": "Foo_Bar"}, "nameOverride: Foo_Bar"),
        ({"fullnameOverride": "-foo"}, "fullnameOverride: -foo"),
        ({"fullnameOverride": "1live"}, "fullnameOverride: 1live"),
        ({"roles": "[viewer\n"}, "roles: this is no TOML"),
        ({"eventTypes": "types"}, "eventTypes: this is no TOML"),
        (
            {"tracing": {"endpoint": "http://c:4318", "sampler": "traceidratio", "samplerArg": "7"}},
            "tracing.samplerArg: 7 is no part of 1",
        ),
        (
            {"gateway": {"extraEnv": [{"name": "SOLOWIRE_BACKPLANE", "value": "x"}]}},
            "gateway.extraEnv: the chart sets SOLOWIRE_BACKPLANE",
        ),
        ({"replicaCount": 3}, "replicaCount: there is one number for each role; use gateway.replicas"),
        ({"ingress": {"enabled": True}}, "ingress: use expose.type=ingress"),
        ({"router": {"replicas": 2}}, "router.replicas: there is one router"),
        ({"settings": {"limits": {"max_connections": 5}}}, "settings.limits.max_connections: use connections.max"),
        ({"shard": {"settings": {"shard": {"port": 1}}}}, "shard.settings.shard.port: the chart sets it"),
        ({"settings": {"secret": "x" * 32}}, "settings.secret: secrets have no place in values"),
    ],
)
def test_what_can_t_be_installed_says_why(values: dict[str, Any], sentence: str) -> None:
    """Values that contradict each other, and values that are gone, end with one sentence that says what to do."""
    with pytest.raises(HelmError) as refused:
        render_texts(merge(MINIMAL, values))
    assert sentence in str(refused.value)


def test_every_removed_value_says_what_to_use() -> None:
    """The schema lets each of them through to its sentence."""
    for path, sentence in yaml.safe_load((CHART / "files/removed-values.yaml").read_text()).items():
        values: dict[str, Any] = {"x": None}
        for name in reversed(path.split(".")):
            values = {name: values if values != {"x": None} else 1}
        with pytest.raises(HelmError) as refused:
            render_texts(merge(MINIMAL, values))
        assert f"{path}: {sentence}" in str(refused.value)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_no_container_is_privileged(values: dict[str, Any]) -> None:
    """Pod Security `restricted` lets each pod in, its root file system is read-only, and it has no token."""
    for name, spec in list_pod_specs(render(values)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not spec["automountServiceAccountToken"], name
        assert not spec["enableServiceLinks"], name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert {kind for volume in spec["volumes"] for kind in volume} <= {
            "name",
            "configMap",
            "secret",
            "emptyDir",
            "persistentVolumeClaim",
        }, name
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own.get("runAsUser", pod["runAsUser"]) > 0, name
            assert not own.get("privileged"), name


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_port_is_named(values: dict[str, Any]) -> None:
    """Ports have names, Services and probes use them, and each leads to one of a container's."""
    manifests = render(values)
    names: set[str] = set()
    for _, spec in list_pod_specs(manifests):
        for container in spec["containers"]:
            ports = {port["name"] for port in container.get("ports", [])}
            assert len(ports) == len(container.get("ports", []))
            names |= ports
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container.get(probe, {}).get("httpGet", {}).get("port", "") in {"", *ports}
    for manifest in manifests:
        if manifest["kind"] == "Service":
            assert all(port["targetPort"] in names and port["name"] for port in manifest["spec"]["ports"])
        if manifest["kind"] == "NetworkPolicy":
            policies = [port for rule in manifest["spec"]["ingress"] for port in rule["ports"]]
            assert all(port["port"] in names for port in policies)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_secret_is_a_reference(values: dict[str, Any]) -> None:
    """No secret stands in a pod or in a ConfigMap: what is called so is taken from a Secret."""
    manifests = render(values)
    for _, spec in list_pod_specs(manifests):
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if re.search(r"SECRET|SEED|(TOKEN|KEY)$", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], variable
    made = [m["data"] for m in manifests if m["kind"] == "Secret"]
    text = "\n".join(yaml.safe_dump(m) for m in manifests if m["kind"] != "Secret")
    assert all(value not in text for data in made for value in data.values())
