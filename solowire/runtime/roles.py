"""The roles in force: built in, or those of `SOLOWIRE_ROLES_FILE`.

What it keeps true: whatever a role or a group is said to have means something. A name that means nothing would grant
nothing, in silence, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from solowire.algorithms.name_suggestion import suggest_name
from solowire.errors import ConfigError
from solowire.model.access import ADMINISTRATORS, ROLES, Role, is_granted, parse_roles
from solowire.model.catalog import Catalog, EventType
from solowire.model.permissions import describe_permission_fault
from solowire.model.subscriptions import MAX_PATTERNS, expand_pattern
from solowire.runtime.settings import Settings

logger = structlog.get_logger("solowire.settings")


def load_roles(settings: Settings, catalog: Catalog) -> dict[str, Role]:
    """Raises ConfigError if the file can't be read or is not what it should be, or a group of `groups` is no role's."""
    if settings.roles_file is None:
        roles = dict(ROLES)
    else:
        try:
            roles = parse_roles(settings.roles_file.read_text("utf-8-sig"), str(settings.roles_file))
        except OSError as error:
            raise ConfigError(f"roles file {settings.roles_file}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"roles file {settings.roles_file}: {error}") from None
        for name, role in roles.items():
            fault = _fault(role, catalog)
            if fault:
                raise ConfigError(f"roles file {settings.roles_file}: the role {name!r} {fault}")
    if settings.limits.group_by == "role":
        _check_groups(settings, roles)
    return roles


def _fault(role: Role, catalog: Catalog) -> str:
    """What is wrong with it, "" if nothing is."""
    for permission in role.permissions:
        if fault := describe_permission_fault(permission, catalog):
            return f"grants {fault}"
    if (number := len(role.defaults)) > MAX_PATTERNS:
        return f"has {number} defaults, {MAX_PATTERNS} are the most"
    for pattern in role.defaults:
        if not expand_pattern(pattern, catalog):
            categories = [f"{category}.*" for category in catalog.categories]
            known = f"write an event type of the catalogue, custom.NAME, *, or one of {', '.join(categories)}"
            return (
                f"has the default subscription {pattern!r}, which is no event type"
                f"{suggest_name(pattern, (*catalog.names, *categories), known)}"
            )
    return ""


def warn_of_ungranted(roles: Mapping[str, Role], types: Iterable[EventType]) -> None:
    """Says of each permission that these types ask for, and no role grants, that nobody sees what it shows."""
    asked: dict[str, list[str]] = {}
    for event_type in types:
        for permission in dict.fromkeys((event_type.permission, *event_type.sensitive.values())):
            if not any(is_granted(role.permissions, permission) for role in roles.values()):
                asked.setdefault(permission, []).append(event_type.name)
    for permission, names in asked.items():
        hint = "nobody sees what it shows; grant it in the file of SOLOWIRE_ROLES_FILE, or name another in the catalog"
        logger.warning("permission_not_granted", permission=permission, types=names, hint=hint)


def _check_groups(settings: Settings, roles: Mapping[str, Role]) -> None:
    """Raises ConfigError for a group that no role makes."""
    for name in settings.limits.groups:
        if name not in roles and name != ADMINISTRATORS:
            known = f"roles are {', '.join(roles)}"
            raise ConfigError(
                f"{settings.name_setting('limits.groups')}: there is no role {name!r}, "
                f"and {settings.name_setting('limits.group_by')} is role"
                f"{suggest_name(name, roles, known)}"
            )
