"""The roles in force: built in, or those of `SOLOWIRE_ROLES_FILE`.

What it keeps true: whatever a role or a group is said to have means something. A name that means nothing would grant
nothing, in silence, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solowire.algorithms.name_suggestion import suggest_name
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.model.access import ADMINISTER, ADMINISTRATORS, PUBLISH, ROLES, Role, parse_roles
from solowire.model.subscriptions import MAX_PATTERNS, expand_pattern
from solowire.runtime.settings import Settings

PERMISSIONS = tuple(
    dict.fromkeys(
        (
            ADMINISTER,
            PUBLISH,
            *(event_type.permission for event_type in CATALOG.types),
            *(shows for event_type in CATALOG.types for shows in event_type.sensitive.values()),
        )
    )
)
"""All that anything asks for. A role may also grant `x.*` for those that begin with `x.`, and `*` for all."""


def load_roles(settings: Settings) -> dict[str, Role]:
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
            fault = _fault(role)
            if fault:
                raise ConfigError(f"roles file {settings.roles_file}: the role {name!r} {fault}")
    if settings.limits.group_by == "role":
        _check_groups(settings.limits.groups, roles)
    return roles


def _fault(role: Role) -> str:
    """What is wrong with it, "" if nothing is."""
    wildcards = {"*", *(f"{name.rpartition('.')[0]}.*" for name in PERMISSIONS if "." in name)}
    for permission in role.permissions:
        if permission not in PERMISSIONS and permission not in wildcards:
            known = f"known are {', '.join(PERMISSIONS)}, x.* for those that begin with x., and *"
            suggestion = suggest_name(permission, (*PERMISSIONS, *wildcards), known)
            return f"grants {permission!r}, which nothing asks for{suggestion}"
    if (number := len(role.defaults)) > MAX_PATTERNS:
        return f"has {number} defaults, {MAX_PATTERNS} are the most"
    for pattern in role.defaults:
        if not expand_pattern(pattern, CATALOG):
            categories = [f"{category}.*" for category in CATALOG.categories]
            known = f"write an event type of the catalogue, custom.NAME, *, or one of {', '.join(categories)}"
            return (
                f"has the default subscription {pattern!r}, which is no event type"
                f"{suggest_name(pattern, (*CATALOG.names, *categories), known)}"
            )
    return ""


def _check_groups(groups: Iterable[str], roles: Mapping[str, Role]) -> None:
    """Raises ConfigError for a group that no role makes."""
    for name in groups:
        if name not in roles and name != ADMINISTRATORS:
            known = f"roles are {', '.join(roles)}"
            raise ConfigError(
                f"limits.groups: there is no role {name!r}, and limits.group_by is role"
                f"{suggest_name(name, roles, known)}"
            )
