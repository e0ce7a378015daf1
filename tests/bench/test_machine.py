"""What a tree of processes takes of the machine, and that none of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import machine
from bench.machine import (
    LeftOut,
    compile_program,
    cpu_seconds,
    end_tree,
    free_ports,
    merging,
    process_tree,
    read_memory,
)

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", CHILD])
print(child.pid, flush=True)
time.sleep(60)
"""
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
BUSY = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_tree_is_ended_whole() -> None:
    """A child of the server that ignores SIGTERM is killed, too."""
    program = PARENT.replace("CHILD", repr(IGNORES))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    wait_until(lambda: b"signal" in Path(f"/proc/{child}/cmdline").read_bytes())
    assert process_tree(process.pid) == sorted([process.pid, child])
    end_tree(process)
    wait_until(lambda: not _alive(child))
    process.stdout.close()


def _alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_cpu_time_is_what_the_process_used() -> None:
    """The account of a process that computed for 0.3 s says so."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    wait_until(lambda: cpu_seconds(process.pid) >= 0.3)
    assert cpu_seconds(process.pid) < 3
    end_tree(process)


def test_memory_counts_what_is_held() -> None:
    """50 MB more are 50 MB more of PSS and of RSS."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nprint(0, flush=True)\nfor _ in sys.stdin: held = b'x' * 50_000_000; print(1, flush=True)",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # it runs: from here on it takes no more but what it is told to
    before = read_memory(process.pid)
    process.stdin.write(b"\n")
    process.stdout.readline()
    grown = read_memory(process.pid)
    assert 48e6 < grown.rss - before.rss < 60e6
    assert 48e6 < grown.pss - before.pss < 60e6
    end_tree(process)
    process.stdin.close()
    process.stdout.close()


def test_a_program_is_made_again_when_zlib_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is newer than its source is kept, but not if zlib's header came later, however old the header is."""
    source, header = tmp_path / "one.c", tmp_path / "zlib.h"
    source.write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "ZLIB", header)
    first = compile_program(source).stat().st_ino
    assert compile_program(source).stat().st_ino == first
    header.touch()
    os.utime(header, (0, 0))
    assert compile_program(source).stat().st_ino != first


def test_the_hosts_merging_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set is as it was in the end, also when the last of it could not be set."""
    monkeypatch.setattr(machine, "_KSM", tmp_path)
    before = {"use_zero_pages": "0", "pages_to_scan": "100", "sleep_millisecs": "20"}
    for name, value in before.items():
        (tmp_path / name).write_text(value)
    (tmp_path / "run").write_text("0")
    with merging():
        assert (tmp_path / "run").read_text() == "1"
        assert (tmp_path / "use_zero_pages").read_text() == "1"
    assert (tmp_path / "run").read_text() == "0"
    (tmp_path / "run").unlink()
    (tmp_path / "run").symlink_to("/proc/version")  # can be read and not be written
    with pytest.raises(LeftOut, match="same-page merging"), merging():
        pass
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_ports_are_free() -> None:
    """Ports in a row below those that the kernel gives to clients."""
    assert 18_000 <= free_ports(3) < 32_000
