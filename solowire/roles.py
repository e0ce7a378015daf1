"""The roles in force: built in, or those of `SOLOWIRE_ROLES_FILE`."""

from __future__ import annotations

from solowire.access import ROLES, Role, load_roles
from solowire.errors import ConfigError
from solowire.settings import Settings


def roles_of(settings: Settings) -> dict[str, Role]:
    """Raises ConfigError if the file can't be read or is not what it should be."""
    if settings.roles_file is None:
        return dict(ROLES)
    try:
        return load_roles(settings.roles_file.read_text(), str(settings.roles_file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"roles file {settings.roles_file}: {error}") from None
