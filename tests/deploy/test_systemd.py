"""The units for systemd: judged by its own tools, and their commands run as it would run them."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.requirements import need_program
from tests.support.system import READY_SECONDS, end, environment, free_ports

UNITS = Path(__file__).resolve().parents[2] / "deploy/systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
INSTALLED = "/opt/solowire/bin/solowire"
MOST_EXPOSED = 20
"""In tenths, as `systemd-analyze security` has it: above 2.0 a service is open somewhere."""
PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN = 65, 1
"""prctl(2): what `MemoryDenyWriteExecute=` does, without a systemd."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the command where it is here: `verify` asks whether it is there."""
    command = Path(sys.executable).with_name("solowire")
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(command)))
    return tmp_path


def analyze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [need_program("systemd-analyze"), "--no-pager", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("unit", [path.name for path in sorted(UNITS.iterdir())])
def test_systemd_takes_the_unit(units: Path, unit: str) -> None:
    """It finds nothing to say: no unknown word, no command that is not there."""
    done = analyze("verify", f"./{unit}", cwd=units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_may_do_little(units: Path, unit: str) -> None:
    """Nothing that it does not need, by systemd's own account."""
    done = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", f"./{unit}", cwd=units)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_services_are_closed_alike() -> None:
    """What one of them may not do, none may."""
    parts = {
        (UNITS / unit).read_text().partition("# What it may do")[2].partition("[Install]")[0].strip()
        for unit in SERVICES
    }
    assert len(parts) == 1
    assert "NoNewPrivileges=yes" in parts.pop()


def read_command(unit: str, place: str, port: int, directory: Path) -> list[str]:
    """Its ExecStart, on a data directory and ports of a test's."""
    [line] = re.findall(r"^ExecStart=(.+)$", (UNITS / unit).read_text(), re.MULTILINE)
    (directory / "solowire.toml").write_text(f"port = {port}\nshards = 1\n")
    line = line.replace(INSTALLED, f"{sys.executable} -m solowire").replace("%i", place)
    line = line.replace("%%", "%").replace("$$", "$").replace("/var/lib/solowire-backups", f"{directory}/backups")
    return shlex.split(line.replace("/etc/solowire", str(directory)).replace("/var/lib/solowire", f"{directory}/data"))


def deny_write_execute() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


class Service:
    """A process started as by systemd: with a socket for what it says, and what little environment there is."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self.output = directory / "output.log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._notify.settimeout(READY_SECONDS)
        kept = {name: value for name, value in environment().items() if name in ("PATH", "container")}
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd="/",
                env={**kept, "NOTIFY_SOCKET": str(directory / "notify"), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                umask=0o077,
                preexec_fn=deny_write_execute,
            )

    def wait_for(self, word: str) -> None:
        """Until it says so. Raises TimeoutError, with its output."""
        try:
            while word not in self._notify.recv(4096).decode().splitlines():
                pass
        except TimeoutError:
            raise AssertionError(f"not said: {word}\n{self.output.read_text()[-4000:]}") from None

    def close(self) -> int:
        try:
            return end(self.process)
        finally:
            self._notify.close()


@contextmanager
def started(unit: str, place: str, port: int, directory: Path) -> Iterator[Service]:
    """The unit's command, until the block ends; it has to end well."""
    own = directory / unit.partition(".")[0]
    own.mkdir()
    service = Service(read_command(unit, place, port, directory), own)
    try:
        yield service
    finally:
        assert service.close() == 0, service.output.read_text()[-4000:]


def wait_until_said(service: Service, text: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while text not in service.output.read_text():
        assert time.monotonic() < deadline, service.output.read_text()[-4000:]
        time.sleep(0.05)


def test_a_machine_by_one_unit(tmp_path: Path) -> None:
    """`up` says that it is ready, reloads by its ExecReload's signal, is backed up, and ends by SIGTERM with 0."""
    with started("solowire.service", "", free_ports(4), tmp_path) as service:
        service.wait_for("READY=1")
        service.process.send_signal(signal.SIGHUP)
        wait_until_said(service, '"settings_reloaded"')
        subprocess.run(read_command("solowire-backup.service", "", 0, tmp_path), check=True, timeout=READY_SECONDS)
        [backup] = (tmp_path / "backups").iterdir()
        assert {file.name for file in backup.iterdir()} == {"journal.sqlite3", "secret", "backup.json"}
    assert "Traceback" not in service.output.read_text()


def test_a_machine_by_a_unit_for_each_process(tmp_path: Path) -> None:
    """Router, shard and gateway find each other and are ready, each by itself."""
    port = free_ports(4)
    with (
        started("solowire-router.service", "", port, tmp_path) as router,
        started("solowire-shard@.service", "0", port, tmp_path) as shard,
        started("solowire-gateway@.service", str(port), port, tmp_path) as gateway,
    ):
        for service in (router, shard, gateway):
            service.wait_for("READY=1")


def test_no_unit_opens_the_data_directory_to_others() -> None:
    """systemd sets a state directory's mode with each start, 0755 by default: a source's unit did on one machine."""
    pages = [page.read_text() for page in (UNITS.parents[1] / "docs").glob("*.md")]
    units = [part for page in pages for part in re.findall(r"```ini\n(.*?)```", page, re.DOTALL)]
    units += [unit.read_text() for unit in UNITS.glob("*.service")]
    keeping = [unit for unit in units if "StateDirectory=" in unit]
    assert len(keeping) > 5
    assert all("\nStateDirectoryMode=0700\n" in unit for unit in keeping)
