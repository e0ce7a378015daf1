"""The domain in force: that of DNS, with the event types of the deployment's own file, if there is one.

What settings say of event types and scopes is judged here, since it may be said of the deployment's own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from solowire.algorithms.name_suggestion import suggest_name
from solowire.domains.dns.dns_domain import DNS
from solowire.errors import ConfigError
from solowire.model.catalog import Catalog, EventType
from solowire.model.domain import Domain
from solowire.model.events import Delivery
from solowire.runtime.settings import Settings

MAX_FILE_BYTES = 4 * 2**20


def load_domain(settings: Settings) -> Domain:
    """Raises ConfigError, which names the file and what is wrong with it."""
    domain = DNS
    if settings.catalog is not None:
        from solowire.model.type_declarations import parse_types  # its library is only needed where there is a file

        document, origin = _read_document(settings.catalog), str(settings.catalog)
        declared = parse_types(document, origin, DNS.catalog, DNS.reserved_types)
        domain = msgspec.structs.replace(DNS, catalog=DNS.catalog.extend(declared))
    rates, intervals = settings.shard.aggregation.type_events_per_s, settings.shard.conflation.type_interval_s
    for path, types, delivery in (
        ("shard.aggregation.type_events_per_s", rates, Delivery.telemetry),
        ("shard.conflation.type_interval_s", intervals, Delivery.state),
    ):
        _check_types(settings.name_setting(path), types, delivery, domain.catalog)
    return domain


def list_own_types(domain: Domain) -> list[EventType]:
    """The event types of the deployment's own file."""
    return [event_type for event_type in domain.catalog.types if DNS.catalog.get_declared(event_type.name) is None]


def name_scopes(settings: Settings, domain: Domain) -> dict[str, str]:
    """Scope → claim, with each scope called as the domain's attribute is. Raises ConfigError for one that is none."""
    named = {}
    for scope, claim in settings.auth.claims.scope_mapping.items():
        attribute = domain.find_scope(scope)
        if attribute is None:
            place = settings.name_setting("auth.claims.scope_mapping")
            raise ConfigError(f"{place}: {scope!r} is no scope; scopes are {domain.scope_names}")
        named[attribute.name] = claim
    return named


def _check_types(name: str, types: Iterable[str], delivery: Delivery, catalog: Catalog) -> None:
    """Raises ConfigError if one of the event types that a setting names is not of this kind."""
    for kind in types:
        found = catalog.get(kind)
        if found is None or found.delivery is not delivery:
            fitting = [known for known in catalog.names if catalog[known].delivery is delivery]
            fault = "is no event type" if found is None else f"is {found.delivery.value}, not {delivery.value}"
            meant = suggest_name(kind, fitting, "there are " + ", ".join(fitting))
            raise ConfigError(f"{name}: {kind!r} {fault}{meant}")


def _read_document(path: Path) -> object:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"catalog {path}: it has {size} bytes, {MAX_FILE_BYTES} are the most")
        text = path.read_text("utf-8-sig")
        return json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"catalog {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise ConfigError(f"catalog {path}: it is not valid {kind}: {error}") from None
