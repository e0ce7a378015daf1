"""`solowire disconnect`, `revoke`, `revocations` and `unrevoke`: throwing users out, by the gateway's API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from typing import Any
from urllib.parse import quote

import httpx

from solowire.errors import NAME_IT, START, ClientError, ConfigError, PublishRefused
from solowire.user_names import encode_user_name

TIMEOUT_SECONDS = 10.0
Token = str | Callable[[], str]


def disconnect(url: str, token: Token, user: str) -> str:
    """What came of it, in words. Raises ClientError."""
    done = _ask(url, token, "POST", f"/v1/users/{encode_user_name(user)}/disconnect", 200)
    connections, silent = int(done.get("connections", 0)), int(done.get("silent_shards", 0))
    if silent:
        raise ClientError(f"{user}: {connections} closed, but {silent} shards did not answer; try again in a moment")
    return f"{user}: {connections} connection{'' if connections == 1 else 's'} closed"


def revoke(url: str, token: Token, asked: dict[str, Any]) -> str:
    """Which revocation is in force now, in words. asked: as the API takes it. Raises ClientError."""
    return _line(_ask(url, token, "POST", "/v1/revocations", 201, asked))


def unrevoke(url: str, token: Token, id: str) -> None:
    """Raises ClientError."""
    _ask(url, token, "DELETE", f"/v1/revocations/{quote(id, safe='')}", 204)


def list_revocations(url: str, token: Token, *, as_json: bool) -> list[str]:
    """Those in force, a line for each. Raises ClientError."""
    found: list[dict[str, Any]] = _ask(url, token, "GET", "/v1/revocations", 200)
    return [json.dumps(revocation) if as_json else _line(revocation) for revocation in found]


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
        raise ConfigError(f"{option} {text}: write unix seconds, 2030-12-31T12:00:00Z, or now") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _line(revocation: dict[str, Any]) -> str:
    said = [f"{name} {revocation[name]}" for name in ("user", "jti") if name in revocation]
    if "issued_before" in revocation:
        said.append(f"issued before {_date(revocation['issued_before'])}")
    reason = f": {revocation['reason']}" if revocation.get("reason") else ""
    return f"{revocation['id']}  {', '.join(said)}  until {_date(revocation['until'])}  by {revocation['by']}{reason}"


def _date(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ask(url: str, token: Token, method: str, path: str, status: int, body: dict[str, Any] | None = None) -> Any:
    """Raises ClientError."""
    headers = {"authorization": f"Bearer {token() if callable(token) else token}"}
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            answer = http.request(method, path, headers=headers, json=body)
    except httpx.HTTPError as error:
        raise ClientError(f"{url} can't be reached: {str(error) or type(error).__name__} ({START})") from None
    if answer.status_code == status == 204:
        return None
    try:
        said = answer.json()
    except ValueError:
        raise ClientError(f"{url} is no gateway: it answers {answer.status_code} without JSON ({NAME_IT})") from None
    if answer.status_code != status:
        raise PublishRefused(answer.status_code, said if isinstance(said, dict) else {}, url=f"{url}{path}")
    return said
