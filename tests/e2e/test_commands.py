"""Commands as scripts use them: input from pipes, lines for programs, completion, and users that nobody knows."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.test_cli import SECRET, another_program, ask, one_line, place, printed, solowire, tail, together
from tests.support.requirements import need_program, reject_machine
from tests.support.system import ANSWER_SECONDS, READY_SECONDS, System, environment, free_ports, run, running

__all__ = ["place"]  # a fixture

COMMANDS: tuple[list[str], ...] = (
    [],
    *(["up"], ["router"], ["shard"], ["gateway"], ["source"], ["source", "bind9"], ["token"], ["publish"], ["tail"]),
    *(["history"], ["stats"], ["drain"], ["undrain"], ["config"], ["completion"]),
    *(["disconnect"], ["revoke"], ["revocations"], ["unrevoke"]),
    *(["keys"], ["backup"], ["restore"]),
)
WITH_DATA = (
    *(["up"], ["router"], ["shard", "--index", "0"], ["gateway"], ["token", "--user", "a"], ["tail"], ["stats"]),
    *(["publish", "custom.x", "{}"], ["publish", "-"], ["history"], ["drain", "0"], ["undrain", "0"]),
    *(["disconnect", "ann"], ["revoke", "--user", "ann"], ["revocations"], ["unrevoke", "x"]),
    ["source", "bind9", "--query-log", "/nope"],
)


def feed(system: System, place: Path, text: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`solowire publish …` with this on its standard input."""
    command = [sys.executable, "-m", "solowire", "publish", *arguments]
    done = subprocess.run(
        [*command, "--data-dir", str(system.data_dir), "--url", system.url],
        input=text,
        env=environment(),
        cwd=place,
        capture_output=True,
        timeout=READY_SECONDS,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def event(number: int, type: str = "custom.line", **more: Any) -> dict[str, Any]:
    return {"type": type, "data": {"n": number}, **more}


# ------------------------------------------------------------------------------------------------------- publish -


def test_lines_of_standard_input_are_published(system: System, place: Path) -> None:
    """In their order, however many, with what the options say of those that say nothing; and a summary is printed."""
    first, rest = event(0, priority="critical", key="own"), [event(n) for n in range(1, 1200)]
    with tail(system, place, "custom.line", "--json", "--count", "1200") as tailing:
        done = feed(system, place, lines(first, *rest[:600]) + b"\n \r\n" + lines(*rest[600:])[:-1], "-", "--key", "k")
        assert printed(done) == "1,200 published, 0 duplicates, 0 refused\n"
        assert done.stderr == ""
        found = [json.loads(line) for line in tailing.lines()]
    assert [one["data"]["n"] for one in found] == list(range(1200))
    assert [(one["priority"], one["key"]) for one in found[:2]] == [("critical", "own"), ("normal", "k")]


def test_critical_lines_that_are_taken_as_high_are_counted(system: System, place: Path) -> None:
    """By the limit of one publisher: the summary says so, as nobody else would."""
    done = feed(system, place, lines(*(event(n, priority="critical") for n in range(1000))), "-")
    counts, _, demoted = printed(done).rpartition(", ")
    assert counts == "1,000 published, 0 duplicates, 0 refused"
    assert re.fullmatch(r"\d+ critical ones taken as high \(SOLOWIRE_PUBLISH__CRITICAL_RATE\)\n", demoted)


def test_an_id_that_was_published_before_is_a_duplicate(system: System, place: Path) -> None:
    """A file that is piped in twice is published once."""
    text = lines(event(1, id="line-1"), event(2, id="line-2"))
    assert printed(feed(system, place, text, "-")).startswith("2 published, 0 duplicates")
    assert printed(feed(system, place, text, "-")).startswith("0 published, 2 duplicates")


def test_each_refused_line_is_named_and_keeps_no_other_back(system: System, place: Path) -> None:
    """Whether it is found here or by the gateway, with the way out; then the status is 1."""
    wrong = {
        2: (b"{", "not valid JSON"),
        3: (b"[1]", "no object"),
        4: (b'{"type": "custom.x"}', "no data"),
        5: (b'{"data": {}}', "no type"),
        6: (b'{"type": "custom.x", "data": {}, "proirity": "low"}', "did you mean 'priority'"),
        7: (b'{"type": "no_such_type", "data": {}}', "no_such_type"),
        8: (b'{"type": "record_created", "data": {"zone": 5}}', "$.data"),
        9: (b'{"type": "custom.x", "data": {"n": "' + b"x" * 40_000 + b'"}}', "SOLOWIRE_PUBLISH__MAX_EVENT_BYTES"),
        10: (b'{"type": "custom.x", "data": {"n": "' + b"x" * 2_000_000 + b'"}}', "1048576 bytes"),
        11: (b'{"type": "custom.x", "data": {"n": "\xff"}}', "not valid JSON"),
        12: (b'{"type": "custom.x", "data": {}, "priority": "loud"}', "priority"),
    }
    text = b"\n".join([lines(event(1)).strip(), *(line for line, _ in wrong.values()), lines(event(2)).strip()])
    done = feed(system, place, text, "-")
    assert (done.returncode, done.stdout) == (1, f"2 published, 0 duplicates, {len(wrong)} refused\n")
    told = dict(re.findall(r"^solowire: line (\d+): (.*)$", done.stderr, re.M))
    assert len(done.stderr.splitlines()) == len(wrong)
    for number, (_, word) in wrong.items():
        assert word in told[str(number)], (number, told)


def test_many_refused_lines_are_counted(system: System, place: Path) -> None:
    """A file of another kind doesn't fill the terminal."""
    done = feed(system, place, b"no JSON\n" * 5000, "-")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) < 200
    assert done.stdout == "0 published, 0 duplicates, 5,000 refused\n"


