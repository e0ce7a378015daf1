"""From what a client asks for to what it gets: patterns and filters, judged by its view.

    wanted     {"dns.*": Filter, "security_alert": Filter}, as the client said it, kept for the connection's life
    selection  (("record_updated", conditions), …), what its feed matches by
    denied     what it may not have, and why

What it keeps true: a selection holds only types that the view may see, and the view's scopes are conditions of every
type that declares the attribute, so no filter can widen them. A filter by an attribute that shows a field which the
view may not see is refused too: matching by it would tell what redaction hides. Filters and selections are canonical:
those that mean the same are equal, however they were said, and hold the same sets of values (`narrow_filter`). What one
connection asks for has bounds, and it takes time in proportion to the message to say what it means.

A filter's value list means "one of", several attributes mean "and"; it narrows the types that declare the attribute
and leaves the others alone, so that `dns.*` and `system_metrics` can share one filter by zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from solowire.errors import InvalidMessage
from solowire.model.access import View
from solowire.model.catalog import Attribute, Catalog, EventType
from solowire.model.conditions import Values, canonicalize_values, intern_values, intersect_values

MAX_PATTERNS = 200
MAX_FILTER_VALUES = 200
_FEWER = "name fewer, or use a wildcard such as dns.*"
_FEWER_VALUES = "list fewer of them, or leave the filter out to get all"
MAX_VALUES = 1_000
"""What all filters of one connection list together, those that are equal once."""

MAX_VALUE_CHARACTERS = 1_024
"""Of one value of a filter. A DNS name of 255 bytes, each of them written as \\DDD, is shorter."""

MAX_HINTS = 10
"""So many of what is denied come with a hint: a short message of many names must not have a long answer."""

MAX_NAME_CHARACTERS = 128
_NAME_ALONE = re.compile(r"[^\s\\.]+\.[^\s\\]+")
_LISTED = "GET /v1/catalog lists the event types"
"""No event type has a longer name: what is denied is told up to there."""

CUSTOM = "custom.*"

Filter = tuple[tuple[str, Values], ...]
"""Conditions, all of which must hold: (attribute, one of these values). One for each attribute, in the order of the
attributes' names; canonical.
"""

NO_EVENT: Filter = (("", intern_values(frozenset())),)
"""The one filter that nothing meets."""

Selection = tuple[tuple[str, Filter], ...]
"""Event types, each with the conditions that its events must meet. Sorted, hashable: part of a feed's key."""


