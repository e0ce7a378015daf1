"""What an operator is told of settings that were read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from solowire.auth.tokens import Tokens
from solowire.domains.dns.dns_domain import DNS
from solowire.runtime.identity import reload_identity
from solowire.runtime.roles import load_roles
from solowire.runtime.settings import Settings
from solowire.runtime.settings_changes import explain_waiting, list_waiting_settings


@pytest.mark.parametrize("name", ["SOLOWIRE_TOKEN", "/etc/solowire_a/solowire.toml: token"])
def test_a_token_that_waits_for_a_restart_has_another_way_out(name: str) -> None:
    """A source's new token is named, and where one belongs that takes effect while it runs."""
    assert "token_file" in explain_waiting(["SOLOWIRE_PORT", name])
    assert explain_waiting(["SOLOWIRE_TOKEN_FILE", "SOLOWIRE_PORT"]) == ""


def test_a_new_token_waits_for_a_restart() -> None:
    """It is told by its name, and never by what it says."""
    before, now = Settings.model_validate({"token": "a" * 20}), Settings.model_validate({"token": "b" * 20})
    [name] = list_waiting_settings(before, now)
    assert "token" in name.lower()
    assert "bbb" not in name


def test_roles_that_grant_more_are_named(tmp_path: Path) -> None:
    """Connections that are open don't have that yet, which nobody could know; what grants less, or is new, is not."""
    file = tmp_path / "roles.toml"
    settings = Settings(roles_file=file, data_dir=tmp_path, secret="s" * 32)
    file.write_text('[roles.a]\npermissions = ["dns.read"]\n[roles.b]\npermissions = ["dns.*"]\n')
    roles = load_roles(settings, DNS.catalog)
    tokens = Tokens("s" * 32, roles, domain=DNS)
    file.write_text(
        '[roles.a]\npermissions = ["dns.read", "custom.read"]\n[roles.b]\npermissions = ["dns.read"]\n'
        '[roles.c]\npermissions = ["*"]\n'
    )
    note = reload_identity(settings, tokens, roles)
    assert note is not None
    assert note.fields == {"widened_roles": ["a"]}
    assert "come back" in note.hint
    assert reload_identity(settings, tokens, roles) is None
