"""The command `solowire`, as it is typed: what it prints, and one clear line for each thing that is wrong."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from solowire import __version__
from solowire.runtime.data_directory import TOKEN_FILE
from solowire.runtime.settings.setting_paths import list_paths
from tests.support.system import (
    ANSWER_SECONDS,
    READY_SECONDS,
    System,
    end,
    environment,
    free_ports,
    ready,
    run,
    running,
)

REMOTE = (["publish", "custom.x", "{}"], ["stats"], ["tail"])
SECRET = "a secret for tests, of more than 32 bytes"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory; commands run in it, and keep their data below it."""
    return tmp_path


def solowire(place: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A command that needs no system."""
    return run(*arguments, cwd=place, settings={"DATA_DIR": place / "data", **settings})


def ask(system: System, place: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A command that talks to `system`."""
    where = ("--data-dir", str(system.data_dir), "--url", system.url)
    return run(*arguments, *where, cwd=place, settings=settings)


def together(*calls: Callable[[], subprocess.CompletedProcess[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Commands run side by side."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_line(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


class Tail:
    """A running `solowire tail`, connected."""

    def __init__(self, system: System, place: Path, *arguments: str, **settings: object) -> None:
        self._said = place / "tail.err"
        where = ["--data-dir", str(system.data_dir), "--url", system.url]
        with self._said.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "solowire", "tail", *arguments, *where],
                env=environment(settings) | {"PYTHONUNBUFFERED": "1"},
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    @property
    def said(self) -> str:
        """On standard error, until now."""
        return self._said.read_text()

    def lines(self, seconds: float = ANSWER_SECONDS) -> list[str]:
        """What it prints until it ends by itself."""
        out, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, self.said
        return out.splitlines()


@contextmanager
def tail(system: System, place: Path, *arguments: str, **settings: object) -> Iterator[Tail]:
    tail = Tail(system, place, *arguments, **settings)
    try:
        until(lambda: "connected as" in tail.said or tail.process.poll() is not None, "tail is connected")
        assert tail.process.poll() is None, tail.said
        yield tail
    finally:
        if tail.process.poll() is None:
            tail.process.kill()
        tail.process.communicate()


def until(condition: Callable[[], Any], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def publish(system: System, *events: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {system.token('p', 'publisher')}"}
    answer = httpx.post(
        f"{system.url}/v1/events",
        json=list(events),
        headers=headers,
        timeout=ANSWER_SECONDS,
        trust_env=False,
        verify=False,
    )
    assert answer.status_code == 200, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def connects(system: System, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(
        f"{system.url}/v1/connect", headers=headers, timeout=ANSWER_SECONDS, trust_env=False, verify=False
    )


# ------------------------------------------------------------------------------------------- the command itself


def test_help_names_every_command(place: Path) -> None:
    """`solowire --help`, and `-h` of each command, say what there is."""
    text = printed(solowire(place, "--help"))
    for command in ("up", "router", "shard", "gateway", "source", "token", "publish", "tail", "stats", "config"):
        assert re.search(rf"^  {command} ", text, re.M), command
    assert "--filter" in printed(solowire(place, "tail", "-h"))
    assert "--query-log" in printed(solowire(place, "source", "bind9", "--help"))


def test_it_says_its_version(place: Path) -> None:
    """`solowire --version` is what a bug report begins with; the console script and `python -m` are one."""
    assert printed(solowire(place, "--version")) == f"solowire, version {__version__}\n"
    script = Path(sys.executable).with_name("solowire")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"solowire, version {__version__}\n"


def test_wrong_usage_is_status_two(place: Path) -> None:
    """Unknown commands and options, and what is missing, are told on stderr with exit status 2."""
    wrong = (["fly"], ["up", "--wings"], ["shard"], ["publish", "custom.x"], ["token"], ["tail", "--count", "0"])
    for done in together(*(partial(solowire, place, *arguments) for arguments in wrong)):
        assert (done.returncode, done.stdout) == (2, ""), done.args
        assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------- token


def test_a_token_is_accepted(system: System, place: Path) -> None:
    """What `solowire token` prints for a system's data directory opens a connection there."""
    token = printed(run("token", "--user", "ann", "--data-dir", str(system.data_dir), cwd=place)).strip()
    answer = connects(system, token)
    assert answer.status_code == 200
    with connect(answer.json()["url"], proxy=None) as socket:
        socket.send('{"type": "hello"}')
        welcome = json.loads(socket.recv(ANSWER_SECONDS))
    assert (welcome["user"], welcome["role"]) == ("ann", "viewer")
    printed_admin = run("token", "--user", "ann", "--role", "publisher", "--data-dir", str(system.data_dir), cwd=place)
    assert connects(system, printed(printed_admin).strip()).status_code == 403


def test_a_token_ends_and_is_narrowed_as_asked(place: Path) -> None:
    """--ttl and --zones are in the token, and without them it is good for an hour and for all zones."""
    import jwt

    def claims(*options: str) -> dict[str, Any]:
        text = printed(solowire(place, "token", "--user", "ann", *options, SECRET=SECRET)).strip()
        decoded: dict[str, Any] = jwt.decode(text, SECRET, algorithms=["HS256"])
        return decoded

    plain = claims()
    assert (plain["sub"], plain["role"], plain["exp"] - plain["iat"]) == ("ann", "viewer", 3600)
    assert not plain.get("scopes")
    narrow = claims("--ttl", "90", "--zones", "a.example, b.example", "--role", "admin")
    assert (narrow["role"], narrow["exp"] - narrow["iat"]) == ("admin", 90)
    assert sorted(next(iter(narrow["scopes"].values()))) == ["a.example", "b.example"]


@pytest.mark.parametrize("zones", ["", " ", ",", "a.example,", "a.example,,b.example", ".", "*", "*.a.example", "a b"])
def test_zones_that_are_none_are_one_line(place: Path, zones: str) -> None:
    """A slip of the keyboard makes no token for all zones: what is no zone is named, with the way out."""
    line = one_line(solowire(place, "token", "--user", "ann", "--zones", zones, SECRET=SECRET))
    assert "--zones" in line
    assert "leave --zones out" in line or "example.com" in line


def test_an_unknown_role_is_one_line(place: Path) -> None:
    """A misspelt role names those that there are."""
    line = one_line(solowire(place, "token", "--user", "ann", "--role", "amdin", SECRET=SECRET))
    assert "amdin" in line
    assert "admin, operator, viewer, publisher" in line


def test_no_secret_is_one_line(place: Path) -> None:
    """Without a secret nothing is signed, and the line says where it was looked for and what to do."""
    commands = (["token", "--user", "ann"], *REMOTE)
    for line in map(one_line, together(*(partial(solowire, place, *command) for command in commands))):
        assert str(place / "data" / "secret") in line
        assert "SOLOWIRE_SECRET" in line


def test_a_token_of_no_use_is_refused(place: Path) -> None:
    """A token that every gateway would refuse isn't made."""
    assert "--user must not be empty" in one_line(solowire(place, "token", "--user", "", SECRET=SECRET))
    wrong = (["--user", "x" * 300], ["--user", "a", "--ttl", "1e9d"])
    for done in together(*(partial(solowire, place, "token", *options, SECRET=SECRET) for options in wrong)):
        assert "such a token would be refused" in one_line(done)


def test_a_short_secret_is_no_noise(place: Path) -> None:
    """An application's secret of 20 characters works, and a script's stderr stays empty."""
    done = solowire(place, "token", "--user", "ann", SECRET="x" * 20)
    assert printed(done)
    assert done.stderr == ""


def test_a_roles_file_replaces_the_roles(place: Path) -> None:
    """With SOLOWIRE_ROLES_FILE the built-in roles are gone and its own are there."""
    roles = place / "roles.toml"
    roles.write_text('[roles.auditor]\npermissions = ["dns.read"]\n')
    assert printed(solowire(place, "token", "--user", "a", "--role", "auditor", SECRET=SECRET, ROLES_FILE=roles))
    line = one_line(solowire(place, "token", "--user", "a", "--role", "viewer", SECRET=SECRET, ROLES_FILE=roles))
    assert "viewer" in line
    assert "known are auditor" in line


def test_roles_of_other_names_will_do(place: Path) -> None:
    """What the command signs for itself is chosen by what a role grants, whatever the roles are called."""
    roles = place / "roles.toml"
    roles.write_text(
        '[roles.reader]\npermissions = ["dns.*"]\n'
        '[roles.feeder]\npermissions = ["events.publish"]\nmay_connect = false\n'
        '[roles.boss]\npermissions = ["*"]\n'
    )
    with running(place / "data", shards=1, settings={"ROLES_FILE": roles}) as system:
        own = partial(ask, system, place, ROLES_FILE=roles)
        until(lambda: "custom.hello" in system.output.read_text(), "it says where it is")
        published = own("publish", "custom.x", "{}")
        assert int(printed(published)) > 0
        [shard] = json.loads(printed(own("stats", "--json")))
        assert shard["shard"] == 0
        assert connects(system, system.printed_token).status_code == 200
        with tail(system, place, "custom.*", "--count", "1", ROLES_FILE=roles) as tailing:
            assert "(boss)" in tailing.said
            own("publish", "custom.x", "{}")
            assert len(tailing.lines()) == 1


def test_roles_that_nothing_can_be_signed_for_are_one_line(place: Path) -> None:
    """A roles file without an administrator is told before anything starts; each command names what it needs."""
    roles = place / "roles.toml"
    roles.write_text(
        '[roles.reader]\npermissions = ["dns.*"]\n[roles.deaf]\npermissions = ["*"]\nmay_connect = false\n'
    )
    for done in together(*(partial(solowire, place, *c, SECRET=SECRET, ROLES_FILE=roles) for c in (["up"], ["tail"]))):
        line = one_line(done)
        assert "roles.toml" in line
        assert "'admin' and may connect" in line
    roles.write_text('[roles.reader]\npermissions = ["dns.*"]\n')
    assert "'events.publish'" in one_line(solowire(place, "publish", "custom.x", "{}", SECRET=SECRET, ROLES_FILE=roles))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "No such file"),
        ("", "roles"),
        ("roles = [", "roles.toml"),
        ("[roles.x]\npermission = ['*']\n", "permission"),
        ("[roles.x]\npermissions = '*'\n", "array"),
    ],
    ids=["missing", "empty", "not-toml", "misspelt", "wrong-type"],
)
def test_a_wrong_roles_file_is_one_line(place: Path, content: str | None, word: str) -> None:
    """Whatever is wrong with it is told with the file's name."""
    if content is not None:
        (place / "roles.toml").write_text(content)
    line = one_line(solowire(place, "token", "--user", "a", SECRET=SECRET, ROLES_FILE="roles.toml"))
    assert "roles.toml" in line
    assert word in line


# ------------------------------------------------------------------------------------------- settings


def test_config_shows_every_setting_and_no_secret(place: Path) -> None:
    """`solowire config` lists all that can be set, with what is in force, secrets masked; and it is TOML itself."""
    (place / "own.toml").write_text(
        '[session]\nheartbeat_interval_s = 7.5\n[listen]\ntrusted_proxies = ["10.0.0.0/8"]\n'
        "[limits.groups.operator]\nreserved = 3\n[limits.groups.viewer]\nweight = 0.5\n"
    )
    (place / ".env").write_text("SOLOWIRE_SHARDS=3\n")
    text = printed(solowire(place, "config", "--config", "own.toml", SECRET=SECRET, TOKEN="a.b.c", PORT=8100))
    for *sections, name in list_paths():
        table = re.escape(f"[{'.'.join(sections)}]") + r"\n(?:.+\n)*?" if sections else ""
        assert re.search(rf"^{table}(# )?{name} =", text, re.M), name
    assert SECRET not in text
    assert "a.b.c" not in text
    assert re.search(r"^# secret = .*\*\*\*", text, re.M)
    for line in ("heartbeat_interval_s = 7.5", "shards = 3", "port = 8100"):
        assert re.search(rf"^{re.escape(line)}\s", text, re.M), line
    (place / "printed.toml").write_text(text)
    again = printed(run("config", "--config", "printed.toml", cwd=place))
    assert re.search(r"^port = 8100\s", again, re.M)
    for name in ("groups", "trusted_proxies"):
        [line] = re.findall(rf"^{name} = .*", text, re.M)
        assert line in again
        assert len(line) > 40


@pytest.mark.parametrize(
    ("settings", "dotenv", "toml", "words"),
    [
        ({"PORT": "eight"}, None, None, ["SOLOWIRE_PORT", "eight"]),
        ({}, "SOLOWIRE_SESSION__HEARTBEAT_INTERVAL_S=soon\n", None, ["SOLOWIRE_SESSION__HEARTBEAT_INTERVAL_S", "soon"]),
        ({}, None, "prot = 1\n", ["own.toml", "prot"]),
        ({}, None, "port = [\n", ["own.toml", "TOML"]),
        ({}, None, "shards = 'many'\n", ["own.toml: shards", "many"]),
        ({"SHARD__FLUSH__HIGH_MS": 500}, None, None, ["SOLOWIRE_SHARD__FLUSH__HIGH_MS", "shard.flush.normal_ms"]),
        (
            {"SESSION__RECONNECT_MIN_MS": 9, "SESSION__RECONNECT_MAX_MS": 3},
            None,
            None,
            ["SOLOWIRE_SESSION__RECONNECT_MIN_MS", "SOLOWIRE_SESSION__RECONNECT_MAX_MS"],
        ),
        ({"BACKPLANE": "tcp://127.0.0.1:1"}, None, None, ["SOLOWIRE_SHARD__API_PORT"]),
        ({"BACKPLANE": "tcp://127.0.0.1:1", "SHARD__API_PORT": 9000}, None, None, ["SOLOWIRE_BACKPLANE", "CURVE"]),
        (
            {"LIMITS__MAX_CONNECTIONS": 5, "LIMITS__GROUPS": '{"admin": {"reserved": 6}}'},
            None,
            None,
            ["SOLOWIRE_LIMITS__GROUPS", "SOLOWIRE_LIMITS__MAX_CONNECTIONS"],
        ),
        ({"SECRET": "short"}, None, None, ["SOLOWIRE_SECRET"]),
        ({"LISTEN__WRITE_TIMEOUT_S": "inf"}, None, None, ["SOLOWIRE_LISTEN__WRITE_TIMEOUT_S"]),
        ({"SHARD__PORT": 7000}, None, None, ["SOLOWIRE_SHARD__PORT", "--port"]),
    ],
    ids=[
        *("env", "dotenv", "unknown", "not-toml", "toml", "flush"),
        *("reconnect", "tcp-without-port", "tcp", "reserve", "secret", "infinite", "shard"),
    ],
)
def test_a_wrong_setting_is_one_line(
    place: Path, settings: dict[str, object], dotenv: str | None, toml: str | None, words: list[str]
) -> None:
    """Wherever it comes from, a wrong or contradictory setting is one line that names it, with exit status 2."""
    options: list[str] = []
    if dotenv is not None:
        (place / ".env").write_text(dotenv)
    if toml is not None:
        (place / "own.toml").write_text(toml)
        options = ["--config", "own.toml"]
    line = one_line(solowire(place, "up", *options, **settings))
    assert all(word in line for word in words), line
    assert not (place / "data").exists()


def test_a_missing_config_file_is_one_line(place: Path) -> None:
    """A --config that isn't there is named."""
    line = one_line(solowire(place, "config", "--config", "gone.toml"))
    assert "gone.toml" in line
    assert "No such file" in line


def test_a_data_directory_that_is_a_file_is_one_line(place: Path) -> None:
    """What can't be made is named, with the way out."""
    (place / "data").write_text("")
    for command in (["up"], ["router"]):
        line = one_line(solowire(place, *command))
        assert str(place / "data") in line


# ------------------------------------------------------------------------------------------- up


def test_what_up_suggests_can_be_typed(place: Path) -> None:
    """The lines that `up` prints run as they are, from anywhere, also where the system was started with `python -m`."""
    with running(place / "a data dir", shards=1) as system:
        until(lambda: re.search("custom.hello.*\n", system.output.read_text()), "it is printed")
        text = system.output.read_text()
        [publishing] = re.findall(r"^ +(.* publish custom.hello .*)$", text, re.M)
        [following] = re.findall(r"^ +(.* tail .*)$", text, re.M)
        for line in (publishing, f"{following} --help"):
            done = subprocess.run(
                line, shell=True, cwd="/", env=environment(), capture_output=True, text=True, timeout=READY_SECONDS
            )
            assert printed(done)


def test_the_token_of_an_administrator_is_kept_from_logs(place: Path) -> None:
    """Where its output is no terminal, `up` names a file that only its owner may read, and no line holds a token."""
    data = place / "a data dir"
    with running(data, shards=1) as system:
        until(lambda: "custom.hello" in system.output.read_text(), "it says where it is")
        token = system.printed_token
        assert connects(system, token).status_code == 200
        assert token not in system.output.read_text()
        assert "eyJ" not in system.output.read_text()  # how each JWT begins
        assert stat.S_IMODE((data / TOKEN_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_files_of_the_users_own_are_not_run(place: Path) -> None:
    """`up` in a folder with modules that are called like ours, or like the standard library's, runs none of them."""
    for name in ("gateway", "router", "logging", "zmq", "solowire"):
        (place / f"{name}.py").write_text("raise SystemExit('this is not what was meant')\n")
    for name in ("workers", "sources", "asyncio"):
        (place / name).mkdir()
        (place / name / "__init__.py").write_text("raise SystemExit('this is not what was meant')\n")
    system = System(place / "data", shards=1)
    command = [str(Path(sys.executable).with_name("solowire")), "up", "--port", str(system.port), "--shards", "1"]
    with (place / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, "--data-dir", "data"], env=system.environment, cwd=place, stdout=output, stderr=output, text=True
        )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready(f"http://127.0.0.1:{system.port}"):
                assert process.poll() is None, (place / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            end(process)
    assert "not what was meant" not in (place / "output").read_text()


def test_a_terminal_is_shown_the_token(place: Path) -> None:
    """Whoever sits before `up` can copy it from there, and no file is made of it."""
    system = System(place / "data", shards=1)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "solowire", "up", "--port", str(system.port), "--shards", "1", "--data-dir", "data"],
        env=system.environment,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    os.close(theirs)
    said = b""
    try:
        deadline = time.monotonic() + READY_SECONDS
        while b"custom.hello" not in said:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], said
            said += os.read(ours, 4096)
        [token] = re.findall(r"administrator's token +(eyJ\S+)", said.decode())
        assert connects(system, token).status_code == 200
        assert not (place / "data" / TOKEN_FILE).exists()
    finally:
        end(process)
        os.close(ours)


# ------------------------------------------------------------------------------------------- publish


def test_publish_prints_the_offset(system: System, place: Path) -> None:
    """Each event's offset is printed alone, so that a script can use it; options go with the event."""
    first = int(printed(ask(system, place, "publish", "custom.cli", '{"n": 1}')))
    options = ["--priority", "critical", "--user", "ann", "--key", "k"]
    second = int(printed(ask(system, place, "publish", "custom.cli", '{"n": 2}', *options)))
    assert second > first


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["custom.x", "{"], 2, ["JSON", "single quotes"]),
        (["custom.x", "[1]"], 2, ["JSON", "object"]),
        (["custom.x", '{"n": NaN}'], 2, ["JSON"]),
        (["no_such_type", "{}"], 1, ["no_such_type"]),
        (["record_created", '{"zone": 5}'], 1, ["$.data"]),
    ],
    ids=["not-json", "no-object", "nan", "unknown-type", "wrong-payload"],
)
def test_a_bad_event_is_one_line(
    system: System, place: Path, arguments: list[str], status: int, words: list[str]
) -> None:
    """What can't be published is told with its fault, whether it is found here or by the gateway."""
    line = one_line(ask(system, place, "publish", *arguments), status)
    assert all(word in line for word in words), line