class DeniedPattern(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription that was not granted. reason: `unknown_type`, `forbidden` or `filter`."""

    type: str
    reason: str
    hint: str = ""


class ResolvedSubscriptions(msgspec.Struct, frozen=True):
    """The outcome of `resolve`."""

    selection: Selection
    denied: list[DeniedPattern]

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
    conditions: list[tuple[str, Values]] = []
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
            most = f"a filter may list {MAX_FILTER_VALUES} values at most"
            raise InvalidMessage("invalid_filter", most, _FEWER_VALUES)
        if max(map(len, values)) > MAX_VALUE_CHARACTERS:
            raise InvalidMessage(
                "invalid_filter",
                f"a value of the filter by {name!r} is longer than {MAX_VALUE_CHARACTERS} characters",
                "no event can have this value",
            )
        if attribute.hierarchical:
            _check_names(name, values)
        elif (listed := catalog.values.get(name)) is not None and (wrong := sorted(set(values) - listed)):
            raise InvalidMessage(
                "invalid_filter",
                f"the filter by {name!r}: no event has {wrong[0][:64]!r}",
                f"its values are {', '.join(sorted(listed))}",
            )
        if not attribute.hierarchical:
            _check_plain(name, values)
        fault = next(filter(None, (attribute.describe_fault(attribute.normalize(value)) for value in values)), None)
        if fault is not None:
            raise InvalidMessage("invalid_filter", f"the filter by {name!r}: {fault}", "no event can have this value")
        conditions.append((name, canonicalize_values(attribute, values)))
    return tuple(conditions)


def _check_names(attribute: str, values: Iterable[str]) -> None:
    """Raises InvalidMessage for what would mean all names, or none, where one was meant."""
    for value in values:
        if not value.strip():
            fault, hint = "is empty, and would let every name through", "leave the filter out to get all"
        elif value == "*" or value.startswith("*."):
            fault, hint = (
                "is a wildcard",
                "a name lets through all names beneath it: write example.com for *.example.com",
            )
        elif value != value.strip():
            fault, hint = "has blanks around it", "write the name alone, such as example.com"
        elif "," in value and all(_NAME_ALONE.fullmatch(part.strip()) for part in value.split(",")):
            fault, hint = "is several names in one", "list each by itself"
        else:
            continue
        raise InvalidMessage("invalid_filter", f"the filter by {attribute!r}: {value[:64]!r} {fault}", hint)


def _check_plain(attribute: str, values: Iterable[str]) -> None:
    """Raises InvalidMessage for what would match nothing, where something else was meant; scopes refuse the same."""
    for value in values:
        if not value.strip():
            fault, hint = "is empty", "leave the filter out to get all"
        elif value == "*":
            fault, hint = "is a wildcard", "list the values, or leave the filter out to get all"
        elif value != value.strip():
            fault, hint = "has blanks around it", "write it as events have it"
        elif attribute == "client_ip" and "/" in value:
            fault, hint = "is a network", "list the addresses, each as events have it, such as 192.0.2.7"
        else:
            continue
        raise InvalidMessage("invalid_filter", f"the filter by {attribute!r}: {value[:64]!r} {fault}", hint)


def find_idle(filter: Filter, patterns: Iterable[str], catalog: Catalog) -> list[str]:
    """The attributes that a filter asks for and that no type which the patterns name declares: they narrow nothing.

    None of them where a pattern names what the catalogue doesn't know, as a deployment's own type.
    """
    expanded = [expand_pattern(pattern, catalog) for pattern in patterns]
    types = [catalog.get_declared(name) for names in expanded for name in names]
    if not all(expanded) or not any(types):
        return []
    return [name for name, _ in filter if not any(t is not None and t.find_attribute(name) is not None for t in types)]


def count_values(filters: Iterable[Filter]) -> int:
    """How many values filters list together, those that are equal once."""
    return sum(len(values) for conditions in set(filters) for _, values in conditions)


def check_values(wanted: Wanted) -> None:
    """Raises InvalidMessage if a connection's filters list more values than anyone needs."""
    if count_values(wanted.values()) > MAX_VALUES:
        raise InvalidMessage(
            "too_many",
            f"the filters of one connection may list {MAX_VALUES} values at most, equal filters once",
            "filter by fewer values, or use the same filter for several event types",
        )


def check_patterns(patterns: Iterable[str]) -> None:
    """Raises InvalidMessage if there are more than anyone needs."""
    if sum(1 for _ in patterns) > MAX_PATTERNS:
        raise InvalidMessage("too_many", f"one message may name {MAX_PATTERNS} event types at most", _FEWER)


def expand_pattern(pattern: str, catalog: Catalog) -> tuple[str, ...]:
    """The types that a pattern names; empty if it names none. `*`, `category.*`, a type, or `custom.name`."""
    if pattern == "*":
        return (*catalog.names, CUSTOM)
    if pattern == CUSTOM:
        return (CUSTOM,)
    if pattern.endswith(".*"):
        return catalog.categories.get(pattern[:-2], ())
    return (pattern,) if catalog.get(pattern) is not None else ()


def parse_wanted(
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
    same = {common: common}
    own = {}
    for pattern, raw in (filters or {}).items():
        conditions = parse_filter(raw, catalog)
        own[pattern] = same.setdefault(conditions, conditions)
    return {pattern: own.get(pattern, common) for pattern in patterns}


def subscribe(wanted: Wanted, patterns: Iterable[str], filter: Filter) -> Wanted:
    """`wanted` with `patterns` added, each under `filter`; one that was there gets the new filter, and comes last.

    Raises InvalidMessage if that makes more than anyone needs.
    """
    both = _move_last(wanted, patterns, filter)
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
    leaving = {name for pattern in patterns for name in (*expand_pattern(pattern, catalog), pattern)}
    kept: Wanted = {}
    for pattern, filter in wanted.items():
        if pattern in leaving:
            continue
        names = expand_pattern(pattern, catalog)
        staying = [n for n in names if n not in leaving and not (CUSTOM in leaving and n.startswith("custom."))]
        if CUSTOM in staying and any(n.startswith("custom.") for n in leaving):
            raise InvalidMessage(
                "invalid_message",
                "one custom type can't be taken out of custom.*",
                "unsubscribe custom.* and subscribe to those you want",
            )
        for name in [pattern] if len(staying) == len(names) else staying:
            kept.pop(name, None)  # later ones win, and a key that is assigned again keeps its old place
            kept[name] = filter
    return kept


def list_unknown_types(patterns: Iterable[str], catalog: Catalog) -> list[DeniedPattern]:
    """Those of `patterns` that name no event type, each once."""
    denied: dict[str, DeniedPattern] = {}
    for pattern in patterns:
        if not expand_pattern(pattern, catalog):
            _deny(denied, pattern, "unknown_type", _LISTED)
    return list(denied.values())


def drop_unknown(wanted: Wanted, catalog: Catalog) -> Wanted:
    """`wanted` without what names no event type: that is told once, and not kept."""
    return {pattern: filter for pattern, filter in wanted.items() if expand_pattern(pattern, catalog)}


def _move_last(wanted: Wanted, patterns: Iterable[str], filter: Filter) -> Wanted:
    """`wanted` with `patterns` at its end."""
    added = dict.fromkeys(patterns, filter)
    return {pattern: old for pattern, old in wanted.items() if pattern not in added} | added


def resolve(wanted: Wanted, view: View, catalog: Catalog) -> ResolvedSubscriptions:
    """What `wanted` means under `view`. Later patterns win over earlier ones where they name the same type.

    A wildcard grants what it may, and is denied only if that is nothing; a type asked for by name is denied by name.
    """
    granted: dict[str, Filter] = {}
    denied: dict[str, DeniedPattern] = {}
    narrowing = _Narrower(view, catalog)
    for pattern, filter in wanted.items():
        names = expand_pattern(pattern, catalog)
        if not names:
            _deny(denied, pattern, "unknown_type", _LISTED)
            continue
        refusals = []
        for name in names:
            event_type = catalog.get_declared(name) or catalog[name]
            refusal = _find_refusal(event_type, filter, view)
            if refusal is None:
                if name == CUSTOM:  # it names all that came before it, as any wildcard does
                    granted = {n: f for n, f in granted.items() if not n.startswith("custom.")}
                granted[name] = narrowing.narrow_filter(event_type, filter)
            else:
                refusals.append(refusal)
        if len(refusals) == len(names):
            _deny(denied, pattern, *refusals[0])
    if CUSTOM in granted:
        # A custom type beside all of them counts only where it differs: equal selections should share a feed.
        same = granted[CUSTOM]
        granted = {n: f for n, f in granted.items() if n == CUSTOM or not n.startswith("custom.") or f != same}
    return ResolvedSubscriptions(tuple(sorted(granted.items(), key=_by_name)), list(denied.values()))


def _by_name(item: tuple[str, Filter]) -> str:
    return item[0]


def _deny(denied: dict[str, DeniedPattern], pattern: str, reason: str, hint: str) -> None:
    quoted = _quote_pattern(pattern)
    denied[quoted] = DeniedPattern(quoted, reason, hint if len(denied) < MAX_HINTS else "")


def _quote_pattern(pattern: str) -> str:
    return pattern[:MAX_NAME_CHARACTERS]


def _find_refusal(event_type: EventType, filter: Filter, view: View) -> tuple[str, str] | None:
    """Why the view may not have the type under this filter, and what to do."""
    if not view.has_permission(event_type.permission):
        return "forbidden", f"needs the permission {event_type.permission}"
    if filter and event_type.sensitive:
        hidden = view.hidden_fields(event_type)
        for attribute, _ in filter:
            declared = event_type.find_attribute(attribute)
            if declared is not None and not hidden.isdisjoint(declared.fields):
                return "filter", f"you may not see {attribute!r}, so you can't filter by it"
    return None


class _Narrower:
    """The meaning of filters for each event type under one view.

    It is worked out once for all types that have equal attributes, and equal filters are one.
    """

    def __init__(self, view: View, catalog: Catalog) -> None:
        known = catalog.attributes
        self._scopes = {name: canonicalize_values(known[name], values) for name, values in view.scopes if name in known}
        self._made: dict[tuple[Filter, tuple[Attribute, ...]], Filter] = {}
        self._same: dict[Filter, Filter] = {}

    def narrow_filter(self, event_type: EventType, filter: Filter) -> Filter:
        """What of the filter and the scopes narrows the type."""
        if not filter and not self._scopes:
            return ()
        key = (filter, event_type.attributes)
        made = self._made.get(key)
        if made is None:
            made = self._narrow(event_type, filter)
            made = self._made[key] = self._same.setdefault(made, made)
        return made

    def _narrow(self, event_type: EventType, filter: Filter) -> Filter:
        given = dict(filter)
        conditions: dict[str, Values] = {}
        for attribute in event_type.attributes:
            name = attribute.name
            values, scope = given.get(name), self._scopes.get(name)
            if values is not None and scope is not None:
                values = intersect_values(attribute, values, scope)
            elif values is None:
                values = scope
            if values is not None:
                if not values:
                    return NO_EVENT
                conditions[name] = values
        return tuple(sorted(conditions.items(), key=_condition_name))


def _condition_name(condition: tuple[str, Values]) -> str:
    return condition[0]
