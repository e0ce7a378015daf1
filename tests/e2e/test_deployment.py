"""A deployment behind a real nginx, which answers anything for a while, and then the gateway's answers again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from solowire.errors import ConnectionEnded, PublishRefused
from solowire.sdk.client import Client
from solowire.sdk.publisher import Publisher
from tests.support.requirements import need_program
from tests.support.system import ANSWER_SECONDS, System, end, environment, free_ports, running

DEPLOYMENT_S = 2.0

ANSWERS = {
    "404": "return 404;",
    "301": "return 301 https://elsewhere.example$request_uri;",
    "403": "return 403;",
    "401": 'add_header WWW-Authenticate Basic always; return 401 "log in";',
    "405": "return 405;",
    "421": "return 421;",
    "400": "return 400;",
    "503": "return 503;",
    "502": "proxy_pass http://127.0.0.1:9;",
    "a page": 'default_type text/html; return 200 "<html>Welcome to nginx!</html>";',
    "JSON of another": 'default_type application/json; return 200 "{\\"status\\": \\"ok\\"}";',
    "a problem of another": (
        "default_type application/problem+json; "
        'return 403 "{\\"status\\": 403, \\"code\\": \\"RBAC: access denied\\"}";'
    ),
    "a wait that is past": 'add_header Retry-After -1 always; default_type text/html; return 429 "<html>slow</html>";',
    "nothing": "return 444;",
}


class Ingress:
    """nginx on `port`, in front of a system with one shard."""

    def __init__(self, place: Path, program: str) -> None:
        self.place = place
        self._program = program
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.system: System | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._write("return 503;")
        self._process = subprocess.Popen([self._program, *self._options], text=True)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.place / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def answer(self, what: str | None) -> None:
        """None: as the gateway and its shard do."""
        assert self._process is not None
        self._write(what)
        self._process.send_signal(signal.SIGHUP)  # what `nginx -s reload` does

    def has_settled(self) -> bool:
        """Whether the worker of the old configuration, which may still accept connections, has ended."""
        assert self._process is not None
        pid = self._process.pid
        return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) == 1

    def stop(self) -> None:
        if self._process is not None:
            end(self._process)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/is", timeout=2, trust_env=False, verify=False).is_success
        except httpx.HTTPError:
            return False

    @property
    def _options(self) -> list[str]:
        return ["-p", str(self.place), "-c", "nginx.conf", "-e", "error.log"]

    def _write(self, what: str | None) -> None:
        port = self.system.port if self.system is not None else 9
        passing = f"""
            location / {{ proxy_pass http://127.0.0.1:{port}; }}
            location /ws {{
                proxy_pass http://127.0.0.1:{port + 1};
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
            }}"""
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = " ".join(f"{kind}_temp_path {kind};" for kind in kinds)
        text = f"""
            daemon off; worker_processes 1; worker_shutdown_timeout 100ms; pid nginx.pid;
            events {{ worker_connections 256; }}
            http {{
                access_log off; {paths}
                server {{
                    listen 127.0.0.1:{self.port};
                    location = /is {{ return 200 "{what or "the gateway"!r:.20}"; }}
                    {passing if what is None else f"location / {{ {what} }}"}
                }}
            }}"""
        (self.place / "nginx.conf").write_text(text)


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = Ingress(tmp_path_factory.mktemp("nginx"), need_program("nginx"))
    settings = {
        "GATEWAY__SHARD_URL": f"ws://127.0.0.1:{made.port}/ws",
        "SESSION__RECONNECT_MIN_MS": 50,
        "SESSION__RECONNECT_MAX_MS": 500,
    }
    with running(tmp_path_factory.mktemp("behind") / "data", shards=1, settings=settings) as made.system:
        try:
            made.start()
            yield made
        finally:
            made.stop()


async def switch(ingress: Ingress, what: str | None) -> None:
    """Returns when it answers so, and nothing answers otherwise."""
    ingress.answer(what)
    expected = f"{what or 'the gateway'!r:.20}"
    async with asyncio.timeout(ANSWER_SECONDS), httpx.AsyncClient(trust_env=False, verify=False) as http:
        while True:
            try:
                answer = await http.get(f"{ingress.url}/is", headers={"connection": "close"})
                if answer.text == expected and ingress.has_settled():
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


def start(place: Path, *command: str, **settings: str) -> subprocess.Popen[str]:
    """A process whose output goes to agent.log."""
    with (place / "agent.log").open("w") as output:
        return subprocess.Popen(command, env=environment(settings), cwd=place, stdout=output, stderr=output, text=True)


@asynccontextmanager
async def agent(ingress: Ingress, place: Path) -> AsyncIterator[Callable[[int], None]]:
    """A BIND agent that publishes through the ingress; the function writes a query to its log."""
    assert ingress.system is not None
    log = place / "queries.log"
    log.touch()
    token = ingress.system.token("agent", "publisher", ttl=3600)
    command = [sys.executable, "-m", "solowire", "source", "bind9", "--query-log", str(log), "--url", ingress.url]
    process = start(place, *command, "--from-start", TOKEN=token)

    def ask(number: int) -> None:
        with log.open("a") as file:
            file.write(
                f"client @0x7f 192.0.2.1#4242 (q{number}.example): query: q{number}.example IN A +E(0)K (192.0.2.53)\n"
            )

    try:
        yield ask
        assert process.poll() is None, (place / "agent.log").read_text()
    finally:
        end(process)


async def test_a_deployment_ends_nobody(ingress: Ingress, tmp_path: Path) -> None:
    """Whatever the ingress answers for two seconds, publisher, client and BIND agent go on, and no event is lost."""
    assert ingress.system is not None
    await switch(ingress, None)
    kinds: dict[str, Any] = {"subscriptions": ["custom.n", "dns_query_log"]}
    token = ingress.system.token("reader", ttl=3600)
    publishing = ingress.system.token("writer", "publisher", ttl=3600)
    async with (
        Client(ingress.url, token, **kinds) as client,
        Publisher(ingress.url, publishing) as publisher,
        agent(ingress, tmp_path) as ask,
    ):
        expected: set[str] = set()

        async def say(number: int) -> None:
            await publisher.publish("custom.n", {"n": number})
            ask(number)
            expected.update((f"n{number}", f"q{number}.example"))

        got: set[str] = set()

        async def take_all() -> None:
            async with asyncio.timeout(ANSWER_SECONDS):
                while not expected <= got:
                    event = await anext(client)
                    got.add(f"n{event.data['n']}" if event.type == "custom.n" else event.data["query_domain"])

        await say(0)
        await take_all()
        for number, what in enumerate(ANSWERS.values(), start=1):
            await switch(ingress, what)
            await say(number)
            await asyncio.sleep(DEPLOYMENT_S)  # how long it takes
            await switch(ingress, None)
            await take_all()
        await publisher.drain()
        assert publisher.stats.refused == 0
        assert client.gaps == 0


@pytest.mark.parametrize("what", ["404", "301", "401", "a page", "a problem of another"])
async def test_a_wrong_url_is_told_at_once(ingress: Ingress, what: str) -> None:
    """The same answers to a first attempt end it, naming the URL: it is no gateway that is there."""
    assert ingress.system is not None
    await switch(ingress, ANSWERS[what])
    with pytest.raises(ConnectionEnded, match=ingress.url):
        async with asyncio.timeout(ANSWER_SECONDS), Client(ingress.url, ingress.system.token("first")):
            pass
    publisher = await Publisher(ingress.url, ingress.system.token("first", "publisher")).__aenter__()
    await publisher.publish("custom.n", {"n": 1})
    with pytest.raises(PublishRefused, match=ingress.url):
        async with asyncio.timeout(ANSWER_SECONDS):
            await publisher.drain()
    await publisher.close()
    assert len(publisher.unsent) == 1
