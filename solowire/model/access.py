"""Identities, roles and views: who someone is, what they may do, and what of an event they may see.

    token ─► Identity ─► View ─► redaction
             who         what      which fields

What it keeps true: a view only ever takes away. A field that is sensitive is shown only to a view with the permission
that shows it; to a view that lacks one of a type's sensitive permissions, fields that the catalogue doesn't declare
are not shown either, since nobody has said what is in them. A redaction that leaves nothing sends nothing.

Views are values: users with equal permissions and scopes share one, and so share feeds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from solowire.algorithms.name_suggestion import suggest_name
from solowire.errors import ConfigError
from solowire.model.catalog import EventType

PUBLISH = "events.publish"
ADMINISTER = "admin"
ADMINISTRATORS = "admin"
"""The group of whoever may administer."""


PERMISSION_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_PERMISSION = re.compile(rf"\*|{PERMISSION_NAME.pattern}(\.\*)?")
_EVERY_NAME = frozenset({"", "."})
"""The root, as hierarchical attributes have it: no token may say it (`solowire.auth.scopes`), and no view believes
it."""


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the holders of a role may do and see.

    permissions: names, `category.*` or `*`. defaults: the subscriptions of a client that asks for none.
    """

    permissions: tuple[str, ...]
    defaults: tuple[str, ...] = ()
    may_connect: bool = True


_READS = ("health.read", "dns.read", "security.read", "system.read", "bulk.read", "custom.read")

ROLES: Mapping[str, Role] = {
    "admin": Role(("*",), ("*",)),
    "operator": Role(
        (*_READS, "users.read", "sensitive.*"),
        ("health.*", "dns.*", "security.*", "system.*", "bulk.*", "custom.*"),
    ),
    "viewer": Role(_READS, ("health.*", "dns.*", "security.*", "system.*", "bulk.*", "custom.*")),
    "publisher": Role((PUBLISH,), may_connect=False),
    "source": Role((PUBLISH, "dns.read")),
}


class Proof(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """The token that proved an identity, as far as it can be revoked. token_id: its `jti`. issued_at: unix seconds.

    It is no part of who somebody is: two identities are equal whichever token proved them, so all proofs are equal.
    """

    token_id: str = ""
    issued_at: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proof)

    def __hash__(self) -> int:
        return 0


class Identity(msgspec.Struct, frozen=True):
    """Who a verified token says you are.

    scopes: attribute → the values you may see. expires: unix seconds. tenant: whose user it is, "" if nobody's.
    """

    user: str
    role: str
    permissions: tuple[str, ...]
    scopes: dict[str, tuple[str, ...]] = {}
    expires: float | None = None
    tenant: str = ""
    proof: Proof = Proof()

    def has_permission(self, permission: str) -> bool:
        return is_granted(self.permissions, permission)


class View(msgspec.Struct, frozen=True):
    """What an identity may see. Hashable; equal views share feeds."""

    permissions: frozenset[str]
    scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def has_permission(self, permission: str) -> bool:
        return is_granted(self.permissions, permission)

    def hidden_fields(self, event_type: EventType) -> frozenset[str]:
        """The sensitive fields of `event_type` that this view may not see."""
        return frozenset(f for f, permission in event_type.sensitive.items() if not self.has_permission(permission))


def make_view(identity: Identity) -> View:
    """What the identity may see. A scope's value that would stand for all names stands for none."""
    scopes = sorted((name, tuple(sorted(set(values) - _EVERY_NAME))) for name, values in identity.scopes.items())
    return _shared_view(identity.permissions, tuple(scopes))


@lru_cache(maxsize=1024)
def _shared_view(permissions: tuple[str, ...], scopes: tuple[tuple[str, tuple[str, ...]], ...]) -> View:
    """One for all connections that may see the same: it takes a KB."""
    return View(frozenset(permissions), scopes)


def find_group(identity: Identity, group_by: str) -> str:
    """With whom the identity shares connections. group_by: `role` or `tenant`.

    Administrators are a group of their own, whatever their role or tenant is called, and nobody else is in it: a tenant
    that calls itself so shares with those who have none.
    """
    if identity.has_permission(ADMINISTER):
        return ADMINISTRATORS
    name = identity.tenant if group_by == "tenant" else identity.role
    return name if name != ADMINISTRATORS else ""


@lru_cache(maxsize=1024)
def is_granted(permissions: tuple[str, ...] | frozenset[str], wanted: str) -> bool:
    """Whether one of `permissions` (a name, `x.*` or `*`) covers `wanted`.

    Answers are kept, since it is asked several times for each who connects, and roles are few.
    """
    return any(p == wanted or p == "*" or (p.endswith(".*") and wanted.startswith(p[:-1])) for p in permissions)


def redact(data: Mapping[str, Any], event_type: EventType, hidden: frozenset[str]) -> dict[str, Any] | None:
    """`data` without what `hidden` names and without undeclared fields; None when nothing is left to send."""
    declared = event_type.field_names
    kept = {name: value for name, value in data.items() if name not in hidden and (not declared or name in declared)}
    return kept or None


def parse_roles(text: str, origin: str) -> dict[str, Role]:
    """Roles from TOML: `[roles.NAME]` with `permissions = [...]`, `defaults = [...]`, `may_connect = true`.

    They replace the built-in ones. Raises ConfigError that names `origin` and the fault.
    """
    try:
        document = tomllib.loads(text)
        _check_keys(document, origin)
        roles = msgspec.convert(document, _RolesFile).roles
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"roles file {origin}: {error}") from error
    if not roles:
        raise ConfigError(f"roles file {origin}: it defines no role; add [roles.NAME] with permissions = [...]")
    for name, role in roles.items():
        if not name.strip():
            raise ConfigError(f"roles file {origin}: a role has no name; write [roles.NAME]")
        wrong = [permission for permission in role.permissions if not _PERMISSION.fullmatch(permission)]
        if wrong:
            fault = f"the role {name!r} has the permission {wrong[0]!r}, which is none"
            raise ConfigError(f"roles file {origin}: {fault}; write category.name, category.* or *")
    return roles


def _check_keys(document: Mapping[str, Any], origin: str) -> None:
    """Raises ConfigError for a key that nothing reads; what else is wrong is told by msgspec."""
    tables: dict[str, Any] = {"": document}
    roles = document.get("roles")
    if isinstance(roles, dict):
        tables |= {f" in [roles.{name}]": role for name, role in roles.items()}
    for place, table in tables.items():
        known = Role.__struct_fields__ if place else _RolesFile.__struct_fields__
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                suggestion = suggest_name(key, known, f"known are {', '.join(known)}")
                if key in ("scopes", "zones"):
                    suggestion = "; scopes stand in tokens: a role says what is done, and a token of whom and where"
                raise ConfigError(f"roles file {origin}: unknown key {key!r}{place}{suggestion}")


class _RolesFile(msgspec.Struct, forbid_unknown_fields=True):
    roles: dict[str, Role]
