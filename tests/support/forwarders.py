"""Real `named`s to be probed: one that answers, and one that can be stopped, or that resolves nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.named import find, free_port

_CONF = """
options {{
    directory "{dir}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    dnssec-validation no; notify no; recursion {recursion}; empty-zones-enable no; {options}
}};
controls {{ }};
logging {{ category default {{ default_stderr; }}; }};
{root}
"""
_ROOT = """$TTL 60
@ IN SOA ns. hostmaster. 1 3600 600 86400 60
@ IN NS ns.
ns. IN A 127.0.0.1
"""


class ProbedNamed:
    """`with ProbedNamed(dir) as named:` — a server that answers for the root, runs when the block begins.

    kind: `answers`; `servfail`, as it forwards to where nobody is; `refuses` to resolve for its client.
    """

    def __init__(self, dir: Path, kind: str = "answers") -> None:
        self.dir = dir
        self.kind = kind
        self.port = free_port()
        self.address = f"127.0.0.1#{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ProbedNamed:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Returns when it answers, whatever it answers."""
        program = find("named")
        assert program is not None, "named is not installed: apt-get install bind9"
        self.dir.mkdir(exist_ok=True)
        (self.dir / "root.zone").write_text(_ROOT)
        options = {
            "answers": "",
            "servfail": f"forward only; forwarders port {free_port()} {{ 127.0.0.1; }}; resolver-query-timeout 301;",
            "refuses": "allow-query { none; };",
        }[self.kind]
        conf = self.dir / "named.conf"
        root = 'zone "." { type primary; file "root.zone"; };' if self.kind == "answers" else ""
        recursion = "yes" if self.kind == "servfail" else "no"
        conf.write_text(_CONF.format(dir=self.dir, port=self.port, options=options, recursion=recursion, root=root))
        output = (self.dir / "named.out").open("wb")
        with output:
            command = [program, "-f", "-n", "1", "-c", str(conf)]
            self.process = subprocess.Popen(command, cwd=self.dir, stdout=output, stderr=output)
        deadline = time.monotonic() + 30
        while "status:" not in self._dig():
            assert self.process.poll() is None, (self.dir / "named.out").read_text()
            assert time.monotonic() < deadline, (self.dir / "named.out").read_text()

    def pause(self) -> None:
        """It is there, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Ends the process that was started here, also if it is paused."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(timeout=30)

    def _dig(self) -> str:
        dig = find("dig")
        assert dig is not None, "dig is not installed: apt-get install bind9-dnsutils"
        command = [dig, "@127.0.0.1", "-p", str(self.port), "+tries=1", "+time=5", ".", "SOA"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
