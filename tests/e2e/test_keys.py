"""Whom real processes believe: secrets that are being changed, and a provider whose keys they read."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.jwks_server import JwksServer, SigningKey
from tests.support.system import ANSWER_SECONDS, System, end, open_session, ready, refusal, run, running, sign

CUSTOM = {"subscriptions": ["custom.*"]}
OLD, NEW = "the old secret that is long enough for all", "the new secret that is long enough for all"


# --------------------------------------------------------------------------------------------------- secrets change


class Processes:
    """Router, shards and gateway of one system, each started with settings of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.system = System(data_dir, shards=2)
        self.running: dict[tuple[str, ...], subprocess.Popen[str]] = {}

    def start(self, *arguments: str, **settings: str) -> None:
        before = self.running.pop(arguments, None)
        if before is not None:
            end(before)
        system = self.system
        kept = {name: value for name, value in system.environment.items() if "SECRET" not in name}
        secrets = {f"SOLOWIRE_{name}": value for name, value in settings.items()}
        system.environment = kept | {"SOLOWIRE_PORT": str(system.port)} | secrets
        self.running[arguments] = system.spawn(*arguments)
        if arguments[0] != "router":
            port = system.port if arguments[0] == "gateway" else system.port + 1 + int(arguments[-1])
            system.wait_until(lambda: ready(f"http://127.0.0.1:{port}"), f"{arguments} is ready")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "data")
    try:
        yield made
    finally:
        for process in reversed(made.running.values()):
            end(process)


async def passes_everywhere(system: System, secret: str) -> None:
    """A token of this secret connects to each shard, directly and relayed, refreshes and publishes."""
    for shard in (0, 1):
        token = sign(secret, system.user_on(shard, "rotating"))
        await until_connected(system, token)
        async with system.session(token, CUSTOM) as session:
            assert (await session.ask("reply", type="refresh", id=1, token=token))["id"] == 1
            await system.publish({"type": "custom.hello", "data": {}}, token=sign(secret, "p", "publisher"))
            assert [event["type"] for event in await session.events(1)] == ["custom.hello"]
        async with open_session(f"ws://127.0.0.1:{system.port}/ws?token={token}") as session:
            await session.ask("welcome", type="hello")


async def until_connected(system: System, token: str) -> None:
    """A shard that was started again takes its users back within a moment."""
    async with system.http(token) as http, asyncio.timeout(ANSWER_SECONDS):
        while (answer := await http.post("/v1/connect")).status_code == 503:
            await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text


async def test_secrets_change_without_an_outage(processes: Processes) -> None:
    """Process by process: first all accept the new secret, then they sign with it, then the old one is no secret.

    Old and new tokens are good in front of and behind old and new processes at every step but the last.
    """
    system = processes.system
    order: list[tuple[str, ...]] = [("shard", "--index", "0"), ("gateway",), ("shard", "--index", "1")]
    processes.start("router", SECRET=OLD)
    for arguments in sorted(order, reverse=True):
        processes.start(*arguments, SECRET=OLD)
    await passes_everywhere(system, OLD)
    assert (await refusal(f"ws://127.0.0.1:{system.port}/ws?token={sign(NEW, 'early')}"))[0] == 401
    for arguments in order:
        processes.start(*arguments, SECRET=OLD, ACCEPTED_SECRETS=NEW)
        await passes_everywhere(system, OLD)
    for arguments in order:
        await passes_everywhere(system, NEW)
        await passes_everywhere(system, OLD)
        processes.start(*arguments, SECRET=NEW, ACCEPTED_SECRETS=OLD)
    await passes_everywhere(system, OLD)
    for arguments in order:
        await passes_everywhere(system, NEW)
        processes.start(*arguments, SECRET=NEW)
    await passes_everywhere(system, NEW)
    async with system.http(sign(OLD, "late")) as http:
        answer = await http.post("/v1/connect")
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


