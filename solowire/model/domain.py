"""A domain: what one application brings to the core, which knows no event type and no scope of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec

from solowire.model.catalog import Attribute, Catalog
from solowire.model.dialect import Dialect


class Domain(msgspec.Struct, frozen=True):
    """An application's event types, and how its tokens are worded.

    scope_aliases: how people name a scope → the attribute that it narrows. admin_claim: a boolean claim of older
    tokens that says `admin` where there is no role; None: there is none. make_dialect: makes the protocol of older
    clients, of the catalogue in force, the time of its end and the address of a guide; None: there is none.
    reserved_types: what that protocol's clients take for something else than an event, so that no type is called so.
    """

    catalog: Catalog
    scope_aliases: Mapping[str, str] = {}
    admin_claim: str | None = None
    make_dialect: Callable[[Catalog, datetime, str], Dialect] | None = None
    reserved_types: frozenset[str] = frozenset()

    def find_scope(self, name: str) -> Attribute | None:
        """The attribute that a scope of this name narrows, None if there is none."""
        return self.catalog.attributes.get(self.scope_aliases.get(name, name))

    @property
    def scope_names(self) -> str:
        """The names of all scopes, for people."""
        aliased = {attribute: alias for alias, attribute in self.scope_aliases.items()}
        return ", ".join([*aliased.values(), *sorted(self.catalog.attributes)])
