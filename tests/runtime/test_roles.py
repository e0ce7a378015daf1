"""The roles in force: what of a file is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.model.subscriptions import MAX_PATTERNS
from solowire.runtime.domain_loader import list_own_types, load_domain
from solowire.runtime.roles import load_roles, warn_of_ungranted
from solowire.runtime.settings import Settings


def test_a_role_has_no_more_defaults_than_a_client_may_ask_for(tmp_path: Path) -> None:
    """A client that asks for nothing would be refused them for ever: the fault is told at the start, with the role."""
    file = tmp_path / "roles.toml"
    names = [f'"custom.{n}"' for n in range(MAX_PATTERNS + 1)]
    role = '[roles.greedy]\npermissions = ["*"]\ndefaults = [{}]\n'
    file.write_text(role.format(", ".join(names[:-1])))
    assert len(load_roles(Settings(roles_file=file), CATALOG)["greedy"].defaults) == MAX_PATTERNS
    file.write_text(role.format(", ".join(names)))
    with pytest.raises(ConfigError, match=r"roles\.toml: the role 'greedy' has 201 defaults, 200 are the most"):
        load_roles(Settings(roles_file=file), CATALOG)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('permissions = ["dns.raed"]', ["'viewer'", "dns.raed", "did you mean 'dns.read'"]),
        ('permissions = ["dns"]', ["'viewer'", "'dns'"]),
        ('permissions = ["dsn.*"]', ["dsn.*", "did you mean 'dns.*'"]),
        ('permissions = ["zebra"]', ["zebra", "dns.read", "events.publish", "sensitive.client_ip", "admin"]),
        ('permissions = ["sensitive.clientip"]', ["sensitive.clientip", "did you mean 'sensitive.client_ip'"]),
        ('permissions = ["*.*"]', ["*.*"]),
        ('permissions = [".*"]', [".*"]),
        ('permissions = [""]', ["''"]),
        ('permissions = ["dns.read"]\ndefaults = ["dsn.*"]', ["default", "dsn.*", "did you mean 'dns.*'"]),
        ('permissions = ["dns.read"]\ndefaults = ["zone_craeted"]', ["zone_craeted", "did you mean 'zone_created'"]),
        ('permissions = ["dns.read"]\ndefaults = ["custom."]', ["custom."]),
        ('permission = ["dns.read"]', ["permission", "did you mean 'permissions'"]),
        ('permissions = ["dns.read"]\nmay_conect = false', ["may_conect", "did you mean 'may_connect'"]),
        ('permissions = ["dns.read"]\nzebra = 1', ["zebra", "permissions, defaults, may_connect"]),
    ],
)
def test_what_is_misspelt_in_a_role_is_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    """It would grant nothing, in silence: file, role and name are told, with the one that is meant or all there are."""
    file = tmp_path / "roles.toml"
    file.write_text(f"[roles.viewer]\n{text}\n")
    with pytest.raises(ConfigError) as raised:
        load_roles(Settings(roles_file=file), CATALOG)
    line = str(raised.value)
    assert "\n" not in line
    assert all(word in line for word in ["roles.toml", "viewer", *words]), line


def test_a_misspelt_table_of_roles_is_refused_by_name(tmp_path: Path) -> None:
    """`[role.viewer]` defines no role."""
    file = tmp_path / "roles.toml"
    file.write_text('[role.viewer]\npermissions = ["dns.read"]\n')
    with pytest.raises(ConfigError, match=r"roles\.toml: .*'role'.*did you mean 'roles'"):
        load_roles(Settings(roles_file=file), CATALOG)


def test_every_name_that_means_something_may_stand_in_a_role(tmp_path: Path) -> None:
    """All permissions that anything asks for, wildcards that cover one, and all that a client may subscribe to."""
    asked = {t.permission for t in CATALOG.types} | {p for t in CATALOG.types for p in t.sensitive.values()}
    permissions = [*asked, "admin", "events.publish", "*", "dns.*", "sensitive.*", "events.*", "admin.*"]
    defaults = ["*", "dns.*", "custom.*", "custom.orders", "zone_created"]
    file = tmp_path / "roles.toml"
    file.write_text(f"[roles.all]\npermissions = {json.dumps(permissions)}\ndefaults = {json.dumps(defaults)}\n")
    assert set(load_roles(Settings(roles_file=file), CATALOG)["all"].permissions) == set(permissions)


def test_a_group_that_is_no_role_is_refused(tmp_path: Path) -> None:
    """Where roles make the groups, a group that no role makes would reserve slots for nobody."""
    file = tmp_path / "roles.toml"
    file.write_text('[roles.auditor]\npermissions = ["dns.read"]\n')
    with pytest.raises(ConfigError, match=r"groups: .*'operator'.*auditor"):
        load_roles(Settings(roles_file=file, limits={"groups": {"operator": {"reserved": 1}}}), CATALOG)
    assert load_roles(Settings(roles_file=file, limits={"groups": {"auditor": {}, "admin": {"reserved": 1}}}), CATALOG)
    assert load_roles(Settings(roles_file=file, limits={"groups": {"operator": {}}, "group_by": "tenant"}), CATALOG)


def test_a_permission_of_own_types_that_no_role_grants_is_named(tmp_path: Path) -> None:
    """Nobody would see these events, in silence; what a role grants, if only by a family, is not told."""
    catalog, file = tmp_path / "types.toml", tmp_path / "roles.toml"
    catalog.write_text(
        '[types.deploy_finished]\ncategory = "deploy"\npermission = "deploy.raed"\n'
        'sensitive = {token = "sensitive.deploy_token"}\n'
        '[types.deploy_finished.schema]\ntype = "object"\nrequired = ["service"]\n'
        'properties = {service = {type = "string"}, token = {type = "string"}}\n'
        '[types.deploy_started]\ncategory = "deploy"\nschema = {type = "object"}\n'
    )
    settings = Settings(catalog=catalog, roles_file=file)
    domain = load_domain(settings)
    for granted, named in (
        ('["deploy.read", "sensitive.*"]', {"deploy.raed": ["deploy_finished"]}),
        ('["deploy.*", "dns.read"]', {"sensitive.deploy_token": ["deploy_finished"]}),
        ('["*"]', {}),
    ):
        file.write_text(f"[roles.viewer]\npermissions = {granted}\n")
        with capture_logs() as lines:
            warn_of_ungranted(load_roles(settings, domain.catalog), list_own_types(domain))
        assert {line["permission"]: line["types"] for line in lines} == named
        assert all(line["event"] == "permission_not_granted" and line["hint"] for line in lines)
