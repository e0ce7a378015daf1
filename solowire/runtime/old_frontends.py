"""The dialect that the settings ask for, with the domain's own words in it."""

from __future__ import annotations

from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.protocol.dialect_requests import DialectRequests
from solowire.runtime.settings import Settings


def make_dialect_requests(settings: Settings) -> DialectRequests:
    """Which requests are of old frontends; none where they are not served, but for a word where they come."""
    dialect = LegacyDialect(sunset=settings.legacy_sunset, guide=settings.legacy_guide)
    return DialectRequests(dialect, is_on=settings.legacy != "off")
