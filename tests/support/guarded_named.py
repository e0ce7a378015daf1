"""A real `named` with everything beside queries: control and statistics channels, policies, logs of all categories."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from tests.support.named_process import NamedProcess, free_port, run_program

SECRET = "c29sb3dpcmUgdGVzdCBrZXkgc29sb3dpcmUgdGVzdA=="

CONF = """include "{dir}/rndc.key";
options {{
    directory "{dir}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion yes; allow-transfer {{ key "rndc-key"; }}; dnssec-validation no; notify no; querylog yes;
    forward only; forwarders {{ 127.0.0.1 port 9; }};
    response-policy {{ zone "rpz.malware"; }} qname-wait-recurse no;
}};
controls {{ inet 127.0.0.1 port {control_port} allow {{ 127.0.0.1; }} keys {{ "rndc-key"; }}; }};
statistics-channels {{ inet 127.0.0.1 port {statistics_port} allow {{ 127.0.0.1; }}; }};
logging {{
    channel all {{ file "all.log"; severity info; print-time iso8601-utc; print-category yes; print-severity yes; }};
    channel bare {{ file "bare.log"; severity info; print-time no; }};
    category default {{ all; bare; }}; category queries {{ all; }};
}};
zone "z.example" {{ type primary; file "z.zone"; allow-update {{ key "rndc-key"; }}; }};
zone "rpz.malware" {{ type primary; file "rpz.zone"; }};
"""

_KEY = f'key "rndc-key" {{ algorithm hmac-sha256; secret "{SECRET}"; }}; // of {SECRET}\n'

_ZONE = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 86400 60
@ IN NS ns
ns IN A 127.0.0.1
www IN A 192.0.2.1
bad IN A 192.0.2.66
"""

_POLICY = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 86400 60
@ IN NS localhost.
evil.example CNAME .
nodata.example CNAME *.
*.wild.example CNAME .
drop.example CNAME rpz-drop.
tcp.example CNAME rpz-tcp-only.
pass.example CNAME rpz-passthru.
local.example A 192.0.2.99
32.66.2.0.192.rpz-ip CNAME .
"""


class GuardedNamed(NamedProcess):
    """`with GuardedNamed(dir) as named:` answers when the block begins.

    dir: an empty directory of the test's own. Its files: `named.conf`, `rndc.key`, and the logs `all.log` (with all
    that a channel can print) and `bare.log` (with nothing, and without queries).
    """

    READY: ClassVar = ("www.z.example", "A", "+noall", "+comments")
    READY_TEXT: ClassVar = "status: NOERROR"

    def __init__(self, dir: Path) -> None:
        super().__init__(dir)
        self.all_log = dir / "all.log"
        self.control_port, self.statistics_port = free_port(), free_port()
        (dir / "rndc.key").write_text(_KEY)
        (dir / "z.zone").write_text(_ZONE)
        (dir / "rpz.zone").write_text(_POLICY)
        self.conf.write_text(self.make_conf())

    def make_conf(self, extra: str = "") -> str:
        """The configuration, and what is to stand behind it."""
        return (
            CONF.format(
                dir=self.dir,
                port=self.port,
                control_port=self.control_port,
                statistics_port=self.statistics_port,
            )
            + extra
        )

    @property
    def statistics_url(self) -> str:
        """Where its statistics channel is."""
        return f"http://127.0.0.1:{self.statistics_port}/json/v1"

    def rndc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Says a command to it."""
        place = ["-s", "127.0.0.1", "-p", str(self.control_port), "-k", str(self.dir / "rndc.key")]
        return run_program("rndc", *place, *words)

    def update(self, *lines: str, is_signed: bool = True) -> None:
        """Sends a dynamic update of z.example. lines: nsupdate's."""
        key = ["-k", str(self.dir / "rndc.key")] if is_signed else []
        text = "\n".join([f"server 127.0.0.1 {self.port}", "zone z.example", *lines, "send", ""])
        run_program("nsupdate", *key, text=text)
