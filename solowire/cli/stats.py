"""`solowire stats` and `solowire drain`: the shards as a table, and one of them emptied."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from solowire.cli.gateway_requests import GatewayRequests, Token
from solowire.cli.stats_table import is_shard, render_table
from solowire.errors import NAME_IT, ClientError

WATCH_SECONDS = 1.0
SHARDS, WHOLE = "/v1/stats/shards", "/v1/stats"
_WIDE = 200


async def show_stats(url: str, token: Token, *, watch: bool, as_json: bool) -> None:
    """Prints the shards once, or keeps the table up to date. Raises ClientError."""
    async with GatewayRequests(url, token, _note) as gateway:
        shards = _shards(url, await gateway.ask("GET", SHARDS, 200))
        if as_json and not watch:
            print(json.dumps(shards, indent=2))
            return
        while as_json:  # until whoever reads has enough: a line has to be whole, and out, before the next is asked for
            print(json.dumps(shards, separators=(",", ":")), flush=True)
            await asyncio.sleep(WATCH_SECONDS)
            shards = _shards(url, await gateway.watch(SHARDS))
        # Into a pipe the table is as wide as it has to be: nobody's terminal folds it there.
        console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
        whole = _whole(await gateway.ask("GET", WHOLE, 200))
        if not watch:
            console.print(render_table(shards, whole, console.width))
            return
        with Live(render_table(shards, whole, console.width), console=console, auto_refresh=False) as live:
            gateway.report = lambda text: live.console.print(text, style="yellow", markup=False, highlight=False)
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                shards, whole = _shards(url, await gateway.watch(SHARDS)), _whole(await gateway.watch(WHOLE))
                live.update(render_table(shards, whole, console.width), refresh=True)


async def is_last(url: str, token: Token, shard: int) -> bool:
    """Whether no other shard takes users. Raises ClientError."""
    async with GatewayRequests(url, token, _note) as gateway:
        shards = _shards(url, await gateway.ask("GET", SHARDS, 200))
    return {row["shard"] for row in shards if not row.get("draining")} <= {shard}


async def undrain(url: str, token: Token, shard: int) -> int:
    """Ends a drain that is under way; returns how many users the shard still has. Raises ClientError."""
    async with GatewayRequests(url, token, _note) as gateway:
        users: int = (await gateway.ask("POST", f"/v1/shards/{shard}/undrain", 202))["users"]
    return users


async def drain(url: str, token: Token, shard: int, *, is_forced: bool) -> None:
    """Empties a shard, and says how far that has come, until it has gone. Raises ClientError."""
    async with GatewayRequests(url, token, _note) as gateway:
        await gateway.ask("POST", f"/v1/shards/{shard}/drain" + ("?force=true" if is_forced else ""), 202)
        printed = None
        while (left := _count_users(shard, _shards(url, await gateway.watch(SHARDS)))) is not None:
            if left != printed:
                print(f"shard {shard}: {left:,} users to go", flush=True)
                printed = left
            await asyncio.sleep(0.5)
    print(f"shard {shard} is gone")


def _count_users(shard: int, shards: list[dict[str, Any]]) -> int | None:
    return next((int(row["connections"]) for row in shards if row["shard"] == shard), None)


def _shards(url: str, body: Any) -> list[dict[str, Any]]:
    """Raises ClientError if it is no gateway's answer."""
    if not isinstance(body, list) or not all(map(is_shard, body)):
        raise ClientError(f"{url} is no gateway: it answers 200 with other JSON than a gateway's ({NAME_IT})")
    return body


def _whole(body: Any) -> dict[str, Any]:
    return body if isinstance(body, dict) else {}


def _note(text: str) -> None:
    click.echo(f"solowire: {text}", err=True)
