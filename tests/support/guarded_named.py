"""A real `named` with everything beside queries: control and statistics channels, policies, logs of all categories."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.named import find, free_port

SECRET = "c29sb3dpcmUgdGVzdCBrZXkgc29sb3dpcmUgdGVzdA=="
READY = "www.z.example"

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


class GuardedNamed:
    """`with GuardedNamed(dir) as named:` answers when the block begins.

    dir: an empty directory of the test's own. Its files: `named.conf`, `rndc.key`, and the logs `all.log` (with all
    that a channel can print) and `bare.log` (with nothing, and without queries).
    """

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.conf = dir / "named.conf"
        self.all_log = dir / "all.log"
        self.output = dir / "named.out"
        self.port, self.control_port, self.statistics_port = (free_port() for _ in range(3))
        self._process: subprocess.Popen[bytes] | None = None
        (dir / "rndc.key").write_text(_KEY)
        (dir / "z.zone").write_text(_ZONE)
        (dir / "rpz.zone").write_text(_POLICY)
        self.conf.write_text(self.make_conf())

    def __enter__(self) -> GuardedNamed:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

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

    def start(self) -> None:
        """Starts it and waits until it answers."""
        program = find("named")
        assert program is not None, "named is not installed: apt-get install bind9"
        with self.output.open("ab") as output:
            command = [program, "-f", "-n", "1", "-c", str(self.conf)]
            self._process = subprocess.Popen(command, cwd=self.dir, stdout=output, stderr=output)
        deadline = time.monotonic() + 30
        while "status: NOERROR" not in self.dig(READY, "A", "+noall", "+comments"):
            assert time.monotonic() < deadline, self.output.read_text()
            assert self._process.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the process that was started here, and no other."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)

    def dig(self, name: str, type: str = "A", *options: str) -> str:
        """What dig prints."""
        dig = find("dig")
        assert dig is not None, "dig is not installed: apt-get install bind9-dnsutils"
        command = [dig, "@127.0.0.1", "-p", str(self.port), "+tries=1", "+time=2", *options, name, type]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout

    def rndc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Says a command to it."""
        rndc = find("rndc")
        assert rndc is not None
        place = ["-s", "127.0.0.1", "-p", str(self.control_port), "-k", str(self.dir / "rndc.key")]
        return subprocess.run([rndc, *place, *words], capture_output=True, text=True, timeout=60, check=False)

    def update(self, *lines: str, is_signed: bool = True) -> None:
        """Sends a dynamic update of z.example. lines: nsupdate's."""
        nsupdate = find("nsupdate")
        assert nsupdate is not None
        key = ["-k", str(self.dir / "rndc.key")] if is_signed else []
        text = "\n".join([f"server 127.0.0.1 {self.port}", "zone z.example", *lines, "send", ""])
        subprocess.run([nsupdate, *key], input=text, capture_output=True, text=True, timeout=30, check=False)