def test_a_gateway_that_is_away_is_one_line(place: Path) -> None:
    """After trying for a while `publish` says that the gateway can't be reached; `stats` says so at once."""
    url = f"http://127.0.0.1:{free_ports(1)}"
    commands = (["publish", "custom.x", "{}"], ["stats"])
    for done in together(*(partial(solowire, place, *command, "--url", url, SECRET=SECRET) for command in commands)):
        line = one_line(done, status=1)
        assert "can't be reached" in line
        assert url in line


def test_a_wrong_url_is_one_line(place: Path) -> None:
    """A URL without http:// is the setting's fault."""
    url = "localhost:8000"
    for done in together(*(partial(solowire, place, *command, "--url", url, SECRET=SECRET) for command in REMOTE)):
        assert url in one_line(done)


def test_something_else_on_the_port_is_one_line(system: System, place: Path) -> None:
    """A shard's port, or another program's, in place of the gateway's is told, not a traceback."""
    where = ["--data-dir", str(system.data_dir), "--url", f"http://127.0.0.1:{system.port + 1}"]
    for done in together(*(partial(run, *command, *where, cwd=place) for command in REMOTE)):
        assert "404" in one_line(done, status=1)


@contextmanager
def another_program(body: bytes) -> Iterator[str]:
    """The URL of a program that answers everything with 200 and `body`."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"<html>", b'{"shards": []}', b"[1]", b'[{"shard": "x"}]', b"null", b"\xff"])
def test_another_program_that_says_fine_is_one_line(place: Path, body: bytes) -> None:
    """Whatever answers 200 in the gateway's place, `stats` and `tail` end with one line that names the place or why."""
    with another_program(body) as url:
        commands = (["stats"], ["stats", "--json"], ["tail"])
        told = together(*(partial(solowire, place, *command, "--url", url, SECRET=SECRET) for command in commands))
        for done in told:
            assert re.search("is no gateway|can't be understood", one_line(done, status=1))


