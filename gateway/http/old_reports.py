"""Reports for old clients' tools over HTTP: totals in the dialect's own shapes, and the way out of it.

What it keeps true: reports are for administrators alone, and say that they are deprecated; where the dialect is off,
they say so and what to use instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from solowire.algorithms.rfc3339 import format_rfc3339
from solowire.gateway.router_client import RouterClient
from solowire.model.access import Identity
from solowire.model.dialect import GUIDE_PATH
from solowire.observability.stats_summary import aggregate
from solowire.protocol.dialect_requests import DialectRequests

Req = Request[Any, Any, Any]
_OPEN = "open "


def make_old_reports(
    dialects: DialectRequests, gateway: RouterClient, authorize: Callable[[Req, str], Awaitable[Identity]]
) -> list[HTTPRouteHandler]:
    """Handlers for the dialect's paths, and for the guide. authorize: of an administrator, for an audited action."""
    dialect = dialects.dialect
    if dialect is None:
        return []
    guide = dialect.guide_file.read_text("utf-8")

    def make_report(path: str, describe: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> HTTPRouteHandler:
        headers = {name.lower(): value for name, value in dialect.make_headers(path)}

        @get(path, include_in_schema=False)
        async def report(request: Req) -> Response[dict[str, Any]]:
            dialects.need_on(path)
            await authorize(request, "stats")
            totals = await _fetch_totals(gateway)
            return Response(describe(totals, format_rfc3339(datetime.now(UTC))), headers=headers)

        return report

    @get(GUIDE_PATH, include_in_schema=False, media_type="text/markdown")
    async def show_guide() -> str:
        return guide

    return [*(make_report(path, describe) for path, describe in dialect.reports.items()), show_guide]


async def _fetch_totals(gateway: RouterClient) -> dict[str, Any]:
    answer = await gateway.fetch_stats()
    whole = aggregate(report.stats for report in answer.shards)
    kinds = {name.removeprefix(_OPEN): count for name, count in whole["legacy"].items() if name.startswith(_OPEN)}
    return {**whole, "shards": len(answer.shards), "queued": whole["lagging"], "dialect_kinds": kinds}
