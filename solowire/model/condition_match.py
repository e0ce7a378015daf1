"""The match of an event's attributes with a filter's conditions.

What it keeps true: a value of a hierarchical attribute meets a condition that names it or any name above it, and every
other value only one that names it; an attribute that the event has not meets nothing. The names above a value are made
when it is looked at: to hold them for each event would take many times what the event itself does.
"""

from __future__ import annotations

from collections.abc import Mapping

from solowire.model.catalog import Catalog
from solowire.model.domain_names import names_above
from solowire.model.subscriptions import Filter

Conditions = tuple[tuple[str, frozenset[str], bool], ...]
"""(attribute, one of these values, whether it is hierarchical), all of which must hold."""


def compile_conditions(filter: Filter, catalog: Catalog) -> Conditions:
    """A filter made ready for `meets_conditions`."""
    attributes = catalog.attributes
    return tuple((name, values, name in attributes and attributes[name].hierarchical) for name, values in filter)


def meets_conditions(attributes: Mapping[str, str], conditions: Conditions) -> bool:
    """Whether an event with these attributes meets all conditions."""
    for name, values, hierarchical in conditions:
        value = attributes.get(name)
        if value is None:
            return False
        if value not in values and (not hierarchical or values.isdisjoint(names_above(value))):
            return False
    return True
