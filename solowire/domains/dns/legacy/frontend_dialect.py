"""The dialect of the old frontend as a whole, with its end: since when it is deprecated, and until when it is served.

Headers are those of RFC 9745 (Deprecation), RFC 8594 (Sunset) and RFC 8288 (Link).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.domains.dns.legacy.client_paths import find_client_path
from solowire.domains.dns.legacy.client_session import LegacySession, describe_stats
from solowire.domains.dns.legacy.event_names import EventNames
from solowire.domains.dns.legacy.known_states import ViewStates
from solowire.model.catalog import Catalog
from solowire.model.dialect import GUIDE_PATH, DialectPath, make_relative

DEPRECATED_SINCE = datetime(2026, 12, 1, tzinfo=UTC)

_COME_AT_ONCE = frozenset({1001, 1012, 4421})
"""Going away, restarting, wrong shard: there is another place for it now. The page comes back in 0.06 s on 1000 alone,
with its newest token."""
_POLICY = frozenset({4400, 4401, 4403, 4410})
_LATER = frozenset({1013, 4408, 4409, 4413})
EXPIRED = "token_expired"
"""Why one is closed that may come back with a newer token, which it only does on 1000."""


class LegacyDialect:
    """The dialect of the old frontend.

    catalog: all event types. sunset: when this protocol ends. guide: the address of what to use instead.
    """

    name = "legacy"
    guide_file = Path(__file__).with_name("guide.md")

    def __init__(self, catalog: Catalog, sunset: datetime, guide: str) -> None:
        self._names = EventNames(catalog)
        self._states = ViewStates()
        self.guide = guide
        until = sunset.astimezone(UTC).replace(microsecond=0)
        self._end = (
            ("Deprecation", f"@{int(DEPRECATED_SINCE.timestamp())}"),
            ("Sunset", format_datetime(until, usegmt=True)),
        )
        self._deprecation = {
            "message": "this WebSocket protocol is deprecated: use the unified connection",
            "sunset": format_rfc3339(until, "seconds"),
            "migration_guide": guide,
        }

    def make_headers(self, path: str) -> list[tuple[str, str]]:
        guide = make_relative(GUIDE_PATH, path) if self.guide == GUIDE_PATH else self.guide
        link = f'<{guide}>; rel="deprecation"; type="text/html", <{guide}>; rel="sunset"; type="text/html"'
        return [*self._end, ("Link", link)]

    @property
    def reports(self) -> Mapping[str, Callable[[Mapping[str, Any], str], dict[str, Any]]]:
        return {"/api/websocket/ws/stats": self.describe_totals, "/api/websocket/health": self.describe_health}

    def find_path(self, path: str) -> DialectPath | None:
        return find_client_path(path)

    def open_session(self, path: DialectPath, *, is_admin: bool) -> LegacySession:
        return LegacySession(
            path.kind, self._names, is_admin=is_admin, deprecation=self._deprecation, states=self._states
        )

    def convert_close_code(self, code: int, reason: str) -> int:
        if code in _COME_AT_ONCE or reason == EXPIRED:
            return 1000
        return 1008 if code in _POLICY else 1013 if code in _LATER else code

    def describe_totals(self, totals: Mapping[str, Any], now: str) -> dict[str, Any]:
        return {**describe_stats(totals, self._names), "timestamp": now}

    def describe_health(self, totals: Mapping[str, Any], now: str) -> dict[str, Any]:
        is_healthy = bool(totals.get("shards"))
        return {
            "status": "healthy" if is_healthy else "unhealthy",
            "broadcasting": is_healthy,
            "total_connections": totals.get("connections", 0),
            "total_users": totals.get("users", 0),
            "timestamp": now,
        }
