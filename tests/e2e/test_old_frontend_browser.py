"""The old frontend in a real browser, behind Debian's nginx as it is set up for WebSockets.

What closes a page's socket, and with which code, is decided by what stands between: here that is Chromium's own
WebSocket and nginx, and the page is at its own speed.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest

from tests.support.browser import Browser, Tab
from tests.support.requirements import need_program, needs
from tests.support.system import System, end, free_ports, running

HEARTBEAT_S = 0.5
IMPATIENT_S = 2
"""After which the second nginx ends what is silent; by default that is a minute."""

PAGE = """<!doctype html><title>old page</title><script>
// As the deployed page does: after 1000 at once, with the newest token; after anything else in 5 s, with the first one.
const life = window.life = {frames: [], codes: [], opened: 0, crashes: [], attempts: 0};
const first = localStorage.getItem("token");
function connect(token) {
  life.attempts += 1;
  const socket = life.socket = new WebSocket(`ws://${location.host}/api/websocket/ws/admin?token=${token}`);
  socket.onopen = () => { life.opened += 1; };
  socket.onmessage = (message) => {
    const frame = JSON.parse(message.data);
    if (typeof frame.type !== "string" || typeof frame.data !== "object" || !frame.data || frame.type === "ping")
      life.crashes.push(message.data);
    life.frames.push(frame);
  };
  socket.onclose = (closed) => {
    life.codes.push(closed.code);
    if (closed.code === 1000) setTimeout(() => connect(localStorage.getItem("token")), 60);
    else setTimeout(() => connect(first), 5000);
  };
}
if (first) connect(first);
</script>"""

pytestmark = needs("chromium", "nginx")

IS_OPEN = "life.socket && life.socket.readyState === WebSocket.OPEN && life.frames.length"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"SESSION__HEARTBEAT_INTERVAL_S": HEARTBEAT_S}
    with running(tmp_path_factory.mktemp("browser") / "data", shards=2, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def proxies(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of nginx: with its own defaults, and with little patience for silence. It serves the page, too."""
    place = tmp_path_factory.mktemp("nginx")
    (place / "index.html").write_text(PAGE)
    port = free_ports(2)
    upgrade = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port + number}; root {place};\n"
        f"location /api/ {{ proxy_pass http://127.0.0.1:{system.port}; proxy_set_header Host $host:$server_port; "
        f"{upgrade} {more} }} }}\n"
        for number, more in enumerate(("", f"proxy_read_timeout {IMPATIENT_S}s;"))
    )
    temporary = " ".join(f"{kind}_temp_path {place}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (place / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n"
        f"default_type text/html; client_body_temp_path {place}/body; {temporary}\n{servers}}}\n"
    )
    command = [need_program("nginx"), "-e", "stderr", "-c", str(place / "nginx.conf")]
    with (place / "nginx.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    try:
        yield port, port + 1
    finally:
        end(process)


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path) as browser:
        yield browser


def old_token(system: System, user: str, ttl: float) -> str:
    said = {"sub": user, "user_id": 17, "is_admin": True, "exp": time.time() + ttl}
    return jwt.encode(said, system.secret, "HS256")


async def load_page(browser: Browser, port: int, token: str) -> Tab:
    """The page, signed in, and greeted: from its first frame on it misses nothing."""
    tab = await browser.open_tab(f"http://127.0.0.1:{port}/")
    await tab.wait_until("document.readyState === 'complete' && window.life")
    # Marked, since the page goes on until it is loaded anew: another tab's token may have connected it.
    await tab.evaluate(f"window.isOld = true; localStorage.setItem('token', '{token}'); location.reload(); true")
    await tab.wait_until(f"!window.isOld && window.life && {IS_OPEN} && life.frames.length > 0")
    return tab


async def publish_record(system: System) -> str:
    """The name of a new record."""
    name = f"{uuid4().hex[:8]}.example.com"
    data = {"zone": "example.com", "name": name, "type": "A", "value": "192.0.2.7"}
    await system.publish({"type": "record_created", "data": data})
    return name


async def hear_record(tab: Tab, name: str) -> None:
    await tab.wait_until(f"life.frames.some(frame => frame.type === 'record_created' && frame.data.name === '{name}')")


async def test_a_page_s_life(system: System, proxies: tuple[int, int], browser: Browser) -> None:
    """Events come, in two tabs beside each other; a token's end and a sign-out are what the page knows them as."""
    user = system.user_on(1, "chromium")
    tabs = [await load_page(browser, proxies[0], old_token(system, user, 600)) for _ in range(2)]
    name = await publish_record(system)
    for tab in tabs:
        await hear_record(tab, name)
        first: dict[str, Any] = await tab.evaluate("life.frames[0]")
        assert (first["type"], first["data"]["connection_type"]) == ("connection_established", "admin")
        assert first["data"]["deprecation"]["migration_guide"] == "/docs/migration"

    # The token of a third tab ends; the application has renewed it meanwhile.
    brief = await load_page(browser, proxies[0], old_token(system, user, 5))
    await brief.evaluate(f"localStorage.setItem('token', '{old_token(system, user, 600)}'); true")
    greeted = "life.frames.filter(frame => frame.type === 'connection_established').length === 2"
    await brief.wait_until(f"life.opened === 2 && {IS_OPEN} && {greeted}")
    assert await brief.evaluate("life.codes") == [1000]
    name = await publish_record(system)
    for tab in (*tabs, brief):
        await hear_record(tab, name)
    assert [await tab.evaluate("life.codes") for tab in tabs] == [[], []]

    # Sign-out: the pages stay loaded, and go on trying.
    async with system.http(system.token("root")) as http:
        answer = await http.post(f"/v1/users/{user}/disconnect")
        assert answer.json()["connections"] == 3
    for tab in (*tabs, brief):
        await tab.wait_until("life.codes.length >= 2 && life.codes.at(-1) === 1006")
    assert [await tab.evaluate("life.codes.slice(0, 2)") for tab in tabs] == [[1008, 1006]] * 2
    for tab in (*tabs, brief):
        assert await tab.evaluate("life.crashes") == []
        assert await tab.evaluate("life.opened") == (2 if tab is brief else 1)


async def test_a_quiet_page_is_not_cut_by_the_proxy(system: System, proxies: tuple[int, int], browser: Browser) -> None:
    """nginx ends what is silent for `proxy_read_timeout`, and the page would handle each event once more then."""
    user = system.user_on(0, "quiet")
    tab = await load_page(browser, proxies[1], old_token(system, user, 600))
    began = await tab.evaluate("life.frames.length")
    await asyncio.sleep(3 * IMPATIENT_S)  # nothing is to happen for that time
    assert (await tab.evaluate("life.codes"), await tab.evaluate("life.frames.length")) == ([], began)
    await hear_record(tab, await publish_record(system))
    assert await tab.evaluate("life.crashes") == []