def test_a_token_that_is_none_is_one_line(place: Path) -> None:
    """A token that no header can carry is the setting's fault."""
    for done in together(*(partial(solowire, place, *command, "--token", "é") for command in REMOTE)):
        assert "token must be" in one_line(done)


def test_what_others_say_is_no_markup(system: System, place: Path) -> None:
    """Brackets in what a user typed or the server repeats are printed as they are."""
    with tail(system, place, "dns.[/x]", "custom.*", "--count", "1") as tailing:
        until(lambda: "dns.[/x]" in tailing.said, "it is told")
        publish(system, {"type": "custom.x", "data": {}})
        tailing.lines()


def test_a_token_that_is_refused_is_one_line(system: System, place: Path) -> None:
    """A wrong --token is told in the gateway's words."""
    for done in together(*(partial(ask, system, place, *command, "--token", "a.b.c") for command in REMOTE)):
        assert "401" in one_line(done, status=1)


# ------------------------------------------------------------------------------------------- tail


def test_tail_prints_json_lines_and_ends_after_its_count(system: System, place: Path) -> None:
    """`tail --json --count 1` prints one event, whole, on one line of standard output, and ends."""
    with tail(system, place, "custom.tail", "--json", "--count", "1") as tailing:
        accepted = publish(
            system, {"type": "custom.tail", "data": {"text": "ünï [bold]x[/] \n"}, "key": "k", "source": "s"}
        )
        [line] = tailing.lines()
    event = json.loads(line)
    assert event["offset"] == accepted["first_offset"]
    assert (event["type"], event["data"]) == ("custom.tail", {"text": "ünï [bold]x[/] \n"})
    assert (event["key"], event["source"], event["priority"]) == ("k", "s", "normal")


