"""The names of permissions: which there are, which are meant, and what is left of a role that a token narrows.

A name stands for itself, `x.*` for all that begin with `x.`, and `*` for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from solowire.algorithms.name_suggestion import suggest_name
from solowire.model.access import ADMINISTER, PUBLISH, is_granted
from solowire.model.catalog import Catalog


@lru_cache(maxsize=8)
def list_permissions(catalog: Catalog) -> tuple[str, ...]:
    """All that anything asks for."""
    reads = (event_type.permission for event_type in catalog.types)
    shows = (shows for event_type in catalog.types for shows in event_type.sensitive.values())
    return tuple(dict.fromkeys((ADMINISTER, PUBLISH, *reads, *shows)))


@lru_cache(maxsize=8)
def _list_patterns(catalog: Catalog) -> frozenset[str]:
    families = (f"{name.rpartition('.')[0]}.*" for name in list_permissions(catalog) if "." in name)
    return frozenset(("*", *list_permissions(catalog), *families))


def describe_permission_fault(permission: str, catalog: Catalog) -> str:
    """What is wrong with it, and what may be meant, such as `'dns.raed', which nothing asks for: …`; "" if nothing."""
    known = _list_patterns(catalog)
    if permission in known:
        return ""
    names = list_permissions(catalog)
    otherwise = f"known are {', '.join(names)}, x.* for those that begin with x., and *"
    return f"{permission[:100]!r}, which nothing asks for{suggest_name(permission, sorted(known), otherwise)}"


def narrow_permissions(granted: tuple[str, ...], claimed: Sequence[str]) -> tuple[str, ...]:
    """What both cover: of a role that grants `granted`, as far as a token claims it. Neither is ever widened."""
    asked = tuple(claimed)
    both = [name for name in asked if is_granted(granted, name)]
    both += [name for name in granted if is_granted(asked, name)]
    return tuple(dict.fromkeys(both))
