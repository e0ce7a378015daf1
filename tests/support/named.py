"""A real `named` for tests: on loopback and a free high port, with a query log, ended with its block."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import ClassVar

from tests.support.named_process import NamedProcess, free_port

KEY_NAME = "test-key"
KEY_SECRET = "c29sb3dpcmUgdGVzdCBrZXkgc29sb3dpcmUgdGVzdA=="
READY = "www.z.example"  # asked, over and over, until named answers: the log begins with this
ZONES = ("z.example", "sub.z.example")

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


class Named(NamedProcess):
    """`with Named(dir) as named:` — answers when the block begins.

    dir: an empty directory of the test's own. print_time: as in named.conf. prefix: print category and
    severity. view: put the zones into a view of this name. rotation: such as `versions 3 size 2k`. ipv6:
    listen on ::1 too. whole: write the same queries to a second file, too, which is never rotated.
    dnstap: the socket to which it connects to tell of its queries. forward_to: the port of another to which it forwards
    what it doesn't know.
    """

    READY: ClassVar = (READY, "A", "+noall", "+comments")
    READY_TEXT: ClassVar = "status: NOERROR"

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
        super().__init__(dir)
        self.log = dir / "query.log"
        self.whole = dir / "whole.txt"
        self._print_time = print_time
        self._prefix = prefix
        self._view = view
        self._rotation = rotation
        self._ipv6 = ipv6
        self._whole = whole
        self._dnstap = dnstap
        self._forward_to = forward_to

    def start(self) -> None:
        """Starts it and waits until it answers."""
        for _ in range(3):  # another process may take the port between our asking and named's binding
            self.port = free_port()
            self._write_conf()
            if self.try_start(15):
                return
            self.stop()
        raise AssertionError(f"named does not answer on port {self.port}:\n{self.output.read_text()}")

    def dig_signed(self, name: str, type: str = "A") -> str:
        """dig with the TSIG key that this server knows."""
        return self.dig(name, type, "-y", f"hmac-sha256:{KEY_NAME}:{KEY_SECRET}")

    def reopen(self, *, until_s: float = 30) -> None:
        """Have named open its log anew (SIGHUP: a reload), as logrotate does after a rename, and wait for
        it."""
        self.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + until_s
        while not self.log.exists():
            assert time.monotonic() < deadline, f"named did not reopen {self.log}:\n{self.output.read_text()}"
            time.sleep(0.02)

    def _write_conf(self) -> None:
        for zone in ZONES:
            (self.dir / f"{zone}.zone").write_text(_ZONE)
        self.conf.write_text(
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