def test_lines_are_published_as_they_come(system: System, place: Path) -> None:
    """What is written into a pipe is published before the pipe ends: a command may feed it for days."""
    command = [sys.executable, "-m", "solowire", "publish", "-", "--data-dir", str(system.data_dir)]
    with tail(system, place, "custom.line", "--json", "--count", "1") as tailing:
        feeding = subprocess.Popen(
            [*command, "--url", system.url], env=environment(), cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert feeding.stdin is not None
        feeding.stdin.write(lines(event(7)))
        feeding.stdin.flush()
        [found] = tailing.lines()
        out, _ = feeding.communicate(timeout=READY_SECONDS)
    assert json.loads(found)["data"] == {"n": 7}
    assert (feeding.returncode, out) == (0, b"1 published, 0 duplicates, 0 refused\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "http://no-such-host.invalid"], "no such host"),
        (["--token", "no.such.token"], "answered 401"),
        (["--token", "VIEWER"], "answered 403"),
    ],
)
def test_a_feeder_that_can_not_work_says_so_before_a_line_comes(
    options: list[str], words: str, system: System, place: Path
) -> None:
    """Its pipe may say nothing for hours: who started it with a wrong address or token is told at once."""
    where = ["--data-dir", str(system.data_dir), "--url", system.url]
    given = [system.token("ann", "viewer") if option == "VIEWER" else option for option in options]
    feeding = subprocess.Popen(
        [sys.executable, "-m", "solowire", "publish", "-", *where, *given],
        env=environment(),
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert feeding.wait(READY_SECONDS) == 1, "while its pipe is open"
    out, said = feeding.communicate()
    assert out == "0 published, 0 duplicates, 0 refused\n"
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_feeder_of_a_pipe_that_does_not_wait(system: System, place: Path) -> None:
    """Its reading end is non-blocking, as a child of Node gets it: the feeder waits for the lines all the same."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [sys.executable, "-m", "solowire", "publish", "-", "--data-dir", str(system.data_dir)]
    with tail(system, place, "custom.line", "--json", "--count", "2") as tailing, open(writing, "wb") as pipe:
        feeding = subprocess.Popen(
            [*command, "--url", system.url],
            env=environment(),
            cwd=place,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(reading)
        for number in (1, 2):
            pipe.write(lines(event(number)))
            pipe.flush()
        tailing.lines()
        pipe.close()
        out, said = feeding.communicate(timeout=READY_SECONDS)
    assert (feeding.returncode, out, said) == (0, b"2 published, 0 duplicates, 0 refused\n", b"")


def test_what_is_no_input_is_told_in_one_line(system: System, place: Path) -> None:
    """A file that is only open for writing, say."""
    command = [sys.executable, "-m", "solowire", "publish", "-", "--data-dir", str(system.data_dir)]
    descriptor = os.open(place / "written", os.O_WRONLY | os.O_CREAT)
    done = subprocess.run(
        [*command, "--url", system.url],
        env=environment(),
        cwd=place,
        stdin=descriptor,
        capture_output=True,
        check=False,
    )
    os.close(descriptor)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"standard input can't be read" in done.stderr


@pytest.mark.parametrize("cause", ["revoked", "ended"])
def test_a_feeder_whose_token_is_no_good_any_more_ends_though_no_line_comes(
    cause: str, system: System, place: Path
) -> None:
    """What was sent last is refused, or nothing more would be taken: nobody has to wait for the next line to know."""
    token = system.token(f"feeder-{cause}", "publisher", **({"jti": "gone"} if cause == "revoked" else {"ttl": 8}))
    feeding = subprocess.Popen(
        [sys.executable, "-m", "solowire", "publish", "-", "--url", system.url, "--token", token],
        env=environment(),
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert feeding.stdin is not None
    with tail(system, place, "custom.line", "--count", "1") as tailing:
        feeding.stdin.write(lines(event(1)))
        feeding.stdin.flush()
        tailing.lines()
    if cause == "revoked":
        done = run("revoke", "--jti", "gone", "--data-dir", str(system.data_dir), "--url", system.url, cwd=place)
        assert done.returncode == 0, done.stderr
        feeding.stdin.write(lines(event(2)))
        feeding.stdin.flush()
    assert feeding.wait(READY_SECONDS) == 1, "while its pipe is open"
    out, said = feeding.communicate()
    assert b"answered 401" in said
    assert cause == "revoked" or b"the token ends in" in said
    assert out.startswith(b"1 published")


def test_a_feeder_says_that_it_waits_for_the_gateway(place: Path) -> None:
    """Before a line comes, and goes on; where no line comes at all it ends, with status 1."""
    url = f"http://127.0.0.1:{free_ports(1)}"
    feeding = subprocess.Popen(
        [sys.executable, "-m", "solowire", "publish", "-", "--url", url, "--token", "x"],
        env=environment(),
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert feeding.stderr is not None
    assert "trying on" in feeding.stderr.readline()
    out, said = feeding.communicate(timeout=READY_SECONDS)
    assert (feeding.returncode, out) == (1, "0 published, 0 duplicates, 0 refused\n")
    assert url in said


def test_a_feeder_is_ended_by_ctrl_c(system: System, place: Path) -> None:
    """Also while nothing comes, at once, without a traceback, and with what became of the lines."""
    command = [sys.executable, "-m", "solowire", "publish", "-", "--data-dir", str(system.data_dir)]
    with tail(system, place, "custom.line", "--count", "1") as tailing:
        feeding = subprocess.Popen(
            [*command, "--url", system.url],
            env=environment(),
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert feeding.stdin is not None
        feeding.stdin.write(lines(event(7)))
        feeding.stdin.flush()
        tailing.lines()
    feeding.send_signal(signal.SIGINT)
    assert feeding.wait(READY_SECONDS) == 130, "while its pipe is open"
    out, said = feeding.communicate()
    assert said.strip() == b""
    assert out == b"1 published, 0 duplicates, 0 refused, 0 not sent; settled up to line 1, go on behind it\n"


def test_a_feeder_that_is_ended_while_the_gateway_is_away(tmp_path: Path, place: Path) -> None:
    """What was not sent is counted, with the line behind which to go on; SIGTERM is the exit status 143."""
    with running(tmp_path / "data", shards=1) as system:
        feeding = subprocess.Popen(
            [sys.executable, "-m", "solowire", "publish", "-", "--data-dir", str(system.data_dir), "--url", system.url],
            env=environment(),
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert feeding.stdin is not None
        with tail(system, place, "custom.line", "--count", "2") as tailing:
            feeding.stdin.write(lines(event(1), event(2)))
            feeding.stdin.flush()
            tailing.lines()
    feeding.stdin.write(lines(event(3), event(4), event(5)))
    feeding.stdin.flush()
    assert feeding.stderr is not None
    assert b"not published yet" in feeding.stderr.readline()
    feeding.send_signal(signal.SIGTERM)
    assert feeding.wait(READY_SECONDS) == 143
    out, said = feeding.communicate()
    assert b"Traceback" not in said
    assert out == b"2 published, 0 duplicates, 0 refused, 3 not sent; settled up to line 2, go on behind it\n"


def test_a_gateway_that_is_away_ends_the_lines_with_one_line(system: System, place: Path) -> None:
    """What could not be sent is counted, and where it should have gone is named."""
    url = f"http://127.0.0.1:{free_ports(1)}"
    command = [
        sys.executable,
        "-m",
        "solowire",
        "publish",
        "-",
        "--url",
        url,
        "--token",
        system.token("p", "publisher"),
    ]
    done = subprocess.run(
        command,
        input=lines(event(1), event(2)),
        env=environment(),
        cwd=place,
        capture_output=True,
        timeout=READY_SECONDS,
    )
    assert (done.returncode, done.stdout) == (1, b"0 published, 0 duplicates, 0 refused, 2 not sent\n")
    [line] = done.stderr.decode().splitlines()
    assert url in line


def test_the_data_of_one_event_may_come_from_standard_input(system: System, place: Path) -> None:
    """`publish TYPE -` is `publish TYPE JSON` with the JSON from a pipe, faults included."""
    assert int(printed(feed(system, place, b'{\n"n": 1}\n', "custom.line", "-"))) > 0
    for text, word in ((b"{", "JSON"), (b"\xff", "UTF-8"), (b" " * 2_000_000, "bytes")):
        assert word in one_line(feed(system, place, text, "custom.line", "-"))


@pytest.mark.parametrize("arguments", ["-", "custom.x -"])
def test_a_closed_standard_input_is_one_line(place: Path, arguments: str) -> None:
    """As it is under some supervisors."""
    script = f"exec {sys.executable} -m solowire publish {arguments} --token a.b.c <&-"
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment(), capture_output=True, text=True, timeout=READY_SECONDS
    )
    assert "standard input is closed" in one_line(done)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["custom.x", '{"x": 18446744073709551616}'], "data.x is a number of more than 64 bits"),
        (["custom.x", '{"x": "' + "y" * 100_000 + '"}', "--user", ""], "user must not be empty"),
        (["custom.x", "{}", "--key", ""], "key must not be empty"),
        (["", "{}"], "type must not be empty"),
    ],
    ids=["big", "user", "key", "type"],
)
def test_an_event_that_cannot_be_is_one_line(place: Path, arguments: list[str], named: str) -> None:
    """What the SDK refuses is named on the command line, too."""
    done = solowire(place, "publish", *arguments, "--token", "a.b.c")
    assert (done.returncode, done.stdout) == (2, "")
    assert named in one_line(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ["disconnect", b"\xff"],
        ["revoke", "--user", b"a\xfe"],
        ["unrevoke", b"\xff"],
        ["revoke", "--issued-before", "nan"],
        ["revoke", "--user", "ann", "--until", "1e400"],
    ],
    ids=["disconnect", "revoke", "unrevoke", "nan", "infinite"],
)
def test_arguments_that_nobody_can_have_are_one_line(place: Path, arguments: list[str | bytes]) -> None:
    """A name that is no text, and a time that is none."""
    done = subprocess.run(
        [sys.executable, "-m", "solowire", *arguments, "--token", "a.b.c"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )
    assert one_line(done).startswith("solowire: ")


@pytest.mark.parametrize("command", ["config", "--help", "completion bash", "token --user a"])
def test_an_output_that_takes_nothing_is_one_line(place: Path, command: str) -> None:
    """A full disk behind standard output is said, and is no success."""
    script = f"exec {sys.executable} -m solowire {command} >/dev/full"
    settings = environment({"SECRET": "a secret that is long enough, really"})
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=settings, capture_output=True, text=True, timeout=READY_SECONDS
    )
    assert one_line(done, 1) == "solowire: standard output can't be written: No space left on device"


def test_a_byte_order_mark_is_no_part_of_the_first_line(system: System, place: Path) -> None:
    """As Windows' programs write it."""
    done = feed(system, place, b"\xef\xbb\xbf" + lines(event(0), event(1)), "-")
    assert printed(done) == "2 published, 0 duplicates, 0 refused\n"
    assert printed(feed(system, place, b'\xef\xbb\xbf{"x": 1}', "custom.line", "-")).strip().isdecimal()


def test_wrong_arguments_of_publish_are_usage(place: Path) -> None:
    """A type without data, or data beside whole events."""
    for done in together(*(partial(solowire, place, "publish", *a) for a in (["custom.x"], ["-", "{}"], []))):
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ stats and errors


def test_watched_statistics_are_json_lines(system: System, place: Path) -> None:
    """`stats --watch --json` prints a whole JSON document on a line each second, until nobody reads."""
    command = [sys.executable, "-m", "solowire", "stats", "--watch", "--json", "--data-dir", str(system.data_dir)]
    with subprocess.Popen(
        [*command, "--url", system.url],
        env=environment(),
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begun = time.monotonic()
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert time.monotonic() - begun > 1.5, "one a second"
        process.stdout.close()
        process.wait(READY_SECONDS)
        assert "Traceback" not in process.stderr.read()
    assert [[shard["shard"] for shard in shards] for shards in found] == [[0, 1]] * 3


def test_errors_name_the_url_and_keep_the_hint(system: System, place: Path) -> None:
    """What the server says and advises is passed on, with where it was asked."""
    where = ["--data-dir", str(system.data_dir), "--url", system.url]
    viewer = ["--token", system.token("ann", "viewer")]
    cases = (
        (["stats", *viewer], ["/v1/stats/shards answered 403", "role that does"]),
        (
            ["drain", "77", "--force"],
            ["/v1/shards/77/drain?force=true answered 404", "GET /v1/stats/shards lists them"],
        ),
        (["undrain", "0"], ["/v1/shards/0/undrain answered 409", "started again"]),
        (["publish", "custom.x", "{}", *viewer], ["/v1/events answered 403", "publisher"]),
        (["publish", "no_such_type", "{}"], ["/v1/events answered 400", "no_such_type"]),
    )
    told = together(*(partial(run, *command, *where, cwd=place) for command, _ in cases))
    for done, (_, words) in zip(told, cases, strict=True):
        line = one_line(done, status=1)
        assert system.url in line
        assert all(word in line for word in words), line


def test_what_is_no_gateway_is_told_with_the_way_out(place: Path) -> None:
    """Another program's answer, or none at all, names the option by which the gateway is named."""
    with another_program(b"<html>") as url:
        line = one_line(solowire(place, "stats", "--url", url, SECRET=SECRET), status=1)
    assert url in line
    assert "--url" in line
    gone = f"http://127.0.0.1:{free_ports(1)}"
    assert "`solowire up`" in one_line(solowire(place, "stats", "--url", gone, SECRET=SECRET), status=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish", "", "{}"], "type must not be empty"),
        (["publish", "custom.x", "{}", "--user", ""], "user must not be empty"),
        (["publish", "custom.x", "{}", "--key", ""], "key must not be empty"),
        (["publish", b"custom.\xff", "{}"], "UTF-8"),
        (["publish", "custom.x", "{}", "--user", b"\xff"], "UTF-8"),
        (["tail", b"custom.\xff"], "UTF-8"),
        (["tail", "--filter", b"zone=\xff"], "UTF-8"),
        (["disconnect", b"\xff"], "UTF-8"),
        (["revoke", "--user", b"\xff"], "UTF-8"),
        (["revoke", "--user", "ann", "--until", "nan"], "--until nan: write"),
        (["revoke", "--issued-before", "inf"], "--issued-before inf: write"),
        (["unrevoke", ".."], "no revocation has it"),
        (["source", "bind9", "--query-log", "q.log", "--server", b"\xff"], "UTF-8"),
        (["source", "bind9", "--query-log", "q.log", "--server", " "], "--server must not be empty"),
    ],
    ids=str,
)
def test_arguments_that_can_t_be_sent_are_one_line(place: Path, arguments: list[str], words: str) -> None:
    """What an option may not say is told by its name, before anything is asked, and without a traceback."""
    command = [sys.executable, "-m", "solowire", *arguments, "--url", f"http://127.0.0.1:{free_ports(1)}"]
    done = subprocess.run(
        command, env=environment({"SECRET": SECRET}), cwd=place, capture_output=True, text=True, timeout=READY_SECONDS
    )
    assert words in one_line(done)


@pytest.mark.parametrize("body", [b"[]", b'{"x": 1}', b"7", b'["x"]'])
def test_other_json_in_a_gateway_s_place_is_one_line(place: Path, body: bytes) -> None:
    """What answers 200 with JSON that is no gateway's is named as such by the commands about users, too."""
    with another_program(body) as url:
        commands = [["disconnect", "ann"], *([["revocations"]] if body != b"[]" else [])]
        for done in together(*(partial(solowire, place, *c, "--url", url, SECRET=SECRET) for c in commands)):
            assert f"{url} is no gateway" in one_line(done, status=1)


def test_a_locale_that_lacks_characters_ends_nothing(system: System, place: Path) -> None:
    """A table's dash is written as an escape; JSON is UTF-8 all the same."""
    where = ["--data-dir", str(system.data_dir), "--url", system.url]
    old = environment() | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "solowire", "stats", *where]
    done = subprocess.run(command, env=old, cwd=place, capture_output=True, text=True, timeout=READY_SECONDS)
    assert "127.0.0.1" in printed(done)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_end_nothing(system: System, place: Path, closed: str) -> None:
    """Without standard output, or error, a command does what it does, and says nothing of ours."""
    where = f"--data-dir {system.data_dir} --url {system.url}"
    for command in ("stats", "publish custom.x '{}'"):
        line = f"exec {sys.executable} -m solowire {command} {where} {closed}"
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=environment(), cwd=place, capture_output=True, text=True, timeout=READY_SECONDS
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_tail_of_nothing_ends(system: System, place: Path) -> None:
    """Where nothing that was named can be followed, it says what was meant, and does not wait for ever."""
    done = ask(system, place, "tail", "dns_query_lgo")
    assert done.returncode == 1
    assert "did you mean dns_query_log?" in done.stderr


