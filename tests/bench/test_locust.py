"""The locust file under a real locust, against a real system."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import free_ports
from tests.support.system import running

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "bench" / "locustfile.py"
USERS = 20


def statistics(prefix: Path) -> dict[str, dict[str, str]]:
    """What locust wrote, by the name of the request."""
    with prefix.with_name(f"{prefix.name}_stats.csv").open() as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("seconds", "more"),
    [
        (14, " --storm-every 4"),
        (7, " --storm-every 2 --processes 2 --master-port {port} --master-bind-port {port}"),
    ],
    ids=["one process", "two workers"],
)
def test_users_who_are_cut_off_miss_nothing(tmp_path: Path, seconds: int, more: str) -> None:
    """Locust runs headless through reconnect storms: every event reaches every user once, in order.

    With two workers, too, half of the users on each: both are told of each storm, and both have their users counted.
    """
    limits = {"LIMITS__CONNECT__RATE": 10_000, "LIMITS__CONNECT__BURST": 10_000}
    with running(tmp_path / "data", shards=2, settings=limits) as system:
        options = f"--headless --load storm -u {USERS} -r {USERS} -t {seconds}s --rate 50 --batch 5 --only-summary"
        options += more.format(port=free_ports(1))
        where = ["--host", system.url, "--data-dir", str(system.data_dir), "--csv", str(tmp_path / "run")]
        done = subprocess.run(
            [sys.executable, "-m", "locust", "-f", LOCUSTFILE, *where, *options.split()],
            env={name: value for name, value in os.environ.items() if not name.startswith("SOLOWIRE_")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=seconds + 120,
        )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    found = statistics(tmp_path / "run")
    published, received = found["/v1/events"], found["publish → receive"]
    assert int(published["Request Count"]) > seconds * 2
    assert int(received["Request Count"]) > int(published["Request Count"]) * 5 * USERS * 0.5
    assert int(found["away → resumed"]["Request Count"]) >= 2 * USERS  # one worker's alone make no more than 1.5
    assert int(found["Aggregated"]["Failure Count"]) == 0


FAULTS = """
from bench.locustfile import EVENT_TYPE, SolowireUser

def faults(*events):
    user = SolowireUser.__new__(SolowireUser)
    user.offset, user.numbers = 0, {}
    return [user._fault({"offset": o, "type": EVENT_TYPE, "data": {"publisher": "p", "n": n}}) for o, n in events]

assert faults((1, 0), (2, 1), (5, 2)) == ["", "", ""]
assert faults((1, 7), (2, 9))[1].startswith("gap")
assert faults((1, 7), (1, 7))[1].startswith("duplicate")
assert faults((1, 7), (2, 7))[1].startswith("duplicate")
"""


WELCOMES = """
from bench.locustfile import SolowireUser, _Refused

user = SolowireUser.__new__(SolowireUser)
user.epoch, user.cursor, user.offset, user.numbers, user.attempt, user.left_at = "e", 7, 7, {"p": 3}, 2, None
told = []
user._tell = lambda name, start, error=None: told.append((name, error))
try:
    user._welcomed({"type": "welcome", "resumed": False, "epoch": "e", "cursor": 99})
except _Refused:
    told.append("leaves")
assert told == [("hello came too late", None), "leaves"], told
assert (user.cursor, user.offset, user.numbers) == (7, 7, {"p": 3})
user._welcomed({"type": "welcome", "id": 1, "resumed": True})
assert told[2:] == [("away → resumed", None)], told
"""
SHAPES = """
from types import SimpleNamespace
from bench.locustfile import Load

def shape(load, seconds=60):
    options = dict(load=load, num_users=100, spawn_rate=10, run_time=seconds, publishers=2, storm_every=10.0)
    environment = SimpleNamespace(parsed_options=SimpleNamespace(**options))
    found = Load()
    found.sent = []
    found.runner = SimpleNamespace(environment=environment, send_message=lambda *words: found.sent.append(words))
    return found

def ticks(found, *times):
    for now in times:
        found.get_run_time = lambda: now
        yield found.tick()

assert list(ticks(shape("steady", 0), 0, 9999)) == [(102, 10)] * 2
assert list(ticks(shape("ramp"), 0, 30, 59, 60)) == [(3, 10), (53, 10), (101, 10), None]
assert list(ticks(shape("spike"), 0, 19, 20, 39, 40, 60)) == [
    (22, 100), (22, 100), (102, 100), (102, 100), (22, 100), None
]
storm, sent = shape("storm"), []
for tick in ticks(storm, 0, 9.9, 10, 10.9, 20, 45, 46, 50):
    assert tick == (102, 10)
    sent.append(len(storm.sent))
assert sent == [0, 0, 1, 1, 2, 3, 3, 4], sent
assert storm.sent[0] == ("storm", {})
storm.reset_time()
assert list(ticks(storm, 9, 10, 60)) == [(102, 10), (102, 10), None]
assert len(storm.sent) == 5
"""
SIGNS = """
import os
from types import SimpleNamespace
import jwt
from bench.locustfile import _token

secret = os.environ["SOLOWIRE_SECRET"]
masters = SimpleNamespace(parsed_options=SimpleNamespace(secret="", data_dir="/nowhere"))
assert jwt.decode(_token(masters, "u"), secret, ["HS256"])["sub"] == "u"
"""


def run(program: str, **environment: str) -> None:
    # In a process of its own: locust replaces the standard library's sockets when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_gap_and_a_duplicate_are_failures() -> None:
    """A number left out, an offset or a number that comes twice: each is told apart and counted as a failure."""
    run(FAULTS)


def test_a_welcome_to_no_hello_is_no_refusal() -> None:
    """A user whose hello came too late leaves with the cursor that it had, and counts no failure."""
    run(WELCOMES)


def test_users_come_and_go_as_the_load_says() -> None:
    """Each shape's users by the time, and the publishers; late storms are one; a second run begins anew."""
    run(SHAPES)


def test_a_worker_signs_with_its_own_secret() -> None:
    """Where the master's options, which replace a worker's, name no secret, the worker's environment does."""
    run(SIGNS, SOLOWIRE_SECRET="0123456789abcdef0123456789abcdef")
