"""Metrics of running processes, judged by Prometheus's own tool, and scrapers that misbehave."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from solowire.observability.metrics import Metrics
from solowire.observability.tls_samples import read_tls_samples
from solowire.runtime.api_client import api_address, api_client
from solowire.runtime.tls_port import TlsPort
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_api import make_metrics
from solowire.sources.agent.source_status import StatusReporter
from tests.support.certificates import make_tls_port
from tests.support.requirements import need_program
from tests.support.system import ANSWER_SECONDS, System, end, free_ports, run, running

ALERTS = Path(__file__).resolve().parents[2] / "helm" / "solowire" / "files" / "alerts.yaml"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/operations.md"
SCRAPERS = 60
CLOCK = "# TYPE solowire_{}_clock_seconds gauge"
OPEN = 'solowire_shard_connections{codec="json",group="admin",shard="0",transport="direct"} 1.0'


@pytest.fixture(scope="module")
def router_port() -> int:
    return free_ports(10) + 9  # behind those that the system takes


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, router_port: int) -> Iterator[System]:
    settings = {"ROUTER__METRICS_PORT": router_port}
    with running(tmp_path_factory.mktemp("metrics") / "data", shards=1, settings=settings) as started:
        yield started


def scraped(place: int | Path) -> str:
    """What is answered on a port, or on a Unix socket."""
    transport = httpx.HTTPTransport(uds=str(place)) if isinstance(place, Path) else None
    host = "localhost" if isinstance(place, Path) else f"127.0.0.1:{place}"
    with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False, verify=False, transport=transport) as http:
        answer = http.get(f"http://{host}/metrics")
    assert answer.status_code == 200
    return answer.text


def client_of(place: int | Path) -> httpx.AsyncClient:
    return api_client(api_address(place if isinstance(place, Path) else ("127.0.0.1", place)), timeout=ANSWER_SECONDS)


def api_of(system: System) -> Path:
    """Where shard 0 serves its metrics."""
    return system.data_dir / "run" / "s0"


def judged(promtool: str, text: str) -> tuple[int, str, str]:
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, check=False, timeout=30, text=True)
    return done.returncode, done.stdout, done.stderr


def names_of(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE solowire_")}


def render_tls_metrics(process: str, port: TlsPort) -> str:
    """What a port adds that speaks TLS."""
    return Metrics(process, lambda: read_tls_samples(port)).render().decode().replace(CLOCK.format(process), "")


def render_source_metrics() -> str:
    """What a source says, when it has measured its clock."""
    source = StatusReporter("host", EventOutlet("http://127.0.0.1:1", "token", server="ns1"))
    source.add_part("host").set_running()
    source.clock_skew_ms = 1500.0
    return make_metrics(source).render().decode()


async def test_promtool_finds_nothing_to_say(system: System, router_port: int) -> None:
    """What gateway, shard and router really answer is as Prometheus wants it."""
    promtool = need_program("promtool")
    async with system.session(system.token("ann"), {"subscriptions": ["custom.*"]}) as session, system.http() as http:
        assert (await http.post("/v1/connect")).status_code == 401
        await system.publish({"type": "custom.x", "data": {}})
        await session.events(1)
        for port in (system.port, api_of(system), router_port):
            assert judged(promtool, scraped(port)) == (0, "", "")


async def test_the_documented_metrics_are_those_that_there_are(
    system: System, router_port: int, tmp_path: Path
) -> None:
    """docs/operations.md has each name once, and no other; each begins with its process, and each page's exist."""
    table = re.findall(r"^\| `(solowire_\w+)(?:{[\w,]+})?` \|", DOCUMENT.read_text(), re.MULTILINE)
    ports: dict[str, int | Path] = {"gateway": system.port, "shard": api_of(system), "router": router_port}
    found = {process: names_of(scraped(port)) for process, port in ports.items()}
    for process, names in found.items():
        assert [name for name in names if not name.startswith(f"solowire_{process}_")] == []
    port = make_tls_port(tmp_path)
    tls = {name for process in ("gateway", "shard") for name in names_of(render_tls_metrics(process, port))}
    told = {*tls, *names_of(render_source_metrics()), *(name for names in found.values() for name in names)}
    assert sorted(table) == sorted(told)
    recorded = re.findall(r"^ *- record: (\w+)$", ALERTS.read_text(), re.MULTILINE)
    for page in (DOCUMENT.parents[1] / "README.md", *DOCUMENT.parent.rglob("*.md")):
        named = set(re.findall(r"`(solowire_\w+)", page.read_text()))
        assert named - {*table, *recorded} == set(), page


