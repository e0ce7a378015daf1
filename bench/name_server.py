"""A real `named` that tells of its queries by dnstap, and the queries that dnsperf asks it by the clock."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from bench.machine import HOST, BenchError, end_tree, place_on
from bench.peers.debian import installed
from bench.server import start_program, wait_until_ready

_CONF = """options {{
    directory "{folder}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ {host}; }}; listen-on-v6 {{ none; }}; recursion no; notify no;
    dnstap {{ client; auth; }}; dnstap-output unix "{socket}"; fstrm-set-reopen-interval 1;
    fstrm-set-input-queue-size 16384; fstrm-set-output-queue-size 1024;
    fstrm-set-output-notify-threshold 1; fstrm-set-buffer-hint 1024; fstrm-set-flush-timeout 1;
}};
controls {{ }};
zone "z.example" {{ type primary; file "z.zone"; }};
"""
_ZONE = "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n*.a A 192.0.2.1\n"
_NAMES = 2_000
_SENT = re.compile(r"Queries sent:\s+(\d+)")


def find_missing() -> list[str]:
    """Debian's programs that are needed and can't be had."""
    packages = {"named": "bind9", "dnsperf": "dnsperf"}
    return [
        program for program, package in packages.items() if not installed(program) and not installed(program, package)
    ]


class NameServer:
    """`with NameServer(folder, socket, cores) as named:` answers when the block begins. socket: the agent's."""

    def __init__(self, folder: Path, dnstap: Path, cores: Iterable[int]) -> None:
        folder.mkdir()
        self._log = folder / "named.log"
        self._queries = folder / "queries"
        self._cores = frozenset(cores)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((HOST, 0))
            self._port: int = free.getsockname()[1]
        conf = folder / "named.conf"
        conf.write_text(_CONF.format(folder=folder, port=self._port, host=HOST, socket=dnstap))
        (folder / "z.zone").write_text(_ZONE)
        command = [installed("named"), "-f", "-n", "1", "-c", str(conf)]
        self._process = start_program(command, folder, self._log, None, self._cores)

    def __enter__(self) -> NameServer:
        wait_until_ready(self._is_ready, self._process, self._log, "named")
        return self

    def __exit__(self, *_: object) -> None:
        end_tree(self._process)

    async def ask(self, rate: int, seconds: float, label: str = "warm") -> int:
        """Asks so many queries a second; returns how many were sent. label: in each name, so that they can be told."""
        names = (f"h{n}.{label}.{'a' if n % 3 else 'b'}.z.example A\n" for n in range(_NAMES))
        self._queries.write_text("".join(names))
        options = ["-s", HOST, "-p", str(self._port), "-d", str(self._queries), "-Q", str(rate), "-l", f"{seconds:g}"]
        dnsperf = await asyncio.create_subprocess_exec(
            installed("dnsperf"), *options, stdout=asyncio.subprocess.PIPE, preexec_fn=place_on(self._cores)
        )
        output, _ = await dnsperf.communicate()
        if (sent := _SENT.search(output.decode())) is None:
            raise BenchError(f"dnsperf ended with {dnsperf.returncode} and said: {output.decode()[-500:]}")
        return int(sent[1])

    def _is_ready(self) -> bool:
        question = b"\0\1\0\0\0\1\0\0\0\0\0\0\1z\7example\0\0\6\0\1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.5)
            try:
                asking.sendto(question, (HOST, self._port))
                return len(asking.recv(512)) > len(question)
            except OSError:
                return False
