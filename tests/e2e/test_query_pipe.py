"""A query log through a pipe, of syslog or of journald: all of it is published when the command ends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.system import READY_SECONDS, System, environment

HELLO = {"subscriptions": ["dns_query_log"]}
COMMAND = [sys.executable, "-m", "solowire", "source", "bind9", "--query-log", "-"]
LINE = "Dec  1 11:35:00 ns1 named[12]: client @0x7f 192.0.2.7#39576 ({0}): query: {0} IN A +E(0)K (192.0.2.53)\n"
ENTRY = (
    "__CURSOR=s=1\n__REALTIME_TIMESTAMP=1700000000250000\nSYSLOG_IDENTIFIER=named\nMESSAGE=client @0x7f 192.0.2.7#1 "
    "({0}): query: {0} IN A + (192.0.2.53)\n\n"
)


def pipe(text: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The agent with this on its standard input, until it ends by itself."""
    return subprocess.run(
        [*COMMAND, "--server", "ns1", *options],
        input=text,
        env=environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("form", [LINE, ENTRY], ids=["syslog", "journald"])
async def test_all_of_a_pipe_is_published_when_the_command_ends(system: System, tmp_path: Path, form: str) -> None:
    names = [
        f"p{number}.{'s' if form is LINE else 'j'}.example" for number in range(300)
    ]  # fewer than what is summed up
    async with system.session(system.token("pipe"), HELLO) as session:
        options = ["--url", system.url, "--token", system.token("ns1", role="publisher"), "--zones", "example"]
        done = pipe("".join(form.format(name) for name in names), tmp_path, *options)
        assert done.returncode == 0, done.stderr
        assert re.findall(r"\bpipe_\w+", done.stdout + done.stderr) == ["pipe_ended", "pipe_progress"]
        seen: dict[str, str] = {}
        while len(seen) < len(names):
            message = await session.hear("events")
            assert "compacted" not in message or not message["compacted"].get("dns_query_log")
            for event in message["events"]:
                if event["type"] == "dns_query_log":
                    assert (event["source"], event["data"]["zone"]) == ("ns1", "example")
                    seen[event["data"]["query_domain"]] = event["timestamp"]
    assert list(seen) == names
    if form is ENTRY:
        assert seen[names[0]] == "2023-11-14T22:13:20.250Z"


@pytest.mark.parametrize(
    ("url", "token", "says"),
    [
        ("http://no-such-host.invalid", "x", "no-such-host.invalid"),
        (None, "no.good.token", "401"),
    ],
)
def test_what_can_never_be_published_is_said_at_once(
    system: System, tmp_path: Path, url: str | None, token: str, says: str
) -> None:
    """Though nothing has come through the pipe yet: it is open, and silent."""
    process = subprocess.Popen(
        [*COMMAND, "--url", url or system.url, "--token", token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        cwd=tmp_path,
        text=True,
    )
    try:
        assert process.stdout is not None
        output = ""
        while says not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
    finally:
        process.kill()
        process.communicate()