# ------------------------------------------------------------------------------------------------------------ token


def claims(place: Path, *options: str) -> dict[str, Any]:
    text = printed(solowire(place, "token", "--user", "ann", *options, SECRET=SECRET)).strip()
    decoded: dict[str, Any] = jwt.decode(text, SECRET, algorithms=["HS256"])
    return decoded


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1h", 3600), ("2d", 172_800), ("1.5H", 5400)]
)
def test_a_token_s_life_has_a_unit(place: Path, ttl: str, seconds: int) -> None:
    """Seconds, or what people say."""
    found = claims(place, "--ttl", ttl)
    assert found["exp"] - found["iat"] == seconds


def test_a_token_may_have_a_tenant_and_scopes(place: Path) -> None:
    """--scope is repeatable, and goes together with --zones."""
    options = ["--scope", "view=internal", "--scope", "zone=b.example", "--scope", "view=dmz", "--zones", "a.example"]
    found = claims(place, "--tenant", "acme", *options)
    assert found["tenant"] == "acme"
    assert found["scopes"] == {"zones": ["a.example", "b.example"], "view": ["internal", "dmz"]}
    assert not claims(place).keys() & {"tenant", "scopes"}


def test_what_a_token_can_t_have_is_told(place: Path) -> None:
    """A duration that is none, a scope that is none, an attribute that nobody declares."""
    for wrong, words in (
        (["--ttl", "soon"], ["30s, 5m, 1h, 2d"]),
        (["--ttl", "0"], ["one second"]),
        (["--ttl", "nan"], ["30s, 5m, 1h, 2d"]),
        (["--ttl", "infd"], ["30s, 5m, 1h, 2d"]),
        (["--scope", "internal"], ["NAME=VALUE"]),
        (["--scope", "veiw=x"], ["did you mean 'view'"]),
    ):
        done = solowire(place, "token", "--user", "a", *wrong, SECRET=SECRET)
        assert (done.returncode, done.stdout) == (2, "")
        assert all(word in done.stderr for word in words), done.stderr


