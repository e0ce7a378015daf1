"""`solowire stats`: the shards as a table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from solowire.errors import PublishRefused

_COLUMNS = (
    ("shard", "shard"),
    ("address", "address"),
    ("connections", "connections"),
    ("feeds", "feeds"),
    ("lagging", "lagging"),
    ("events", "events"),
    ("deliveries", "deliveries"),
    ("frames", "frames"),
    ("bytes", "bytes"),
    ("behind", "behind"),
)


async def show(url: str, token: str | Callable[[], str], *, watch: bool, as_json: bool) -> None:
    """Prints the shards once, or keeps the table up to date. Raises ClientError."""
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        shards = await _ask(http, token)
        if as_json:
            print(json.dumps(shards, indent=2))
            return
        if not watch:
            Console().print(table_of(shards))
            return
        with Live(table_of(shards), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(1)
                live.update(table_of(await _ask(http, token)), refresh=True)


def table_of(shards: list[dict[str, Any]]) -> Table:
    """A row for each shard, and their sum where there are several."""
    table = Table(show_footer=len(shards) > 1, header_style="bold")
    for name, key in _COLUMNS:
        numbers = [s[key] for s in shards]
        total = f"{sum(numbers):,}" if key not in ("shard", "address") else ""
        table.add_column(name, footer="all" if key == "shard" else total, justify="right")
    for shard in shards:
        table.add_row(*(f"{v:,}" if isinstance(v := shard[key], int) else str(v) for _, key in _COLUMNS))
    return table


async def _ask(http: httpx.AsyncClient, token: str | Callable[[], str]) -> list[dict[str, Any]]:
    bearer = token() if callable(token) else token
    try:
        answer = await http.get("/v1/stats/shards", headers={"authorization": f"Bearer {bearer}"})
    except httpx.HTTPError as error:
        raise PublishRefused(0, {"detail": f"{http.base_url} can't be reached: {error}"}) from None
    body = answer.json()
    if answer.status_code != 200:
        raise PublishRefused(answer.status_code, body)
    shards: list[dict[str, Any]] = body
    return shards
