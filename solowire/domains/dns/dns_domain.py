"""The domain of DNS administration, as the processes are given it."""

from __future__ import annotations

from solowire.domains.dns.event_types import CATALOG
from solowire.domains.dns.legacy.client_session import OWN_FRAMES
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.model.domain import Domain

DNS = Domain(
    CATALOG,
    scope_aliases={"zones": "zone"},
    admin_claim="is_admin",
    make_dialect=LegacyDialect,
    reserved_types=OWN_FRAMES,
)
