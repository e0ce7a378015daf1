"""Files of the data directory that somebody removes under a running system: nothing is lost in silence."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.system import System, end, free_ports, run, running, sign, whole_lines

GATEWAY = ("gateway",)
EVENT = {"type": "custom.file", "data": {"n": 1}}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running(tmp_path / "data", shards=1, settings={"ROUTER__METRICS_PORT": free_ports(1)}) as started:
        yield started


def publish(system: System, secret: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {sign(secret, 'ann')}"}
    return httpx.post(f"{system.url}/v1/events", json=EVENT, headers=headers, trust_env=False, timeout=30)


def test_a_secret_that_is_removed(system: System) -> None:
    """A child that starts again doesn't make another; it says which file is missing, and goes on when it is back."""
    file = system.data_dir / "secret"
    secret = system.secret
    file.rename(system.data_dir / "aside")
    os.kill(system.pid_of(*GATEWAY), signal.SIGKILL)
    system.wait_until(lambda: "the secret is gone" in system.output.read_text(), "it says so")
    assert not file.exists()
    (system.data_dir / "aside").rename(file)
    system.wait_until(system._all_ready, "it has started again")
    assert system.secret == secret
    assert publish(system, secret).status_code == 200


def test_a_journal_that_is_removed(system: System) -> None:
    """No 200 for what isn't on disk, a line that says what to do, `/readyz`; a restarted router begins a new log."""
    secret = system.secret
    assert publish(system, secret).status_code == 200
    (system.data_dir / "journal.sqlite3").unlink()
    answer = publish(system, secret)
    assert answer.status_code == 503
    assert answer.json()["code"] == "journal_unavailable"
    system.wait_until(lambda: any("journal_unavailable" in line for line in system.said()), "it is said")
    [line] = [json.loads(line) for line in system.said() if '"journal_unavailable"' in line]
    assert line["level"] == "critical"
    assert line["reason"] == "the journal's file is gone"
    assert "restart the router" in line["hint"]
    router = f"http://127.0.0.1:{system.environment['SOLOWIRE_ROUTER__METRICS_PORT']}/readyz"
    assert httpx.get(router, trust_env=False).status_code == 503
    gateway = f"{system.url}/readyz"
    system.wait_until(
        lambda: httpx.get(gateway, trust_env=False).json()["router"] == "journal_unavailable", "the gateway says it"
    )
    assert httpx.get(gateway, trust_env=False).status_code == 200  # it serves users all the same
    metrics = {
        f"{system.url}/metrics": "solowire_gateway_publish_available",
        router.replace("/readyz", "/metrics"): "solowire_router_journal_available",
    }

    def shows(value: str) -> bool:
        return all(f"{name} {value}" in httpx.get(url, trust_env=False).text for url, name in metrics.items())

    system.wait_until(lambda: shows("0.0"), "metrics say it")
    os.kill(system.pid_of("router"), signal.SIGKILL)
    system.wait_until(lambda: publish(system, secret).status_code == 200, "the new router takes events")
    system.wait_until(lambda: shows("1.0"), "metrics say it")
    assert httpx.get(router, trust_env=False).status_code == 200


def test_an_audit_directory_that_is_removed(system: System) -> None:
    """It is made again, and what comes from then on is in it."""
    secret = system.secret
    audit = system.data_dir / "audit"
    shutil.rmtree(audit)
    assert publish(system, secret).status_code == 200
    system.wait_until(
        lambda: (audit / "gateway.jsonl").exists() and '"published"' in (audit / "gateway.jsonl").read_text(),
        "the line is there",
    )


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[System]:
    """One whose `up` takes a child for stuck that it doesn't hear of for two seconds."""
    with running(tmp_path / "data", shards=1, settings={"PROCESS__WATCHDOG_TIMEOUT_S": 2}) as started:
        yield started