async def test_the_secrets_of_a_file(tmp_path: Path) -> None:
    """One a line: the first signs, for the commands as well; the others are accepted; none is printed."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").write_text(f"{NEW}\n{OLD}\n")
    with running(tmp_path / "data", shards=1) as system:
        for secret in (OLD, NEW):
            await system.negotiate(sign(secret, "ann"))
        done = run("token", "--user", "ann", "--data-dir", str(system.data_dir), cwd=tmp_path)
        await system.negotiate(done.stdout.strip())
        assert "long enough for all" not in system.output.read_text()
    settings = {"ACCEPTED_SECRETS": f'["{OLD}", "a, secret, with, commas, in, it"]'}
    shown = run("config", cwd=tmp_path, settings=settings)
    assert shown.returncode == 0
    assert "secret, " not in shown.stdout
    assert OLD not in shown.stdout
    assert "# accepted_secrets" in shown.stdout


# ------------------------------------------------------------------------------------------------------- a provider

RSA, EC, ED = SigningKey("RS256", "rsa-1"), SigningKey("ES256", "ec-1"), SigningKey("EdDSA", "ed-1")


@pytest.fixture(scope="module")
def provider() -> Iterator[JwksServer]:
    with JwksServer(RSA, EC, ED) as server:
        yield server


@pytest.fixture(scope="module")
def provided(provider: JwksServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose users come from an OpenID provider; its own secret is for tickets alone."""
    settings = {
        "AUTH__JWKS": provider.url,
        "AUTH__JWKS_REFRESH_S": 1,
        "AUTH__ISSUERS": "https://id.example",
        "AUTH__AUDIENCES": "solowire,other-name",
        "AUTH__ACCEPT_SECRET_TOKENS": "false",
        "AUTH__CLAIMS__USER": "preferred_username",
        "AUTH__CLAIMS__ROLE": "realm_access.roles",
        "AUTH__CLAIMS__ROLE_MAPPING": '{"dns-admin": "admin", "dns-viewer": "viewer", "agent": "publisher"}',
        "AUTH__CLAIMS__SCOPE_MAPPING": '{"zones": "dns_zones"}',
        "AUTH__BAD_TOKEN_BURST": 10_000,
    }
    with running(tmp_path_factory.mktemp("provided") / "data", shards=1, settings=settings) as started:
        yield started


def claims(user: str = "ann", role: str = "dns-viewer", **more: Any) -> dict[str, Any]:
    """What such a provider says of a user."""
    now = int(time.time())
    said: dict[str, Any] = {
        "iss": "https://id.example",
        "aud": ["account", "solowire"],
        "sub": "f:1234",
        "preferred_username": user,
        "realm_access": {"roles": ["offline_access", role]},
        "dns_zones": ["example.com"],
        "scope": "openid profile",
        "name": "Ann",
        "iat": now,
        "exp": now + 300,
    }
    return {name: value for name, value in {**said, **more}.items() if value is not None}


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=lambda key: key.algorithm)
async def test_a_providers_user_connects_and_sees_what_it_may(provided: System, key: SigningKey) -> None:
    """The claims that the settings name give user, role and scopes, for each algorithm."""
    async with provided.session(key.sign(claims()), {"subscriptions": ["dns.*"]}) as session:
        assert (session.welcome["user"], session.welcome["role"]) == ("ann", "viewer")
        publisher = key.sign(claims("agent", "agent"))
        for zone in ("example.org", "example.com"):
            data = {"zone": zone, "query_domain": f"www.{zone}", "query_type": "A", "client_ip": "10.0.0.1"}
            await provided.publish({"type": "dns_query_log", "data": data}, token=publisher)
        assert [event["data"]["zone"] for event in await session.events(1)] == ["example.com"]
        again = key.sign(claims(exp=int(time.time()) + 900))
        assert (await session.ask("reply", type="refresh", id="r", token=again))["id"] == "r"


async def test_what_a_provider_did_not_mean_for_us(provided: System) -> None:
    """Another issuer or audience, no role, no zones, another key, or the secret: nobody is let in, and told why."""
    stranger = SigningKey("RS256", "rsa-1")
    cases = {
        "issuer": RSA.sign(claims(iss="https://other.example")),
        "no issuer": RSA.sign(claims(iss=None)),
        "audience": RSA.sign(claims(aud="account")),
        "no audience": RSA.sign(claims(aud=None)),
        "no user": RSA.sign(claims(preferred_username=None)),
        "no role": RSA.sign(claims(realm_access=None)),
        "role unknown": RSA.sign(claims(role="nosuch")),
        "no zones": RSA.sign(claims(dns_zones=None)),
        "zones at the top": RSA.sign(claims(zones=["example.com"])),
        "expired": RSA.sign(claims(exp=int(time.time()) - 1)),
        "another key": stranger.sign(claims()),
        "the secret": sign(provided.secret, "ann"),
    }
    async with provided.http() as http:
        for name, token in cases.items():
            answer = await http.post("/v1/connect", headers={"authorization": f"Bearer {token}"})
            code = "token_expired" if name == "expired" else "invalid_token"
            assert (answer.status_code, answer.json()["code"]) == (401, code), name
    await provided.negotiate(RSA.sign(claims(role="dns-admin", dns_zones=None)))


