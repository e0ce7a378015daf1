"""From what a client asks for to what it gets: patterns and filters, judged by its view.

    wanted     {"dns.*": Filter, "security_alert": Filter}, as the client said it, kept for the connection's life
    selection  (("record_updated", conditions), …), what its feed matches by
    denied     what it may not have, and why

What it keeps true: a selection holds only types that the view may see, and the view's scopes are conditions of every
type that declares the attribute, so no filter can widen them. A filter by an attribute that shows a field which the
view may not see is refused too: matching by it would tell what redaction hides.

A filter's value list means "one of", several attributes mean "and"; it narrows the types that declare the attribute
and leaves the others alone, so that `dns.*` and `system_metrics` can share one filter by zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from solowire.access import View
from solowire.catalog import Catalog, EventType
from solowire.errors import InvalidMessage

MAX_PATTERNS = 200
MAX_FILTER_VALUES = 200
_FEWER = "name fewer, or use a wildcard such as dns.*"
CUSTOM = "custom.*"

Filter = tuple[tuple[str, frozenset[str]], ...]
"""Conditions, all of which must hold: (attribute, one of these values). In the order of the attributes' names."""

Selection = tuple[tuple[str, Filter], ...]
"""Event types, each with the conditions that its events must meet. Sorted, hashable: part of a feed's key."""