def test_tail_prints_lines_for_people(system: System, place: Path) -> None:
    """Without --json a line holds offset, time, type and data, as they are, and only what the filter lets through."""
    types = ["record_created", "--filter", "zone=a.example", "--filter", "zone=b.example", "--count", "2"]
    with tail(system, place, *types) as tailing:
        accepted = publish(
            system,
            *(
                {"type": "record_created", "data": {"zone": zone, "name": f"[red]{zone}", "type": "A"}}
                for zone in "abc"
            ),
            *(
                {"type": "record_created", "data": {"zone": f"{zone}.example", "name": f"[red]{zone}", "type": "A"}}
                for zone in "acb"
            ),
        )
        first, second = tailing.lines()
    offset = accepted["first_offset"]
    assert re.match(rf" *{offset + 3} \d{{4}}-\d\d-\d\dT[\d:.]+Z record_created {{", first)
    assert re.match(rf" *{offset + 5} ", second)
    assert '"name":"[red]a"' in first
    assert "\x1b" not in first


def test_tail_says_what_it_is_not_granted(system: System, place: Path) -> None:
    """A type that doesn't exist is told beside the events, with the reason."""
    with tail(system, place, "custom.*", "no_such_type", "--count", "1") as tailing:
        until(lambda: "no_such_type" in tailing.said, "it is told")
        publish(system, {"type": "custom.x", "data": {}})
        tailing.lines()