async def test_a_providers_new_key_is_known_with_its_first_token(provider: JwksServer, tmp_path: Path) -> None:
    """A `kid` that is not known has the keys read again, once for all who show it; connections refresh with it, too."""
    old, new = SigningKey("ES256", "old"), SigningKey("ES256", "new")
    settings = {
        "AUTH__JWKS_REFRESH_S": 3600,
        "AUTH__ISSUERS": "*",
        "AUTH__AUDIENCES": "*",
        "AUTH__CLAIMS__DEFAULT_ROLE": "viewer",
        "AUTH__BAD_TOKEN_BURST": 10_000,
    }
    with JwksServer(old) as server, running(tmp_path / "data", 1, {**settings, "AUTH__JWKS": server.url}) as system:
        async with system.session(old.sign(claims()), CUSTOM) as session:
            await system.negotiate(system.token("ours", aud="any"))  # the secret goes on signing beside
            server.document = {"keys": [new.jwk()]}
            server.fetches.clear()
            answers = await asyncio.gather(*(system.negotiate(new.sign(claims(f"u{n}"))) for n in range(10)))
            assert len(answers) == 10
            assert len(server.fetches) == 1
            reply = await session.ask("reply", type="refresh", id="r", token=new.sign(claims()))
            assert reply["id"] == "r"
        server.fetches.clear()
        async with system.http() as http:
            for n in range(50):  # whoever makes up keys doesn't have them read each time
                token = SigningKey("EdDSA", f"made up {n}").sign(claims())
                answer = await http.post("/v1/connect", headers={"authorization": f"Bearer {token}"})
                assert_unknown(answer)
            assert_unknown(await http.post("/v1/connect", headers={"authorization": f"Bearer {old.sign(claims('x'))}"}))
        assert len(server.fetches) <= 1


def assert_unknown(answer: httpx.Response) -> None:
    """Its key is not in the set that was read for it; or none was read for it yet, and it may come again."""
    if answer.status_code == 503:
        assert answer.json()["code"] == "keys_unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= 10
    else:
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


@pytest.mark.parametrize("trouble", ["stranger", "outage"])
async def test_a_new_key_that_nobody_can_have_read_yet(trouble: str, tmp_path: Path) -> None:
    """Neither a stranger's token just before it nor a provider that is away makes its tokens wrong: they wait.

    So a client with that one token goes on, and one connected keeps its connection and hears the same.
    """
    old, new = SigningKey("ES256", "old"), SigningKey("ES256", "new")
    settings = {"AUTH__JWKS_REFRESH_S": 3600, "AUTH__ISSUERS": "*", "AUTH__AUDIENCES": "*"}
    settings["AUTH__CLAIMS__DEFAULT_ROLE"] = "admin"
    with JwksServer(old) as server, running(tmp_path / "data", 1, {**settings, "AUTH__JWKS": server.url}) as system:
        async with system.session(old.sign(claims()), CUSTOM) as session, system.http(new.sign(claims())) as http:
            if trouble == "stranger":
                stranger = {"authorization": f"Bearer {SigningKey('EdDSA', 'stranger').sign(claims())}"}
                assert (await http.post("/v1/connect", headers=stranger)).status_code == 401
            else:
                server.status = 503
            server.document = {"keys": [new.jwk()]}
            for path in ("/v1/connect", "/v1/events?since=1h"):
                answer = await http.request(*METHODS[path])
                assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
                assert 1 <= int(answer.headers["retry-after"]) <= 10
            if trouble == "outage":  # the shard has asked for itself
                error = await session.ask("error", type="refresh", id="r", token=new.sign(claims()))
                assert (error["id"], error["code"]) == ("r", "keys_unavailable")
                assert error["retry_after"] >= 1
            server.status = 200
            async with asyncio.timeout(ANSWER_SECONDS):
                while (answer := await http.post("/v1/connect")).status_code == 503:
                    await asyncio.sleep(0.1)
                while (answer := await http.get("/v1/events?since=1h")).status_code == 503:
                    await asyncio.sleep(0.1)
            assert answer.status_code == 200, answer.text