class Denied(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription that was not granted. reason: `unknown_type`, `forbidden` or `filter`."""

    type: str
    reason: str
    hint: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """The outcome of `resolve`."""

    selection: Selection
    denied: list[Denied]

    @property
    def names(self) -> list[str]:
        """The granted event types, sorted; `custom.*` stands for all custom types that are not named beside it."""
        return [name for name, _ in self.selection]


Wanted = dict[str, Filter]
"""What a connection asked for: pattern or type → its filter."""


def parse_filter(raw: Mapping[str, list[str]] | None, catalog: Catalog) -> Filter:
    """A client's filter in canonical form. Raises InvalidMessage for an attribute that no event type declares."""
    if not raw:
        return ()
    known = catalog.attributes
    conditions = []
    for name, values in sorted(raw.items()):
        attribute = known.get(name)
        if attribute is None:
            raise InvalidMessage(
                "invalid_filter",
                f"no event type has an attribute {name[:64]!r}",
                "attributes are " + ", ".join(sorted(known)),
            )
        if not values:
            raise InvalidMessage("invalid_filter", f"the filter by {name!r} lists no values", "leave it out to get all")
        if len(values) > MAX_FILTER_VALUES:
            raise InvalidMessage("invalid_filter", f"a filter may list {MAX_FILTER_VALUES} values at most", _FEWER)
        conditions.append((name, frozenset(attribute.normalize(v) for v in values)))
    return tuple(conditions)


def check_patterns(patterns: Iterable[str]) -> None:
    """Raises InvalidMessage if there are more than anyone needs."""
    if sum(1 for _ in patterns) > MAX_PATTERNS:
        raise InvalidMessage("too_many", f"one message may name {MAX_PATTERNS} event types at most", _FEWER)


def expand(pattern: str, catalog: Catalog) -> tuple[str, ...]:
    """The types that a pattern names; empty if it names none. `*`, `category.*`, a type, or `custom.name`."""
    if pattern == "*":
        return (*catalog.names, CUSTOM)
    if pattern == CUSTOM:
        return (CUSTOM,)
    if pattern.endswith(".*"):
        return catalog.categories.get(pattern[:-2], ())
    return (pattern,) if catalog.get(pattern) is not None else ()


def wanted_of(
    patterns: Iterable[str],
    filter: Mapping[str, list[str]] | None,
    filters: Mapping[str, Mapping[str, list[str]]] | None,
    catalog: Catalog,
) -> Wanted:
    """What a `hello` asks for: each of `patterns` under its own filter of `filters`, else under `filter`.

    Raises InvalidMessage, as `check_patterns` and `parse_filter` do, and if `filters` names what is not in `patterns`.
    """
    patterns = list(patterns)
    check_patterns(patterns)
    common = parse_filter(filter, catalog)
    unasked = (filters or {}).keys() - set(patterns)
    if unasked:
        raise InvalidMessage(
            "invalid_filter",
            f"'filters' names {min(unasked)[:64]!r}, which 'subscriptions' does not",
            "name it in both, spelt alike",
        )
    own = {pattern: parse_filter(raw, catalog) for pattern, raw in (filters or {}).items()}
    return {pattern: own.get(pattern, common) for pattern in patterns}


def subscribe(wanted: Wanted, patterns: Iterable[str], filter: Filter) -> Wanted:
    """`wanted` with `patterns` added, each under `filter`; one that was there gets the new filter, and comes last.

    Raises InvalidMessage if that makes more than anyone needs.
    """
    both = _last(wanted, patterns, filter)
    if len(both) > MAX_PATTERNS:
        raise InvalidMessage(
            "too_many",
            f"one connection may ask for {MAX_PATTERNS} event types at most",
            "unsubscribe from some, or use a wildcard",
        )
    return both


def unsubscribe(wanted: Wanted, patterns: Iterable[str], catalog: Catalog) -> Wanted:
    """`wanted` without what `patterns` name; a wider pattern is taken apart into the types that stay.

    Raises InvalidMessage for one custom type out of `custom.*`, since the types that stay can't be listed.
    """
    leaving = {name for pattern in patterns for name in (*expand(pattern, catalog), pattern)}
    kept: Wanted = {}
    for pattern, filter in wanted.items():
        if pattern in leaving:
            continue
        names = expand(pattern, catalog)
        staying = [n for n in names if n not in leaving and not (CUSTOM in leaving and n.startswith("custom."))]
        if CUSTOM in staying and any(n.startswith("custom.") for n in leaving):
            raise InvalidMessage(
                "invalid_message",
                "one custom type can't be taken out of custom.*",
                "unsubscribe custom.* and subscribe to those you want",
            )
        kept = _last(kept, [pattern] if len(staying) == len(names) else staying, filter)
    return kept


def _last(wanted: Wanted, patterns: Iterable[str], filter: Filter) -> Wanted:
    """`wanted` with `patterns` at its end: later ones win, and a key that is assigned again keeps its old place."""
    added = dict.fromkeys(patterns, filter)
    return {pattern: old for pattern, old in wanted.items() if pattern not in added} | added


def resolve(wanted: Wanted, view: View, catalog: Catalog) -> Resolved:
    """What `wanted` means under `view`. Later patterns win over earlier ones where they name the same type.

    A wildcard grants what it may, and is denied only if that is nothing; a type asked for by name is denied by name.
    """
    granted: dict[str, Filter] = {}
    denied: dict[str, Denied] = {}
    for pattern, filter in wanted.items():
        names = expand(pattern, catalog)
        if not names:
            denied[pattern] = Denied(pattern, "unknown_type", "GET /v1/catalog lists the event types")
            continue
        refusals = []
        for name in names:
            event_type = catalog[name]  # expand() names only types of the catalogue
            refusal = _refusal(name, event_type, filter, view)
            if refusal is None:
                if name == CUSTOM:  # it names all that came before it, as any wildcard does
                    granted = {n: f for n, f in granted.items() if not n.startswith("custom.")}
                granted[name] = _conditions(event_type, filter, view)
            else:
                refusals.append(refusal)
        if len(refusals) == len(names):
            denied[pattern] = Denied(pattern, refusals[0].reason, refusals[0].hint)
    if CUSTOM in granted:
        # A custom type beside all of them counts only where it differs: equal selections should share a feed.
        same = granted[CUSTOM]
        granted = {n: f for n, f in granted.items() if n == CUSTOM or not n.startswith("custom.") or f != same}
    return Resolved(tuple(sorted(granted.items(), key=_by_name)), list(denied.values()))


def _by_name(item: tuple[str, Filter]) -> str:
    return item[0]


def _refusal(name: str, event_type: EventType, filter: Filter, view: View) -> Denied | None:
    if not view.may(event_type.permission):
        return Denied(name, "forbidden", f"needs the permission {event_type.permission}")
    hidden = view.hidden(event_type)
    for attribute, _ in filter:
        declared = event_type.attribute(attribute)
        if declared is not None and not hidden.isdisjoint(declared.fields):
            return Denied(name, "filter", f"you may not see {attribute!r}, so you can't filter by it")
    return None


def _conditions(event_type: EventType, filter: Filter, view: View) -> Filter:
    conditions = [c for c in filter if event_type.attribute(c[0]) is not None]
    for name, values in view.scopes:
        attribute = event_type.attribute(name)
        if attribute is not None:
            conditions.append((name, frozenset(attribute.normalize(v) for v in values)))
    return tuple(conditions)
