"""The chart, rendered as `helm install` would: no cluster is asked, and `lookup` finds nothing."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).resolve().parents[2] / "helm/solowire"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MINIMAL: Mapping[str, Any] = {"host": "live.example.com", "tls": {"secretName": "live-tls"}}
"""The two values with which the chart is installed."""
ROLES = ("router", "gateway", "shard", "edge")

SECRETS = {"secret": "s" * 64, "curve-seed": "c" * 64, "accepted-secrets": ""}
"""What stands in the chart's Secret, in tests."""

Manifest = dict[str, Any]


@cache
def load_chart() -> Chart:
    return Chart.load(CHART)


def read_example(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Values over values, as several `-f` are."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for key, value in copy.deepcopy(dict(tree)).items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def render_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What each template makes of the values, by its name. Raises HelmError as `helm install` would fail."""
    chart, merged = load_chart(), dict(values)
    chart.validate_schema(merged)
    texts = chart.render(merged, name="solowire", namespace="live")
    return {name.removeprefix("solowire/"): text for name, text in sorted(texts.items()) if text.strip()}


def render(*values: Mapping[str, Any]) -> list[Manifest]:
    """All objects of a release with these values over the minimal ones; not to be changed, as they are kept."""
    return _render(json.dumps(merge(MINIMAL, *values)))


@cache
def _render(values: str) -> list[Manifest]:
    texts = render_texts(json.loads(values))
    return [
        document
        for name, text in texts.items()
        if not name.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


def find(manifests: list[Manifest], kind: str, role: str) -> Manifest:
    """The object of a kind that belongs to a role."""
    [found] = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == f"solowire-{role}"]
    return found


def find_workload(manifests: list[Manifest], role: str) -> Manifest:
    """The Deployment or StatefulSet of a role."""
    return find(manifests, "StatefulSet" if role in ("router", "shard") else "Deployment", role)


def list_pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and the pod's specification of all that makes pods."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest["spec"]


def read_settings(manifests: list[Manifest], role: str) -> dict[str, Any]:
    """The settings file of a role."""
    return tomllib.loads(find(manifests, "ConfigMap", role)["data"]["settings.toml"])


def read_environment(container: Manifest, fields: Mapping[str, str]) -> dict[str, str]:
    """The variables of a container, as the kubelet would set them. fields: of the pod, by their paths."""
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            found[variable["name"]] = SECRETS[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        else:
            found[variable["name"]] = variable["value"]
    return found
