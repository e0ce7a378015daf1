"""Real `named`s to be probed: one that answers, and one that can be stopped, or that resolves nothing."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import ClassVar

from tests.support.named_process import NamedProcess, free_port

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


class ProbedNamed(NamedProcess):
    """`with ProbedNamed(dir) as named:` — a server that answers for the root, runs when the block begins.

    kind: `answers`; `servfail`, as it forwards to where nobody is; `refuses` to resolve for its client.
    """

    READY: ClassVar = (".", "SOA", "+time=5")  # whatever it answers

    def __init__(self, dir: Path, kind: str = "answers") -> None:
        super().__init__(dir)
        self.address = f"127.0.0.1#{self.port}"
        (dir / "root.zone").write_text(_ROOT)
        options = {
            "answers": "",
            "servfail": f"forward only; forwarders port {free_port()} {{ 127.0.0.1; }}; resolver-query-timeout 301;",
            "refuses": "allow-query { none; };",
        }[kind]
        root = 'zone "." { type primary; file "root.zone"; };' if kind == "answers" else ""
        recursion = "yes" if kind == "servfail" else "no"
        self.conf.write_text(_CONF.format(dir=dir, port=self.port, options=options, recursion=recursion, root=root))

    def pause(self) -> None:
        """It is there, and answers nothing."""
        self.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        self.send_signal(signal.SIGCONT)
