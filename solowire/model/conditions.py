"""The values of a condition in one canonical form, and each such set once in the whole process.

What it keeps true: sets that mean the same are the same object, however they were spelt, ordered or repeated, and
whatever is beneath another name of a hierarchical attribute is left out. A set that nobody holds any more is forgotten.
All of it takes time in proportion to the text, apart from sorting.

A name's key is the name backwards with a dot behind it: `example.com` has `moc.elpmaxe.`, so a name is at or beneath
another exactly if its key begins with the other's, and what lies beneath a name comes right behind it in sorted order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from weakref import ref

from solowire.model.catalog import Attribute

Values = frozenset[str]

_known: dict[ref[Values], ref[Values]] = {}


def canonicalize_values(attribute: Attribute, values: Iterable[str]) -> Values:
    """These values of a condition on `attribute`, as the shared set of those that say all of it."""
    normal = frozenset(map(attribute.normalize, values))
    if attribute.hierarchical and len(normal) > 1:
        normal = _without_names_beneath(normal)
    return intern_values(normal)


def intersect_values(attribute: Attribute, some: Values, others: Values) -> Values:
    """What meets both of two canonical conditions on `attribute`, in canonical form; empty if nothing does."""
    if some is others:
        return some
    if not attribute.hierarchical:
        return intern_values(some & others)
    return intern_values(_names_beneath(some, others) | _names_beneath(others, some))


def intern_values(values: Values) -> Values:
    """The one set of these values that everybody holds."""
    known = _known.get(ref(values))
    found = known() if known is not None else None
    if found is None:
        found = values
        kept = ref(values, _forget)
        _known[kept] = kept
    return found


def _forget(dead: ref[Values]) -> None:
    _known.pop(dead, None)


@lru_cache(maxsize=16)
def _sorted_keys(names: Values) -> list[str]:
    """Kept of the last few: a user's scope meets each filter of its subscriptions, one after the other."""
    return sorted(map(_key, names))


def _key(name: str) -> str:
    return "" if name == "." else name[::-1] + "."


def _name(key: str) -> str:
    return key[-2::-1] if key else "."


def _without_names_beneath(names: Values) -> Values:
    """`names` without those that are beneath another of them."""
    keys = sorted(map(_key, names))
    kept, above = keys[:1], keys[0]
    for key in keys[1:]:
        if not key.startswith(above):
            kept.append(key)
            above = key
    return names if len(kept) == len(keys) else frozenset(map(_name, kept))


def _names_beneath(names: Values, zones: Values) -> Values:
    """Those of `names` that are at or beneath one of `zones`, of which none is beneath another."""
    if len(names) > len(zones):
        return _names_in_ranges(names, zones)
    keys = _sorted_keys(zones)
    found = []
    for name in names:
        key = _key(name)
        at = bisect_right(keys, key)
        if at and key.startswith(keys[at - 1]):
            found.append(name)
    return frozenset(found)


def _names_in_ranges(names: Values, zones: Values) -> Values:
    """As `_names_beneath`, where there are more names than zones: what is beneath a zone stands in a row."""
    keys = _sorted_keys(names)
    found = []
    for zone in map(_key, zones):
        at = bisect_left(keys, zone)
        while at < len(keys) and keys[at].startswith(zone):
            found.append(_name(keys[at]))
            at += 1
    return frozenset(found)