def test_tail_ends_quietly_on_interrupt(system: System, place: Path) -> None:
    """Ctrl-C ends `tail` as a shell expects, and without a traceback."""
    with tail(system, place) as tailing:
        tailing.process.send_signal(signal.SIGINT)
        assert tailing.process.wait(ANSWER_SECONDS) == 130
        assert "Traceback" not in tailing.said
        assert "Error" not in tailing.said


def test_tail_ends_quietly_when_nobody_reads_it(system: System, place: Path) -> None:
    """`solowire tail | head` ends when head has enough."""
    with tail(system, place, "custom.pipe", "--json") as tailing:
        assert tailing.process.stdout is not None
        tailing.process.stdout.close()
        for _ in range(3):
            publish(system, {"type": "custom.pipe", "data": {}})
        assert tailing.process.wait(ANSWER_SECONDS) in (0, 1, 141)
        assert "Traceback" not in tailing.said
        tailing.process.stdout = None


def test_tail_waits_for_a_gateway_that_comes_later(place: Path) -> None:
    """Started too early, `tail` says what it is waiting for rather than nothing, and is ended by Ctrl-C."""
    url = f"http://127.0.0.1:{free_ports(1)}"
    command = [sys.executable, "-m", "solowire", "tail", "--url", url]
    said = place / "tail.err"
    with said.open("w") as stderr:
        process = subprocess.Popen(command, env=environment({"SECRET": SECRET}), cwd=place, stderr=stderr)
    try:
        until(lambda: f"not connected to {url} yet" in said.read_text(), "it says so")
        assert "can't be reached" in said.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(ANSWER_SECONDS) == 130
        assert "Traceback" not in said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------- stats


