"""The dialect of the domain in force, as the settings want it."""

from __future__ import annotations

from datetime import UTC, datetime

from solowire.model.domain import Domain
from solowire.protocol.dialect_requests import DialectRequests
from solowire.runtime.settings import Settings


def make_dialect_requests(settings: Settings, domain: Domain) -> DialectRequests:
    """Which requests are of old clients; where they are not served these are told so."""
    if domain.make_dialect is None:
        return DialectRequests()
    sunset = datetime.fromisoformat(settings.legacy_sunset).replace(tzinfo=UTC)
    dialect = domain.make_dialect(domain.catalog, sunset, settings.legacy_guide)
    return DialectRequests(dialect, is_on=settings.legacy != "off")