async def test_a_run_directory_that_is_removed(watched: System) -> None:
    """Each socket in it is made again: no user is disconnected, no child taken for stuck, newcomers are served."""
    async with watched.session(watched.token("ann"), {"subscriptions": ["*"]}) as session:
        assert watched.process is not None
        before = children(watched.process.pid)
        names = len(list((watched.data_dir / "run").iterdir()))
        shutil.rmtree(watched.data_dir / "run")
        removed = f'"path": "{watched.data_dir}/run/'
        watched.wait_until(lambda: sum(removed in line for line in watched.said()) == names, "all of it is said")
        assert len(list((watched.data_dir / "run").iterdir())) == names
        assert (watched.data_dir / "run").stat().st_mode & 0o077 == 0
        token = watched.token("root")
        async with watched.http(token) as http:
            assert (await http.get("/v1/stats/shards/0")).status_code == 200
            await watched.publish(EVENT, token=token)
            [event] = await session.events(1)
            assert event["type"] == "custom.file"
            os.kill(watched.pid_of("gateway"), signal.SIGKILL)
            watched.wait_until(watched._all_ready, "a new gateway reaches the others")
            assert (await http.get("/v1/stats/shards/0")).status_code == 200
        assert [pid for pid in before if pid in children(watched.process.pid)] == before[:2]
        assert "process_unresponsive" not in watched.output.read_text()


@pytest.mark.parametrize(
    ("lock", "command"),
    [("router.lock", ("router",)), ("shard-0.lock", ("shard", "--index", "0")), ("up.lock", ("up", "--shards", "1"))],
)
def test_a_lock_that_is_removed(lock: str, command: tuple[str, ...], system: System) -> None:
    """It is said, and made again: a second process of the kind is refused as before."""
    (system.data_dir / lock).unlink()
    system.wait_until(lambda: any("file_removed" in line and lock in line for line in system.said()), "it is said")
    done = run(*command, "--data-dir", str(system.data_dir), cwd=system.data_dir, settings={"PORT": free_ports(3)})
    assert done.returncode == 2
    assert "already uses the data directory" in done.stderr
    assert publish(system, system.secret).status_code == 200


@pytest.mark.parametrize("lock", ["router.lock", "shard-0.lock", "up.lock"])
def test_a_lock_that_another_process_has_taken(lock: str, system: System) -> None:
    """Two of a kind would both use the data: the first one ends, and says why."""
    (system.data_dir / lock).unlink()
    with (system.data_dir / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        system.wait_until(lambda: any('"lock_lost"' in line for line in system.said()), "it is said")
        assert system.process is not None
        assert system.process.wait(60) == (2 if lock == "up.lock" else 1)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
def test_a_signal_that_means_nothing(number: int, system: System) -> None:
    """Neither `up` nor any of its processes ends by it."""
    assert system.process is not None
    processes = [system.process.pid, *map(int, children(system.process.pid))]
    for pid in processes:
        os.kill(pid, number)
    assert publish(system, system.secret).status_code == 200
    assert [system.process.pid, *map(int, children(system.process.pid))] == processes
    assert "process_exited" not in system.output.read_text()


def test_sigquit(system: System) -> None:
    """It ends everything in order, as SIGTERM does."""
    assert system.process is not None
    assert end(system.process, signal.SIGQUIT) == 0
    assert "killed" not in system.output.read_text()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_process_alone_beside_a_log(tmp_path: Path) -> None:
    """It makes no secret where there is a log already; where a system begins, it makes one and says so."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "journal.sqlite3").write_bytes(b"")
    done = run("gateway", "--data-dir", str(data), cwd=tmp_path, settings={"PORT": free_ports(1)})
    assert done.returncode == 2
    assert "the secret is gone" in done.stderr.splitlines()[-1]
    assert not (data / "secret").exists()
    (data / "journal.sqlite3").unlink()
    system = System(data)
    process = system.spawn("gateway", "--port", str(free_ports(1)))
    try:
        system.process = process
        system.wait_until(lambda: any('"secret_made"' in line for line in whole_lines(system.output)), "it says so")
    finally:
        end(process)


def test_a_start_with_closed_standard_streams(tmp_path: Path) -> None:
    """No file of the system gets their numbers: logs end up nowhere, and not in a lock."""
    data = tmp_path / "data"
    system = System(data, shards=1)
    command = 'exec "$0" -m solowire up --port "$1" --shards 1 --data-dir "$2" <&- >&- 2>&-'
    process = subprocess.Popen(
        ["sh", "-c", command, sys.executable, str(system.port), str(data)],
        env=system.environment,
        cwd=tmp_path,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not system._all_ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for pid in (process.pid, *map(int, children(process.pid))):
            for number in range(3):
                assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"
        assert (data / "up.lock").read_text().split()[0] == str(process.pid)
    finally:
        assert end(process) == 0
