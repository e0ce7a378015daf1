"""`solowire stats` and `solowire drain`: the shards as a table, and one of them emptied."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from solowire.cli.stats_table import is_shard, table_of
from solowire.errors import NAME_IT, START, ClientError, PublishRefused

WATCH_SECONDS = 1.0
_WIDE = 200


async def show(url: str, token: str | Callable[[], str], *, watch: bool, as_json: bool) -> None:
    """Prints the shards once, or keeps the table up to date. Raises ClientError."""
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        if as_json and not watch:
            print(json.dumps(await _ask(http, token), indent=2))
            return
        while as_json:  # until whoever reads has enough: a line has to be whole, and out, before the next is asked for
            print(json.dumps(await _ask(http, token), separators=(",", ":")), flush=True)
            await asyncio.sleep(WATCH_SECONDS)
        # Into a pipe the table is as wide as it has to be: nobody's terminal folds it there.
        console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
        shards, whole = await _ask(http, token), await _ask_all(http, token)
        if not watch:
            console.print(table_of(shards, whole, console.width))
            return
        with Live(table_of(shards, whole, console.width), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                shards, whole = await _ask(http, token), await _ask_all(http, token)
                live.update(table_of(shards, whole, console.width), refresh=True)


async def is_last(url: str, token: str | Callable[[], str], shard: int) -> bool:
    """Whether no other shard takes users. Raises ClientError."""
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        staying = {row["shard"] for row in await _ask(http, token) if not row.get("draining")}
    return staying <= {shard}


async def undrain(url: str, token: str | Callable[[], str], shard: int) -> int:
    """Ends a drain that is under way; returns how many users the shard still has. Raises ClientError."""
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        users: int = (await _get(http, token, "POST", f"/v1/shards/{shard}/undrain", 202))["users"]
    return users


async def drain(url: str, token: str | Callable[[], str], shard: int) -> None:
    """Empties a shard, and says how far that has come, until it has gone. Raises ClientError."""
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        await _get(http, token, "POST", f"/v1/shards/{shard}/drain", 202)
        told = None
        while (left := _users_of(shard, await _ask(http, token))) is not None:
            if left != told:
                print(f"shard {shard}: {left:,} users to go", flush=True)
                told = left
            await asyncio.sleep(0.5)
    print(f"shard {shard} is gone")


def _users_of(shard: int, shards: list[dict[str, Any]]) -> int | None:
    return next((int(row["connections"]) for row in shards if row["shard"] == shard), None)


async def _ask(http: httpx.AsyncClient, token: str | Callable[[], str]) -> list[dict[str, Any]]:
    body = await _get(http, token, "GET", "/v1/stats/shards", 200)
    if not isinstance(body, list) or not all(map(is_shard, body)):
        raise ClientError(f"{http.base_url} is no gateway: it answers 200 with other JSON than a gateway's ({NAME_IT})")
    return body


async def _ask_all(http: httpx.AsyncClient, token: str | Callable[[], str]) -> dict[str, Any]:
    body = await _get(http, token, "GET", "/v1/stats", 200)
    return body if isinstance(body, dict) else {}


async def _get(http: httpx.AsyncClient, token: str | Callable[[], str], method: str, path: str, status: int) -> Any:
    bearer = token() if callable(token) else token
    try:
        answer = await http.request(method, path, headers={"authorization": f"Bearer {bearer}"})
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ClientError(f"{http.base_url} can't be reached: {reason} ({START})") from None
    try:
        body = answer.json()
    except ValueError:
        fault = f"it answers {answer.status_code} without JSON"
        raise ClientError(f"{http.base_url} is no gateway: {fault} ({NAME_IT})") from None
    if answer.status_code != status:
        raise PublishRefused(answer.status_code, body if isinstance(body, dict) else {}, url=f"{http.base_url}{path}")
    return body
