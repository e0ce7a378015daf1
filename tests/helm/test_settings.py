"""The settings that the chart gives to each role: they are the models' own, and all that the role reads."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from solowire.runtime.settings import Settings
from solowire.runtime.settings.loader import load
from solowire.runtime.settings.setting_paths import list_paths, to_variable
from solowire.workers.server import GRACE_SHARE
from tests.helm.cases import CASES, EVERYTHING
from tests.support.chart import (
    CHART,
    Manifest,
    find,
    find_workload,
    list_pod_specs,
    read_environment,
    read_settings,
    render,
)

ROOT = CHART.parents[1]
ROLES = {"router": "router", "gateway": "gateway", "shard": "workers"}
"""The roles that read settings files, and the folders of their code."""
FIELDS = {
    "metadata.name": "solowire-x",
    "status.podIP": "10.1.2.3",
    "metadata.labels['apps.kubernetes.io/pod-index']": "1",
}


def load_role(manifests: list[Manifest], role: str, folder: Path, patch: pytest.MonkeyPatch) -> Settings:
    """The settings that are in force in a role's container: its own command reads them so. role: or a source's name."""
    for name in [name for name in os.environ if name.startswith("SOLOWIRE_")]:
        patch.delenv(name)
    patch.chdir(folder)
    [container] = find_workload(manifests, role)["spec"]["template"]["spec"]["containers"]
    for name, value in read_environment(container, FIELDS).items():
        patch.setenv(name, value)
    assert container["args"][0] == role.partition("-")[0]
    assert container["args"][-2:] == ["--config", "/etc/solowire/settings.toml"]
    (folder / "settings.toml").write_text(find(manifests, "ConfigMap", role)["data"]["settings.toml"])
    return load(folder / "settings.toml")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_role_starts_with_them(
    values: dict[str, Any], role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and variables together are settings that every model accepts, with the ports that Services lead to."""
    settings = load_role(render(values), role, tmp_path, monkeypatch)
    assert settings.is_networked
    assert settings.backplane == "tcp://solowire-router:7400"
    assert settings.audit.output == "stderr"
    if role == "router":
        assert settings.router_metrics_port == 9000
        assert settings.backplane_bind in ("tcp://0.0.0.0:7400", "tcp://[::]:7400")
    if role == "gateway":
        assert settings.port == 8000
        assert settings.shard_url.endswith("://live.example.com/s/{shard}/ws")
        assert settings.listen.trusted_proxies
    if role == "shard":
        assert settings.shard_index == 1
        assert settings.find_shard_port(1) == 8001
        assert settings.find_shard_api(1) == (settings.host, 9000)
        assert settings.find_advertised_host() == "10.1.2.3"


