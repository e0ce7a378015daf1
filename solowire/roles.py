"""The roles in force: built in, or those of `SOLOWIRE_ROLES_FILE`."""

from __future__ import annotations

from solowire.access import ROLES, Role, load_roles
from solowire.errors import ConfigError
from solowire.settings import Settings
from solowire.subscriptions import MAX_PATTERNS


def roles_of(settings: Settings) -> dict[str, Role]:
    """Raises ConfigError if the file can't be read or is not what it should be."""
    if settings.roles_file is None:
        return dict(ROLES)
    try:
        roles = load_roles(settings.roles_file.read_text(), str(settings.roles_file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"roles file {settings.roles_file}: {error}") from None
    for name, role in roles.items():
        if (number := len(role.defaults)) > MAX_PATTERNS:
            fault = f"the role {name!r} has {number} defaults, {MAX_PATTERNS} are the most"
            raise ConfigError(f"roles file {settings.roles_file}: {fault}")
    return roles
