"""The client of the shards' HTTP APIs, for what a shard alone can tell, so that the router carries none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import msgspec

from solowire.backplane.messages import ShardAddress
from solowire.errors import RequestRejected
from solowire.observability.audit import ASKED_BY
from solowire.protocol.user_names import encode_user_name
from solowire.runtime.api_client import api_client

TIMEOUT_SECONDS = 2.0
AT_A_TIME = 16
MAX_CLIENTS = 512
_ASK_AGAIN = "ask again in a moment; GET /v1/stats/shards says how the shards are"
_SAME_SYSTEM = "see that gateway and shards have the same version, secret and roles"


class ShardClient:
    """Asks shards with the administrator's own token: a shard lets nobody in whom it doesn't know itself."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.AsyncClient] = {}  # by address: no more than there are shards

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def fetch_slowest(self, shard: ShardAddress, token: str) -> list[Any]:
        """The shard's slowest connections. Raises RequestRejected (502, 503, 504) if it can't be asked."""
        found = await self._get(shard, "/stats", token)
        return list((found or {}).get("slowest", []))

    async def fetch_user(
        self, user: str, owner: ShardAddress | None, others: Iterable[ShardAddress], token: str
    ) -> list[Any]:
        """The user's connections: on the shard that owns it, or else wherever it still is.

        Raises RequestRejected: 404 if there is none; 502, 503 or 504 if a shard that may have one can't be asked.
        """
        path = f"/stats/users/{encode_user_name(user)}"
        found = await self._get(owner, path, token) if owner is not None else None
        if found is None:
            room = asyncio.Semaphore(AT_A_TIME)

            async def ask(shard: ShardAddress) -> Mapping[str, Any] | None:
                async with room:
                    return await self._get(shard, path, token)

            answers = await asyncio.gather(*map(ask, others), return_exceptions=True)
            answered = [a for a in answers if not isinstance(a, BaseException)]
            found = next((a for a in answered if a is not None), None)
            if found is None:
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                raise RequestRejected(
                    404, "not_connected", "the user has no connection", "names are compared exactly, case included"
                )
        return list(found.get("connections", []))

    async def fetch_history(
        self, shard: ShardAddress, query: str, token: str, timeout: float
    ) -> tuple[int, bytes, str]:
        """What the shard says to a question about history: status, body, and Retry-After or "".

        query: as in a URL. timeout: seconds. Raises RequestRejected (503, 504) if it can't be asked.
        """
        try:
            answer = await self._client_for(shard).get(
                f"/history?{query}",
                headers={"authorization": f"Bearer {token}", ASKED_BY: "gateway"},
                timeout=timeout,
            )
        except httpx.TimeoutException:
            message = f"shard {shard.index} has not answered within {timeout:g} s"
            raise RequestRejected(504, "shard_timeout", message, _ASK_AGAIN, retry_after=1) from None
        except httpx.TransportError:
            message = f"shard {shard.index} can't be reached from the gateway"
            raise RequestRejected(503, "shard_unavailable", message, _ASK_AGAIN, retry_after=1) from None
        return answer.status_code, answer.content, answer.headers.get("retry-after", "")

    def _client_for(self, shard: ShardAddress) -> httpx.AsyncClient:
        client = self._clients.get(shard.api)
        if client is None:
            while len(self._clients) >= MAX_CLIENTS:  # of shards that have moved meanwhile
                old = self._clients.pop(next(iter(self._clients)))
                asyncio.get_running_loop().create_task(old.aclose())  # it has nothing under way
            client = self._clients[shard.api] = api_client(shard.api, timeout=TIMEOUT_SECONDS)
        return client

    async def _get(self, shard: ShardAddress, path: str, token: str) -> Mapping[str, Any] | None:
        """What the shard answers; None for its 404. Raises RequestRejected."""
        try:
            answer = await self._client_for(shard).get(
                path, headers={"authorization": f"Bearer {token}", ASKED_BY: "gateway"}
            )
            if answer.status_code == 404:
                return None
            body = answer.json() if answer.status_code == 200 else None
        except httpx.TimeoutException:
            message = f"shard {shard.index} has not answered within {TIMEOUT_SECONDS:g} s"
            raise RequestRejected(504, "shard_timeout", message, _ASK_AGAIN, retry_after=1) from None
        except httpx.TransportError:
            message = f"shard {shard.index} can't be reached from the gateway"
            raise RequestRejected(503, "shard_unavailable", message, _ASK_AGAIN, retry_after=1) from None
        except ValueError:
            body = None
        if answer.status_code == 503:
            raise _read_refusal(answer, shard)
        if not isinstance(body, dict):
            message = f"shard {shard.index} answered {answer.status_code}, which is no valid response"
            raise RequestRejected(502, "shard_bad_response", message, _SAME_SYSTEM)
        return body


class _Problem(msgspec.Struct):
    code: str
    detail: str
    hint: str = ""


def _read_refusal(answer: httpx.Response, shard: ShardAddress) -> RequestRejected:
    """The word of a shard that can't answer now."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem("shard_unavailable", f"shard {shard.index} can't answer now", _ASK_AGAIN)
    after = answer.headers.get("retry-after", "")
    wait = int(after) if after.isdecimal() else 1
    return RequestRejected(503, problem.code, problem.detail, problem.hint, retry_after=wait)