METHODS = {"/v1/connect": ("POST", "/v1/connect"), "/v1/events?since=1h": ("GET", "/v1/events?since=1h")}


async def test_a_provider_that_is_away(tmp_path: Path) -> None:
    """Before its keys are known its users are told to come again; when they are, they stay good while it is away."""
    key = SigningKey("RS256", "k")
    settings = {
        "AUTH__ISSUERS": "*",
        "AUTH__AUDIENCES": "*",
        "AUTH__CLAIMS__DEFAULT_ROLE": "viewer",
        "AUTH__JWKS_REFRESH_S": 1,
    }
    with JwksServer(key) as server:
        server.status = 500
        with running(tmp_path / "data", 1, {**settings, "AUTH__JWKS": server.url}) as system:
            async with system.http(key.sign(claims())) as http:
                answer = await http.post("/v1/connect")
                assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
                server.status = 200
                async with asyncio.timeout(ANSWER_SECONDS):
                    while (await http.post("/v1/connect")).status_code != 200:
                        await asyncio.sleep(0.1)
                server.body = b"<html>maintenance</html>"
                failed = len(server.fetches)
                system.wait_until(lambda: len(server.fetches) >= failed + 3, "it was read in vain")
                await system.negotiate(key.sign(claims("another")))
            assert "keys_unavailable" in system.output.read_text()


async def test_keys_in_a_file(tmp_path: Path) -> None:
    """A file is as good as a URL, and read again when it changes."""
    import json

    first, second = SigningKey("EdDSA", None), SigningKey("EdDSA", None)
    place = tmp_path / "keys.json"
    place.write_text(json.dumps({"keys": [first.jwk()]}))
    settings = {
        "AUTH__JWKS": place,
        "AUTH__ISSUERS": "*",
        "AUTH__AUDIENCES": "*",
        "AUTH__CLAIMS__DEFAULT_ROLE": "viewer",
    }
    with running(tmp_path / "data", 1, settings) as system:
        await system.negotiate(first.sign(claims()))
        place.write_text(json.dumps({"keys": [second.jwk()]}))
        async with system.http() as http, asyncio.timeout(ANSWER_SECONDS):
            while await status(http, first) != 401 or await status(http, second) != 200:
                await asyncio.sleep(0.05)


async def status(http: httpx.AsyncClient, key: SigningKey) -> int:
    answer = await http.post("/v1/connect", headers={"authorization": f"Bearer {key.sign(claims())}"})
    return answer.status_code


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"AUTH__JWKS": "ftp://id.example/keys"}, "jwks"),
        ({"AUTH__JWKS": "http://id.example/keys", "AUTH__ISSUERS": "*", "AUTH__AUDIENCES": "*"}, "https"),
        ({"AUTH__JWKS": "https://id.example/keys", "AUTH__ISSUERS": "*"}, "auth.audiences"),
        ({"AUTH__JWKS": "https://id.example/keys", "AUTH__AUDIENCES": "x"}, "auth.issuers"),
        ({"AUTH__ACCEPT_SECRET_TOKENS": "false"}, "SOLOWIRE_AUTH__ACCEPT_SECRET_TOKENS"),
        ({"ACCEPTED_SECRETS": "short"}, "SOLOWIRE_ACCEPTED_SECRETS"),
        ({"ACCEPTED_SECRETS": '["no end'}, "ACCEPTED_SECRETS"),
        ({"AUTH__CLAIMS__SCOPE_MAPPING": '{"zonez": "x"}'}, "zonez"),
        ({"AUTH__CLAIMS__ROLE_MAPPING": '{"x": "nosuch"}'}, "nosuch"),
        ({"AUTH__CLAIMS__DEFAULT_ROLE": "nosuch"}, "nosuch"),
    ],
)
def test_settings_that_would_let_in_others_are_refused(tmp_path: Path, settings: dict[str, str], names: str) -> None:
    """What would believe whoever comes, or nobody, ends the start with one line that names the setting."""
    done = run("gateway", "--data-dir", str(tmp_path / "data"), cwd=tmp_path, settings={**settings, "PORT": "0"})
    assert done.returncode == 2
    assert names in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with contextlib.suppress(FileNotFoundError):
        assert (tmp_path / "data" / "secret").read_text() not in done.stderr
