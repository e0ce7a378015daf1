"""Real name servers for tests of zones: on loopback and free high ports, with updates, transfers, rndc and statistics.

Each has `directory` of its own. A server is ended with its block, or killed by its own id.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.named_process import NamedProcess, run_program
from tests.support.system import free_ports

KEY = "c29sb3dpcmUgdGVzdCBrZXkgc29sb3dpcmUgdGVzdA=="
KEYS = ("agent", "deploy", "inside", "outside")
"""TSIG keys that each server knows, all with the secret KEY."""

ZONE = """$TTL 300
@ IN SOA ns hostmaster 1 3600 600 86400 60
@ IN NS ns
ns IN A 127.0.0.1
www IN A 192.0.2.1
"""

_CONF = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; querylog no; allow-new-zones yes;
    notify explicit; notify-delay 0; also-notify {{ {notify} }}; transfer-source 127.0.0.1;
    serial-query-rate 1000; notify-rate 1000; startup-notify-rate 1000;
    max-ixfr-ratio {ratio}; allow-transfer {{ any; }}; allow-update {{ {updates} }};
    max-records-per-type 0; {options}
}};
{keys}
controls {{ inet 127.0.0.1 port {control} allow {{ 127.0.0.1; }} keys {{ agent; }}; }};
statistics-channels {{ inet 127.0.0.1 port {statistics} allow {{ 127.0.0.1; }}; }};
logging {{
    channel updates {{ file "{directory}/update.log"; severity info; print-time yes; print-category yes; }};
    category update {{ updates; }}; category default {{ default_stderr; }};
}};
{zones}
"""


class BindServer(NamedProcess):
    """`with BindServer(directory, zones={"z.example": ZONE}) as server:` — answers when the block begins.

    zones: primary zones by name, each its file's text. notify: ports that hear of changes. options: more lines of
    `options`. ratio: max-ixfr-ratio. updates: who may send updates. more: more of the configuration, such as secondary
    zones or views in place of `zones`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        zones: Mapping[str, str] | None = None,
        notify: Iterable[int] = (),
        options: str = "",
        ratio: str = "unlimited",
        updates: str = "any;",
        more: str = "",
    ) -> None:
        super().__init__(directory)
        self.zones = dict(zones or {})
        self.notify = tuple(notify)
        self.options = options
        self.ratio = ratio
        self.updates = updates
        self.more = more
        self.port = free_ports(3)
        for name, text in self.zones.items():
            self.write_zone(name, text)

    @property
    def statistics(self) -> str:
        return f"http://127.0.0.1:{self.port + 2}"

    @property
    def log(self) -> Path:
        return self.dir / "update.log"

    def write_zone(self, name: str, text: str) -> None:
        (self.dir / f"{name}.zone").write_text(text)

    def write_conf(self) -> None:
        keys = "\n".join(f'key "{name}" {{ algorithm hmac-sha256; secret "{KEY}"; }};' for name in KEYS)
        zones = "\n".join(f'zone "{name}" {{ type primary; file "{name}.zone"; }};' for name in self.zones)
        self.conf.write_text(
            _CONF.format(
                directory=self.dir,
                port=self.port,
                control=self.port + 1,
                statistics=self.port + 2,
                notify="".join(f"127.0.0.1 port {port}; " for port in self.notify),
                options=self.options,
                ratio=self.ratio,
                updates=self.updates,
                keys=keys,
                zones=zones + "\n" + self.more,
            )
        )
        (self.dir / "rndc.conf").write_text(
            f'key "agent" {{ algorithm hmac-sha256; secret "{KEY}"; }};\n'
            f'options {{ default-key "agent"; default-server 127.0.0.1; default-port {self.port + 1}; }};\n'
        )
        (self.dir / "keys.conf").write_text(keys)

    def start(self) -> None:
        """Starts it, with the configuration that its fields say now, and waits until it answers."""
        self.write_conf()
        super().start()

    def serial(self, zone: str, *options: str) -> int | None:
        """The serial that is served; None if there is none."""
        fields = self.dig(zone, "SOA", "+short", *options).split()
        return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else None

    def update(self, *commands: str, key: str | None = None, zone: str = "z.example") -> None:
        """One nsupdate; `send` among the commands makes several updates of it."""
        text = "\n".join((f"server 127.0.0.1 {self.port}", f"zone {zone}", *commands, "send", ""))
        signed = ["-y", f"hmac-sha256:{key}:{KEY}"] if key is not None else []
        done = run_program("nsupdate", *signed, text=text, timeout_s=120)
        assert done.returncode == 0, done.stderr

    def rndc(self, *words: str, check: bool = True) -> str:
        """What a command to it prints."""
        done = run_program("rndc", "-c", str(self.dir / "rndc.conf"), *words)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def list_zones(self) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.statistics}/json/v1/zones", timeout=30) as answer:
            found: dict[str, object] = json.load(answer)
        return found
