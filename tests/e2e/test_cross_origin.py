"""Pages of other sites: what their browsers let them ask, and what they let them read of the answers (CORS)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.system import System, running

SITE, STRANGER = "https://app.example.com", "https://evil.example"
ASKED = [("POST", "/v1/connect"), ("GET", "/v1/events?since=1h"), ("GET", "/v1/catalog")]
CORS = ("access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    where: Path = tmp_path_factory.mktemp("cross") / "data"
    with running(where, shards=1, settings={"LISTEN__ALLOWED_ORIGINS": f"{SITE},http://localhost:5173"}) as system:
        yield system


async def preflight(http: httpx.AsyncClient, method: str, path: str, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization",
    }
    return await http.request("OPTIONS", path, headers=headers)


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize("origin", [SITE, "http://localhost:5173"])
async def test_a_page_of_an_allowed_site_asks_and_reads(method: str, path: str, origin: str, system: System) -> None:
    """Its browser asks first, whether it may show the token; then the page reads the answer, a refusal as well."""
    async with system.http() as http:
        allowed = await preflight(http, method, path, origin)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == origin
        assert method in allowed.headers["access-control-allow-methods"]
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        shown = {"origin": origin, "authorization": f"Bearer {system.token('ann')}"}
        good, refused = (
            await http.request(method, path, headers=shown),
            await http.request(method, path, headers={"origin": origin}),
        )
    assert good.status_code == 200
    assert refused.status_code == (200 if path == "/v1/catalog" else 401)
    for answer in (allowed, good, refused):
        assert answer.headers.get_list("access-control-allow-origin") == [origin]
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers
    assert "retry-after" in refused.headers["access-control-expose-headers"]


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize("origin", [STRANGER, "https://app.example.com.evil.example", "null", f"{SITE}:8443", None])
async def test_others_read_nothing(method: str, path: str, origin: str | None, system: System) -> None:
    """Neither a preflight nor an answer names them; caches are told that it would be another for others."""
    async with system.http(system.token("ann")) as http:
        first = await preflight(http, method, path, origin or STRANGER)
        answer = await http.request(method, path, headers={} if origin is None else {"origin": origin})
    assert answer.status_code == 200
    assert "origin" in answer.headers["vary"].lower()
    for one in (first, answer):
        assert not [name for name in CORS if name in one.headers]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/events"), ("GET", "/v1/stats"), ("POST", "/v1/revocations"), ("GET", "/metrics")]
)
async def test_nothing_else_is_for_pages_of_other_sites(method: str, path: str, system: System) -> None:
    """Publishing and administering are for servers, and for pages of the gateway's own."""
    async with system.http(system.token("root")) as http:
        first = await preflight(http, method, path, SITE)
        answer = await http.request(method, path, headers={"origin": SITE})
    for one in (first, answer):
        assert not [name for name in CORS if name in one.headers]