# ---------------------------------------------------------------------------------------------- help and completion


@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_fits_eighty_columns(place: Path, columns: str) -> None:
    """Whatever the terminal, no line of any --help is wider, and no command's summary is cut off."""
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "solowire", *command, "--help"],
            env=environment() | {"COLUMNS": columns},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
        )
        text = printed(done)
        assert [line for line in text.splitlines() if len(line) > 80] == [], command
        assert not re.search(r"^  [a-z0-9]+ .*\.\.\.$", text, re.M), text


def test_every_command_is_known_to_these_tests(place: Path) -> None:
    """A command that is added is tried with the others."""
    text = printed(solowire(place, "--help"))
    listed = re.findall(r"^  ([a-z0-9]+) +\S", text[text.index("Commands:") :], re.M)
    assert {command[0] for command in COMMANDS if command} == set(listed)


def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which `solowire` is a command."""
    shutil.copy(Path(sys.executable).with_name("solowire"), tmp_path / "solowire")
    return environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("solowire und", ["undrain"]),
        ("solowire publish --pri", ["--priority"]),
        ("solowire publish custom.x {} --priority h", ["high"]),
        ("solowire completion f", ["fish"]),
    ],
)
def test_bash_completes(place: Path, tmp_path: Path, words: str, found: list[str]) -> None:
    """What the script does in a real bash."""
    asked = words.split()
    script = (
        'eval "$(solowire completion bash)"; complete -p solowire >/dev/null || exit 9; '
        f"COMP_WORDS=({words.replace('{}', chr(39) + '{}' + chr(39))}); COMP_CWORD={len(asked) - 1}; "
        '_solowire_completion solowire; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=installed(tmp_path), capture_output=True, text=True, timeout=READY_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(place: Path, shell: str) -> None:
    """It is printed without settings or a data directory, and asks by a variable that is no setting."""
    script = printed(solowire(place, "completion", shell))
    assert f"_SOLOWIRE_COMPLETE={shell}_complete" in script
    assert "solowire" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=READY_SECONDS)
    done = subprocess.run(
        [sys.executable, "-m", "solowire"],
        env=environment()
        | {
            "_SOLOWIRE_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "solowire dr",
            "COMP_CWORD": "1" if shell != "fish" else "dr",
        },
        cwd=place,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )
    assert "drain" in done.stdout
    assert "undrain" not in done.stdout


# ---------------------------------------------------------------------------------- users and places without a home


def unknown_user(place: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A command of a user id that has no name and no home, as containers have it."""
    become = [need_program("unshare"), "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*become, "true"], capture_output=True).returncode:
        reject_machine("needs user namespaces, which this machine does not allow")
    kept = {
        name: value for name, value in environment(settings).items() if name not in ("HOME", "XDG_DATA_HOME", "USER")
    }
    kept = {name: value for name, value in kept.items() if name not in ("LOGNAME", "LNAME", "USERNAME")}
    return subprocess.run(
        [*become, sys.executable, "-m", "solowire", *arguments],
        env=kept,
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )


def test_an_unknown_user_reads_one_line(place: Path) -> None:
    """Each command that needs the data directory says that there is none, and how to name one."""
    for command in WITH_DATA:
        line = one_line(unknown_user(place, *command))
        assert "54321" in line
        assert "--data-dir" in line


def test_an_unknown_user_can_do_what_needs_no_home(system: System, place: Path) -> None:
    """With a secret, a token or a data directory everything works, and `config` prints what is in force."""
    assert "# data_dir" in printed(unknown_user(place, "config"))
    assert printed(unknown_user(place, "token", "--user", "a", SECRET=SECRET)).count(".") == 2
    published = unknown_user(
        place, "publish", "custom.x", "{}", "--url", system.url, "--token", system.token("p", "publisher")
    )
    assert int(printed(published)) > 0
    signed = unknown_user(place, "stats", "--json", "--url", system.url, "--data-dir", str(system.data_dir))
    assert len(json.loads(printed(signed))) == 2


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """Servers say so at once; other commands need none."""
    gone = tmp_path / "gone"
    for command in ("up", "router", "gateway"):
        gone.mkdir()
        script = f"rmdir {gone}; exec {sys.executable} -m solowire {command} --data-dir {tmp_path}/data"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=gone,
            env=environment() | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "the working directory is gone" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------- misspelt settings


@pytest.mark.parametrize("command", ["up", "config", "token", "tail", "stats"])
def test_a_misspelt_variable_is_one_line(place: Path, command: str) -> None:
    """Of every command, from the environment or `.env`, with what is meant and status 2."""
    options = ["--user", "a"] if command == "token" else []
    line = one_line(solowire(place, command, *options, SECRET=SECRET, HEARTBEAT="5"))
    assert "SOLOWIRE_HEARTBEAT is no setting; did you mean SOLOWIRE_SESSION__HEARTBEAT_INTERVAL_S?" in line
    (place / ".env").write_text("SOLOWIRE_SECERT=a secret that nobody should see\n")
    line = one_line(solowire(place, command, *options, SECRET=SECRET))
    assert "SOLOWIRE_SECERT is no setting; did you mean SOLOWIRE_SECRET?" in line
    assert ".env" in line
    assert "nobody should see" not in line


def test_a_service_link_in_place_of_the_port_is_told(place: Path) -> None:
    """In a pod beside a service called `solowire` everything starts, and says which variable it left out."""
    links = {"PORT": "tcp://10.96.3.4:8000", "SERVICE_HOST": "10.96.3.4", "GATEWAY_SERVICE_PORT_HTTP": "8000"}
    done = solowire(place, "config", **links)
    assert re.search(r"^port = 8000\s", printed(done), re.M)
    [line] = done.stderr.splitlines()
    assert "SOLOWIRE_PORT" in line
    assert "tcp://10.96.3.4:8000" in line


def test_a_misspelt_role_is_one_line(place: Path) -> None:
    """A permission that nothing asks for is refused before anything starts."""
    (place / "roles.toml").write_text('[roles.admin]\npermissions = ["*"]\n[roles.v]\npermissions = ["dns.raed"]\n')
    for done in together(
        *(partial(solowire, place, *c, SECRET=SECRET, ROLES_FILE="roles.toml") for c in (["up"], ["gateway"], ["tail"]))
    ):
        assert "did you mean 'dns.read'?" in one_line(done)