def test_stats_are_a_table(system: System, place: Path) -> None:
    """`solowire stats` has a row for each shard and one for all, with headers."""
    table = printed(ask(system, place, "stats"))
    for name in ("shard", "address", "connections", "feeds", "events", "deliveries", "behind"):
        assert name in table, table
    for index in (0, 1):
        assert f"127.0.0.1:{system.port + 1 + index}" in table
    assert re.search(r"\ball\b", table)


def test_stats_are_json_for_scripts(system: System, place: Path) -> None:
    """`solowire stats --json` has the same numbers; a connection shows within a heartbeat or two."""
    user = system.user_on(1, "counted")

    def connections() -> list[tuple[int, int]]:
        shards = json.loads(printed(ask(system, place, "stats", "--json")))
        return [(shard["shard"], shard["connections"]) for shard in shards]

    until(lambda: connections() == [(0, 0), (1, 0)], "nobody is left of the tests before")
    with connect(connects(system, system.token(user)).json()["url"], proxy=None):
        until(lambda: connections() == [(0, 0), (1, 1)], "the connection is counted")


def test_stats_are_for_administrators(system: System, place: Path) -> None:
    """Another role is told that it may not."""
    line = one_line(ask(system, place, "stats", "--token", system.token("ann", "viewer")), status=1)
    assert "administrators" in line


def test_stats_can_be_watched(system: System, place: Path) -> None:
    """`stats --watch` keeps the table up to date on a terminal until Ctrl-C, without a traceback."""
    user = system.user_on(1, "watched")
    terminal, inside = os.openpty()
    command = [sys.executable, "-m", "solowire", "stats", "--watch", "--data-dir", str(system.data_dir)]
    process = subprocess.Popen(
        [*command, "--url", system.url],
        env=environment() | {"COLUMNS": "200", "TERM": "xterm"},
        cwd=place,
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    seen = b""

    def see(row: bytes) -> None:
        nonlocal seen
        seen = b""
        deadline = time.monotonic() + READY_SECONDS
        while not re.search(row, seen):
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536)

    try:
        second = rb"127\.0\.0\.1:%d +" % (system.port + 2)
        see(second + rb"0 ")  # its connections
        with connect(connects(system, system.token(user)).json()["url"], proxy=None):
            see(second + rb"1 ")
        process.send_signal(signal.SIGINT)
        while select.select([terminal], [], [], ANSWER_SECONDS)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # EIO: the other end is closed
                break
        assert process.wait(ANSWER_SECONDS) == 130
        assert b"Traceback" not in seen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(terminal)
