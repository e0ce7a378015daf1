"""The wheel as the image has it: in an empty environment, below a user without rights, on a file system that can't be
written. What the Containerfile does is done here without a container engine.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import OUTSIDER, FirstProcess, as_container, with_python
from tests.support.requirements import NEEDS_ROOT, needs
from tests.support.system import System, ready, sign
from tests.support.wheel import ROOT, run

pytestmark = [NEEDS_ROOT, needs("tini")]
SECRET = "the secret of the test of the image"


@pytest.fixture(scope="module")
def place(wheel: Path) -> Iterator[Path]:
    """A folder with the environment, `tree`, and the user's own `data`. Not below pytest's, which is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="solowire-image-"))
    try:
        folder.chmod(0o755)
        for name in ("data", "python"):
            (folder / name).mkdir()
        shutil.chown(folder / "data", OUTSIDER, OUTSIDER)
        python = folder / "python/bin" / f"python3.{sys.version_info.minor}"
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder / "tree/bin/python"]
        commands: list[list[str | Path]] = [
            [python, "-m", "venv", "--without-pip", folder / "tree"],
            [*pip, "install", "-q", "--only-binary", ":all:", "-c", ROOT / "constraints.txt", f"{wheel}[server]"],
        ]
        for command in commands:
            done = run("unshare", "--mount", *with_python(folder, *command))
            assert done.returncode == 0, done.stderr
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def started(place: Path, data: str, *roles: str) -> Iterator[tuple[System, list[FirstProcess]]]:
    """Each role as a container of its own, with the data directory in common; each must end with status 0."""
    system = System(place / "data" / data, shards=1)
    system.output = place / f"{data}.log"
    settings = {"SECRET": SECRET, "PORT": system.port, "DATA_DIR": system.data_dir, "ROUTER__METRICS_PORT": 0}
    settings |= {"URL": system.url, "SOURCE__HOST__INTERVAL_S": 1}
    begun: list[FirstProcess] = []
    try:
        for role in roles:
            command = as_container(place, place / "tree/bin/solowire", *role.split())
            begun.append(FirstProcess(command, settings, system.output))
        for port in (system.port, system.port + 1):
            system.wait_until(lambda port=port: ready(f"http://127.0.0.1:{port}"), "it is ready")  # type: ignore[misc]
        yield system, begun
    finally:
        statuses = [process.end() for process in reversed(begun)]
    assert statuses == [0] * len(roles), system.output.read_text()[-4000:]


async def test_each_role_serves(place: Path) -> None:
    """An event goes its whole way, and the agent's own come, too."""
    token = sign(SECRET, "admin")
    with started(place, "roles", "router", "shard --index 0", "gateway", "source host") as (system, processes):
        for process in processes:
            assert_no_rights(process.pid)
        async with system.session(token, {"subscriptions": ["custom.*", "system_metrics"]}) as session:
            await system.publish({"type": "custom.hello", "data": {}}, token=token)
            heard: set[str] = set()
            while not heard >= {"custom.hello", "system_metrics"}:
                heard |= {event["type"] for event in await session.events(1)}


async def test_the_whole_system_serves(place: Path) -> None:
    """`up`, with all its processes in one container."""
    token = sign(SECRET, "admin")
    with started(place, "up", "up --shards 1") as (system, _):
        assert (await system.publish({"type": "custom.hello", "data": {}}, token=token))["accepted"] == 1


def test_nothing_else_can_be_written(place: Path) -> None:
    """So that the tests above have shown something."""
    writes = "import sys; open(sys.argv[1], 'w')"
    for path, can_write in (
        (place / "x", False),
        (place / "tree/x", False),
        ("/tmp/x", False),
        (place / "data/x", True),
    ):
        command = as_container(place, place / "tree/bin/python", "-c", writes, path)
        status = FirstProcess(command, {}, place / "writes.log").wait()
        assert (status == 0) == can_write, path


def assert_no_rights(pid: int) -> None:
    """Of a process and those below it: no root, no capability, and no way to get any."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":\t")
        if name in ("Uid", "Gid"):
            assert set(value.split()) == {str(OUTSIDER)}
        if name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            assert int(value, 16) == 0, name
        if name == "NoNewPrivs":
            assert value == "1"
