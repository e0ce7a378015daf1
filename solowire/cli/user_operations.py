"""`solowire disconnect`, `revoke`, `revocations` and `unrevoke`: throwing users out, by the gateway's API."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from typing import Any
from urllib.parse import quote

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.cli.gateway_requests import GatewayRequests, Token
from solowire.errors import NAME_IT, ClientError, ConfigError
from solowire.protocol.user_names import encode_user_name, one_line

CLOCKS_DIFFER_SECONDS = 60.0


def disconnect(url: str, token: Token, user: str) -> str:
    """What came of it, in words. Raises ClientError."""
    path = f"/v1/users/{encode_user_name(user)}/disconnect"
    done = _ask(url, token, "POST", path, 200, read=lambda body: (int(body["connections"]), int(body["silent_shards"])))
    connections, silent = done
    if silent:
        raise ClientError(
            f"{one_line(user)}: {connections} closed, but {silent} shards did not answer; try again in a moment"
        )
    return f"{one_line(user)}: {connections} connection{'' if connections == 1 else 's'} closed"


def revoke(url: str, token: Token, asked: dict[str, Any]) -> str:
    """Which revocation is in force now, in words. asked: as the API takes it. Raises ClientError."""
    line: str = _ask(url, token, "POST", "/v1/revocations", 201, asked, read=_line)
    return line


def unrevoke(url: str, token: Token, id: str) -> None:
    """Ends a revocation. Raises ClientError."""
    if not id.strip("."):  # which would be another path
        raise ConfigError(f"ID {shlex.quote(id)}: no revocation has it; `solowire revocations` lists them")
    _ask(url, token, "DELETE", f"/v1/revocations/{quote(id, safe='')}", 204)


def list_revocations(url: str, token: Token, *, as_json: bool) -> list[str]:
    """Those in force, a line for each. Raises ClientError."""

    def read(body: Any) -> list[str]:
        lines = [_line(revocation) for revocation in body]
        return [json.dumps(revocation) for revocation in body] if as_json else lines

    found: list[str] = _ask(url, token, "GET", "/v1/revocations", 200, read=read)
    return found


def check_revocation(asked: dict[str, Any]) -> None:
    """Reads the times of a revocation's options, in place. Raises ConfigError, by the options' names."""
    named = [name for name in ("user", "jti", "issued_before") if asked[name] is not None]
    if not named:
        raise ConfigError("whose tokens? name --user, --jti, or --issued-before")
    if "jti" in named and len(named) > 1:
        raise ConfigError("--jti names one token alone: leave out --user and --issued-before, or it")
    now = time.time()
    for name in ("issued_before", "until"):
        if asked[name] is not None:
            asked[name] = read_time(asked[name], f"--{name.replace('_', '-')}")
    if asked["until"] is not None and asked["until"] <= now:
        raise ConfigError("--until is over by now: name a time to come, when the tokens have all expired")
    if asked["issued_before"] is not None and asked["issued_before"] > now + CLOCKS_DIFFER_SECONDS:
        raise ConfigError("--issued-before is a time to come: it would refuse tokens that are not made yet; write now")


def read_time(text: str, option: str) -> float:
    """Unix seconds, an RFC 3339 time, or `now`. Raises ConfigError."""
    if text == "now":
        return time.time()
    with suppress(ValueError):
        if isfinite(seconds := float(text)):
            return seconds
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {shlex.quote(text)}: write unix seconds, 2030-12-31T12:00:00Z, or now") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _line(revocation: dict[str, Any]) -> str:
    conditions = [f"{name} {revocation[name]}" for name in ("user", "jti") if name in revocation]
    if "issued_before" in revocation:
        conditions.append(f"issued before {format_unix_time(revocation['issued_before'], 'seconds')}")
    reason = f": {revocation['reason']}" if revocation.get("reason") else ""
    until = f"until {format_unix_time(revocation['until'], 'seconds')}  by {revocation['by']}{reason}"
    line = f"{revocation['id']}  {', '.join(conditions)}  {until}"
    return one_line(line)


def _ask(
    url: str,
    token: Token,
    method: str,
    path: str,
    status: int,
    body: dict[str, Any] | None = None,
    *,
    read: Callable[[Any], Any] = lambda body: body,
) -> Any:
    """What `read` makes of the answer. Raises ClientError."""

    async def ask() -> Any:
        async with GatewayRequests(url, token, str) as gateway:
            return await gateway.ask(method, path, status, body)

    answer = asyncio.run(ask())
    try:
        return read(answer)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise ClientError(f"{url} is no gateway: it answers {status} with other JSON ({NAME_IT})") from None
