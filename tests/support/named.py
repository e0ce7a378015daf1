"""A real `named` for tests: on loopback and a free high port, with a query log, ended with its block."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

KEY_NAME = "test-key"
KEY_SECRET = "c29sb3dpcmUgdGVzdCBrZXkgc29sb3dpcmUgdGVzdA=="
READY = "www.z.example"  # asked, over and over, until named answers: the log begins with this
ZONES = ("z.example", "sub.z.example")

_PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin")

_CONF = """
options {{
    directory "{dir}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {listen_v6};
    recursion {recursion}; dnssec-validation no; notify no; querylog yes;
    {dnstap} {forwarding}
}};
controls {{ }};
key "{key_name}" {{ algorithm hmac-sha256; secret "{key_secret}"; }};
logging {{
    channel queries {{ file "{log}" {rotation}; severity info; print-time {print_time};
        print-category {prefix}; print-severity {prefix}; }};
    channel whole {{ file "{whole}"; severity info; print-time {print_time}; }};
    category queries {{ queries; {also} }}; category default {{ default_stderr; }};
}};
{view_begin}
{zones}
{view_end}
"""

_DNSTAP = """dnstap {{ all; }}; dnstap-output unix "{socket}"; fstrm-set-reopen-interval 1;
    fstrm-set-buffer-hint 1024; fstrm-set-output-notify-threshold 1; fstrm-set-input-queue-size 16384;"""

_FORWARDING = "forward only; forwarders {{ 127.0.0.1 port {port}; }};"

_ZONE = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 86400 60
@ IN NS ns
ns IN A 127.0.0.1
www IN A 192.0.2.1
"""


def find(program: str) -> str | None:
    """Where a program is; Debian's sbin isn't in everyone's PATH."""
    return shutil.which(program) or shutil.which(program, path=":".join(_PLACES))


class Named:
    """`with Named(dir) as named:` — answers when the block begins.

    dir: an empty directory of the test's own. print_time: as in named.conf. prefix: print category and
    severity. view: put the zones into a view of this name. rotation: such as `versions 3 size 2k`. ipv6:
    listen on ::1 too. whole: write the same queries to a second file, too, which is never rotated.
    dnstap: the socket to which it connects to tell of its queries. forward_to: the port of another to which it forwards
    what it doesn't know.
    """

    def __init__(
        self,
        dir: Path,
        *,
        print_time: str = "yes",
        prefix: bool = False,
        view: str | None = None,
        rotation: str = "",
        ipv6: bool = False,
        whole: bool = False,
        dnstap: Path | None = None,
        forward_to: int | None = None,
    ) -> None:
        self.dir = dir
        self.log = dir / "query.log"
        self.whole = dir / "whole.txt"
        self.output = dir / "named.out"
        self.port = 0
        self._print_time = print_time
        self._prefix = prefix
        self._view = view
        self._rotation = rotation
        self._ipv6 = ipv6
        self._whole = whole
        self._dnstap = dnstap
        self._forward_to = forward_to
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Named:
        for _ in range(3):  # another process may take the port between our asking and named's binding
            self.port = free_port()
            self._start()
            if self._answers(deadline=time.monotonic() + 15):
                return self
            self._end()
        raise AssertionError(f"named does not answer on port {self.port}:\n{self.output.read_text()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def dig(self, name: str, type: str = "A", *options: str, address: str = "127.0.0.1") -> str:
        """What dig prints. options: more of dig's, such as `+tcp`."""
        dig = find("dig")
        assert dig is not None, "dig is not installed: apt-get install bind9-dnsutils"
        command = [dig, f"@{address}", "-p", str(self.port), "+tries=1", "+time=10", *options, name, type]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout

    def dig_signed(self, name: str, type: str = "A") -> str:
        """dig with the TSIG key that this server knows."""
        return self.dig(name, type, "-y", f"hmac-sha256:{KEY_NAME}:{KEY_SECRET}")

    def reopen(self, *, until_s: float = 30) -> None:
        """Have named open its log anew (SIGHUP: a reload), as logrotate does after a rename, and wait for
        it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + until_s
        while not self.log.exists():
            assert time.monotonic() < deadline, f"named did not reopen {self.log}:\n{self.output.read_text()}"
            time.sleep(0.02)

    def _start(self) -> None:
        program = find("named")
        assert program is not None, "named is not installed: apt-get install bind9"
        for zone in ZONES:
            (self.dir / f"{zone}.zone").write_text(_ZONE)
        conf = self.dir / "named.conf"
        conf.write_text(
            _CONF.format(
                dir=self.dir,
                log=self.log,
                whole=self.whole,
                recursion="yes" if self._forward_to else "no",
                forwarding=_FORWARDING.format(port=self._forward_to) if self._forward_to else "",
                dnstap=_DNSTAP.format(socket=self._dnstap) if self._dnstap else "",
                also="whole;" if self._whole else "",
                port=self.port,
                listen_v6=f"port {self.port} {{ ::1; }}" if self._ipv6 else "{ none; }",
                key_name=KEY_NAME,
                key_secret=KEY_SECRET,
                rotation=self._rotation,
                print_time=self._print_time,
                prefix="yes" if self._prefix else "no",
                view_begin=f'view "{self._view}" {{' if self._view else "",
                zones="\n".join(f'zone "{zone}" {{ type primary; file "{zone}.zone"; }};' for zone in ZONES),
                view_end="};" if self._view else "",
            )
        )
        with self.output.open("wb") as output:
            command = [program, "-f", "-n", "1", "-c", str(conf), "-p", str(self.port)]
            self._process = subprocess.Popen(command, cwd=self.dir, stdout=output, stderr=output)

    def _answers(self, deadline: float) -> bool:
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            if "status: NOERROR" in self.dig(READY, "A", "+noall", "+comments"):
                return self._process.poll() is None
            time.sleep(0.05)
        return False

    def _end(self) -> None:
        """End the process that was started here, and no other."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)


def free_port() -> int:
    """A port that is free for UDP and TCP on 127.0.0.1 at this moment."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