@pytest.mark.parametrize(
    ("case", "source"), [("everything", "zones"), ("everything", "host"), ("multi-zone", "forwarders")]
)
def test_a_source_starts_with_them(case: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It publishes at the gateways, has a name of its own, and its probes lead to its API port."""
    settings = load_role(render(CASES[case]), f"source-{source}", tmp_path, monkeypatch)
    assert settings.url == "http://solowire-gateway:8000"
    assert str(settings.token_file) == "/etc/solowire-token/token"
    assert settings.source.server == source
    assert settings.listen.api_port == 9000


def test_what_is_set_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, numbers, lists and tables with any names are in force as they were given."""
    settings = load_role(render(EVERYTHING), "shard", tmp_path, monkeypatch)
    assert settings.legacy == "off"
    assert settings.limits.groups["staff"].weight == 2.5
    assert settings.limits.groups["b x"].limit == 5
    assert settings.listen.allowed_origins == ["https://app.example.com"]
    assert settings.session.heartbeat_interval_s == 10
    assert settings.limits.max_connections == 10_000
    assert str(settings.roles_file) == "/etc/solowire/roles.toml"
    assert find(render(EVERYTHING), "ConfigMap", "shard")["data"]["roles.toml"] == EVERYTHING["roles"]
    assert str(settings.catalog) == "/etc/solowire/catalog.toml"


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_variable_is_a_setting(values: dict[str, Any]) -> None:
    """No container is given a variable that nothing reads."""
    known = {to_variable(path) for path in list_paths()}
    for name, spec in list_pod_specs(render(values)):
        for container in spec["containers"]:
            given = {v["name"] for v in container.get("env", []) if v["name"].startswith("SOLOWIRE_")}
            assert given <= known, name


def test_the_large_example_has_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers above a million stay whole ones on their way through Helm."""
    values = CASES["large"]
    router = load_role(render(values), "router", tmp_path, monkeypatch)
    assert router.journal.max_bytes == 17_179_869_184
    assert router.limits.max_connections == 100_000
    text = find(render(values), "ConfigMap", "router")["data"]["settings.toml"]
    assert "e+" not in text


# ------------------------------------------------------------------------------------------- who reads what

_READ = re.compile(r"\bsettings\.([a-z_]+)")
_OWN = {"find_shard_api", "find_shard_port", "find_advertised_host", "name_setting", "need_data_dir", "set_writer"}
"""Methods of the settings that read what the chart sets by variables."""


def list_roles() -> dict[str, list[str]]:
    roles: dict[str, list[str]] = yaml.safe_load((CHART / "files/role-settings.yaml").read_text())
    return roles


def find_read(folder: str) -> Iterator[str]:
    """The settings that a folder's modules name: sections, and what stands in none."""
    names = set(Settings.model_fields)
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield from (name for name in _READ.findall(path.read_text()) if name in names and name not in _OWN)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_given_what_its_code_reads(role: str) -> None:
    """A section that begins to be read by a role has to be added to files/role-settings.yaml."""
    by_variable = {
        "host",
        "port",
        "data_dir",
        "backplane",
        "backplane_bind",
        "catalog",
        "roles_file",
        "secret",
        "curve",
    }
    assert set(find_read(ROLES[role])) - by_variable - {"shard_index"} <= {*list_roles()[role], "shard", "listen"}


def test_every_setting_has_a_place() -> None:
    """Each setting is one that a role reads, or one that values can't set, with a sentence why."""
    placed = {name for names in list_roles().values() for name in names}
    removed = {path.split(".")[1] for path in list_removed() if path.startswith("settings.")}
    assert set(Settings.model_fields) == placed | {name for name in removed if name in Settings.model_fields}


def list_removed() -> dict[str, str]:
    removed: dict[str, str] = yaml.safe_load((CHART / "files/removed-values.yaml").read_text())
    return removed


# ------------------------------------------------------------------------------------------- drains


@pytest.mark.parametrize(("per_shard", "pace"), [(10_000, 500), (10_000, 10_000), (50_000, 100), (1, 1), (999, 7)])
def test_the_grace_period_lasts_until_the_last_user_has_gone(per_shard: int, pace: int) -> None:
    """A full shard sends everybody away at the set pace, and closes, before it is killed."""
    values = {
        "connections": {"max": per_shard, "perShard": per_shard},
        "edge": {"workerConnections": 100_000, "resources": {"limits": {"memory": "4Gi"}}},
        "shard": {"drainUsersPerSecond": pace, "resources": {"limits": {"memory": "8Gi"}}},
    }
    manifests = render(values)
    shard = find_workload(manifests, "shard")["spec"]["template"]["spec"]
    settings = read_settings(manifests, "shard")
    assert settings["shard"]["rebalance_users_per_s"] == pace
    timeout_s = settings["process"]["shutdown_timeout_s"]
    assert timeout_s * GRACE_SHARE >= per_shard / pace
    wait_s = shard["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert shard["terminationGracePeriodSeconds"] >= wait_s + timeout_s + 5


def test_the_settings_files_are_toml() -> None:
    """Sources' too."""
    for manifest in render(EVERYTHING):
        if manifest["kind"] == "ConfigMap" and "settings.toml" in manifest["data"]:
            assert tomllib.loads(manifest["data"]["settings.toml"])
