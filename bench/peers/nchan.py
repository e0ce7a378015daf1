"""nginx with nchan."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.machine import HOST, SERVER_CORES, LeftOut
from bench.peers.debian import installed
from bench.publisher import HttpWire, Wire
from bench.receiver import Plan
from bench.server import Server
from bench.ws_client import format_upgrade

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONFIGURATION = """\
load_module {module};
daemon off;
worker_processes {workers};
worker_rlimit_nofile {files};
pid {data}/nginx.pid;
error_log {data}/error.log warn;
events {{ worker_connections {files}; multi_accept on; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {data}/body;
    proxy_temp_path {data}/proxy;
    fastcgi_temp_path {data}/fastcgi;
    uwsgi_temp_path {data}/uwsgi;
    scgi_temp_path {data}/scgi;
    nchan_shared_memory_size 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /sub {{
            nchan_subscriber websocket;
            nchan_channel_id $arg_to;
            nchan_subscriber_first_message newest;
            nchan_websocket_ping_interval 25s;
        }}
        location = /pub {{
            nchan_publisher http;
            nchan_channel_id $arg_to;
            nchan_message_buffer_length 10000;
            nchan_message_timeout 60s;
        }}
        location = /ready {{ return 200; }}
    }}
}}
"""


POST = (
    b"POST /pub?to=%s HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class _Publications(HttpWire):
    """One POST a message, nchan takes no batches: those of one are sent in one write, and their answers awaited.

    channel: which one an event goes to.
    """

    def __init__(self, port: int, channel: Callable[[bytes], bytes]) -> None:
        super().__init__(port)
        self._channel = channel

    def send(self, events: Sequence[bytes]) -> None:
        self._wanted = len(events)
        posts = [POST % (self._channel(event), len(event), event) for event in events]
        self.sock.sendall(b"".join(posts))


class Nchan(Server):
    name = "nginx with nchan"
    about = "Debian's nginx with nchan, messages kept in shared memory; one POST per message, pipelined"

    @classmethod
    def prepare(cls) -> None:
        if not MODULE.exists() or not installed("nginx"):
            installed("nginx", "nginx", "libnginx-mod-nchan")
        if not MODULE.exists() or not installed("nginx"):
            raise LeftOut("Debian's packages nginx and libnginx-mod-nchan are not installed")

    @classmethod
    def versions(cls) -> dict[str, str]:
        nginx = subprocess.run([installed("nginx"), "-v"], capture_output=True, text=True).stderr
        module = ""
        with contextlib.suppress(OSError):
            asked = ["dpkg-query", "-W", "-f=${Version}", "libnginx-mod-nchan"]
            module = subprocess.run(asked, capture_output=True, text=True).stdout
        return {"nginx": nginx.strip().rpartition("/")[2], "nchan": module or "unknown"}

    def command(self) -> Sequence[str]:
        text = CONFIGURATION.format(
            module=MODULE, workers=len(SERVER_CORES), files=20_000, data=self.data, port=self.port
        )
        (self.data / "nginx.conf").write_text(text)
        return [installed("nginx"), "-p", str(self.data), "-c", str(self.data / "nginx.conf"), "-e", "stderr"]

    def plan(self, user: int) -> list[Plan]:
        return [Plan(self.port, format_upgrade(self.port, f"/sub?to={self.channel(user).decode()}"))]

    def wires(self, count: int) -> list[Wire]:
        return [_Publications(self.port, self.channel_of) for _ in range(count)]
