"""The roles in force: what of a file is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from solowire.errors import ConfigError
from solowire.roles import roles_of
from solowire.settings import Settings
from solowire.subscriptions import MAX_PATTERNS


def test_a_role_has_no_more_defaults_than_a_client_may_ask_for(tmp_path: Path) -> None:
    """A client that asks for nothing would be refused them for ever: the fault is told at the start, with the role."""
    file = tmp_path / "roles.toml"
    names = [f'"custom.{n}"' for n in range(MAX_PATTERNS + 1)]
    role = '[roles.greedy]\npermissions = ["*"]\ndefaults = [{}]\n'
    file.write_text(role.format(", ".join(names[:-1])))
    assert len(roles_of(Settings(roles_file=file))["greedy"].defaults) == MAX_PATTERNS
    file.write_text(role.format(", ".join(names)))
    with pytest.raises(ConfigError, match=r"roles\.toml: the role 'greedy' has 201 defaults, 200 are the most"):
        roles_of(Settings(roles_file=file))