async def test_metrics_count_what_happens_and_name_nobody(system: System, router_port: int) -> None:
    """Latency, connections by group and refusals follow what was done; no user is in a label."""
    user = "nobody-should-read-this"
    async with system.session(system.token(user), {"subscriptions": ["custom.*"]}) as session, system.http() as http:
        accepted = await system.publish({"type": "custom.x", "data": {}})
        await session.events(1)
        assert (await http.post("/v1/connect")).status_code == 401
        async with asyncio.timeout(ANSWER_SECONDS):  # connections are counted once a second
            while OPEN not in scraped(api_of(system)):
                await asyncio.sleep(0.1)
        async with asyncio.timeout(ANSWER_SECONDS):  # and a scrape may be a second old
            while f"solowire_router_log_end_offset {accepted['last_offset']}.0" not in scraped(router_port):
                await asyncio.sleep(0.1)
            while 'solowire_gateway_connections_rejected_total{reason="missing_token"}' not in scraped(system.port):
                await asyncio.sleep(0.1)
        texts = [scraped(port) for port in (system.port, api_of(system), router_port)]
    gateway, shard, router = texts
    assert 'solowire_gateway_connections_rejected_total{reason="missing_token"}' in gateway
    sent = re.search(r'solowire_shard_delivery_latency_seconds_count{shard="0"} ([\d.]+)', shard)
    assert sent is not None
    assert float(sent[1]) >= 1
    assert f"solowire_router_log_end_offset {accepted['last_offset']}.0" in router
    assert 'solowire_router_shard_lag_offsets{shard="0"}' in router
    assert user not in "".join(texts)


async def test_scrapers_that_read_nothing_hold_nobody_up(system: System, router_port: int) -> None:
    """Sixty connections ask for metrics over and over and never read: events arrive, and others are answered."""
    request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 200
    ports = (system.port, api_of(system), router_port)
    sockets = []
    try:
        for n in range(SCRAPERS):
            place = ports[n % len(ports)]
            sock = socket.socket(socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(str(place) if isinstance(place, Path) else ("127.0.0.1", place))
            sock.setblocking(False)
            sock.send(request)
        async with system.session(system.token("ann"), {"subscriptions": ["custom.*"]}) as session:
            for n in range(20):
                await system.publish({"type": "custom.x", "data": {"n": n}})
                [event] = await session.events(1)
                assert event["data"] == {"n": n}
        assert all(scraped(port) for port in ports)
    finally:
        for sock in sockets:
            sock.close()


async def test_a_flood_of_scrapes_is_rendered_once_a_second(system: System, router_port: int) -> None:
    """Whoever asks each process hundreds of times gets one text for a second, on all connections."""
    limits = httpx.Limits(max_connections=20)
    for place in (system.port, api_of(system), router_port):
        transport = httpx.AsyncHTTPTransport(uds=str(place) if isinstance(place, Path) else None, limits=limits)
        host = "localhost" if isinstance(place, Path) else f"127.0.0.1:{place}"
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS, transport=transport) as http:
            began = time.monotonic()
            answers = await asyncio.gather(*(http.get(f"http://{host}/metrics") for _ in range(300)))
            took = time.monotonic() - began
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) <= took + 2


def test_a_routers_port_that_was_set_must_be_free(tmp_path: Path) -> None:
    """Where the operator has named a port that is in use, the router doesn't start, and says so in one line."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        done = run("router", "--data-dir", str(tmp_path / "d"), cwd=tmp_path, settings={"ROUTER__METRICS_PORT": port})
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "SOLOWIRE_ROUTER__METRICS_PORT" in last
    assert "in use" in last
    assert "Traceback" not in done.stderr


def test_a_default_port_that_is_in_use_costs_a_warning(tmp_path: Path) -> None:
    """Nobody asked for it: the router says so and serves all the same."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        system = System(tmp_path / "data", shards=1, settings={"PORT": taken - 257})
        router = system.spawn("router")
        try:
            said = system.output.read_text
            system.wait_until(lambda: "router_ready" in said() and "metrics_unavailable" in said(), "it is ready")
        finally:
            assert end(router) == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_every_process_answers_head(system: System, router_port: int, path: str) -> None:
    """Probes ask with HEAD: the same answer without its body, on all ports, and the next request has its own."""
    ports: list[int | Path] = [
        system.port,
        api_of(system),
        router_port,
        *([system.port + 1] if path != "/metrics" else []),
    ]
    for port in ports:
        async with client_of(port) as http:
            told = await http.head(path)
            whole = await http.get(path)
            assert (told.status_code, whole.status_code) == (200, 200), port
            assert told.content == b""
            assert whole.content
            assert told.headers["content-type"] == whole.headers["content-type"]


async def test_what_is_not_there_says_what_is(system: System, router_port: int) -> None:
    """The router's and a shard's APIs answer an unknown path with a problem that names those that there are."""
    for port in (router_port, api_of(system)):
        async with client_of(port) as http:
            answer = await http.get("/nothing")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "/healthz" in answer.json()["hint"]
