"""The machine: which cores are whose, and what a tree of processes takes of it, from /proc.

A server and its load never share a core where there are two. CPU time is the kernel's account of whole processes, all
threads, user and system, children included as long as they live; memory is what `smaps_rollup` says.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORES = frozenset(CORES[-1:])
SERVER_CORES = frozenset(CORES[:-1] or CORES)
PINNED = len(CORES) > 1
RESULTS = Path(__file__).resolve().parent / "results"
"""What benchmarks leave behind: compiled programs, peers' packages, figures. Not in the repository."""
_PR_SET_PDEATHSIG = 1
_KSM = Path("/sys/kernel/mm/ksm")
ZLIB = Path("/usr/include/zlib.h")
"""Of Debian's zlib1g-dev, which .ci/system-packages looks for, too."""
EAGER, USUAL = {"pages_to_scan": "20000", "sleep_millisecs": "20"}, {"pages_to_scan": "100", "sleep_millisecs": "20"}
"""Paces of same-page merging: so that a benchmark need not wait for it, and the kernel's own."""
_SIGKILL = 9


class BenchError(Exception):
    """A case can't run: a server does not start, or does not keep its contract."""


class LeftOut(BenchError):
    """A peer is not to be had here; its text is the reason."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads.

    What utime+stime in /proc/PID/stat say, from the same account of the scheduler, but in ns instead of ticks
    of 10 ms (clock_getcpuclockid(3)).
    """
    return time.clock_gettime((~pid << 3) | 2)


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    yield child
                    yield from descendants(child)


def tree(pid: int) -> list[int]:
    """The process and all below it, in the order of their ids."""
    return sorted({pid, *descendants(pid)})


def command_line(pid: int) -> str:
    """'' if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Memory:
    """Bytes. pss: shared pages divided among those who share them. merged: pages that same-page merging has taken."""

    pss: int
    rss: int
    merged: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.pss + other.pss, self.rss + other.rss, self.merged + other.merged)


def memory(pid: int) -> Memory:
    """From smaps_rollup; `merged` from ksm_stat. Raises OSError if the process is gone."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    merged = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines():
            name, _, value = line.replace(":", " ").partition(" ")
            if name in ("ksm_zero_pages", "ksm_merging_pages"):
                merged += int(value) * os.sysconf("SC_PAGE_SIZE")
    return Memory(found["Pss"], found["Rss"], merged)


def memory_of(pids: list[int]) -> Memory:
    total = Memory(0, 0, 0)
    for pid in pids:
        with contextlib.suppress(OSError):
            total += memory(pid)
    return total


def core_busy(cores: frozenset[int]) -> float:
    """Seconds that these cores have spent on anything since the machine started."""
    busy, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, fields)
            busy += (user + nice + system + irq + softirq + steal) / tick
    return busy


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody holds, below those that the kernel gives to clients."""
    for _ in range(100):
        first = random.randrange(18_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind((HOST, port))
            return first
    raise BenchError("no free ports")


# ---------------------------------------------------------------- starting and ending


_libc = ctypes.CDLL(None, use_errno=True)


def placed(cores: frozenset[int]) -> Callable[[], None]:
    """What a child does before it becomes its program: takes its place, and dies with us."""

    def place() -> None:
        os.sched_setaffinity(0, cores)
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)

    return place


def end(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    """SIGTERM, and SIGKILL to what is left of its tree after that."""
    left = {pid: command_line(pid) for pid in tree(process.pid)}
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    for pid, command in left.items():
        if command and command_line(pid) == command:  # not another that has its id by now
            with contextlib.suppress(OSError):
                os.kill(pid, _SIGKILL)
    process.wait()


def close(process: subprocess.Popen[bytes], timeout_s: float = 5.0) -> None:
    """Ends a program that obeys until its standard input ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def compiled(source: Path) -> Path:
    """The program made from a C file, made anew when the file is newer or zlib came later.

    Raises LeftOut without a compiler.
    """
    binary = RESULTS / "bin" / source.stem
    changed = source.stat().st_mtime
    with contextlib.suppress(OSError):
        changed = max(changed, ZLIB.stat().st_ctime)  # its mtime is that of the package
    if binary.exists() and binary.stat().st_mtime > changed:
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise LeftOut(f"{source.name} is written in C and there is no compiler (cc)")
    binary.parent.mkdir(parents=True, exist_ok=True)
    draft = binary.with_suffix(f".{os.getpid()}")
    for extra in (["-DWITH_ZLIB", "-lz"], []):  # zlib's header may not be there: then nothing is decompressed
        command = [compiler, "-O2", "-o", str(draft), str(source), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            draft.replace(binary)
            return binary
    raise LeftOut(f"{source.name} does not compile: {done.stderr.strip().splitlines()[-1:]}")


# ---------------------------------------------------------------- same-page merging


@contextlib.contextmanager
def merging() -> Iterator[None]:
    """The host's same-page merging, on and EAGER while this lasts. Raises LeftOut if it can't be had."""
    wanted = {"use_zero_pages": "1", **EAGER, "run": "1"}
    try:
        before = {name: (_KSM / name).read_text().strip() for name in wanted}
    except OSError as error:
        raise LeftOut(f"same-page merging: {_KSM}: {error.strerror}") from None
    try:
        merge_by(wanted)
        yield
    finally:
        for name, value in before.items():
            with contextlib.suppress(OSError):
                (_KSM / name).write_text(value)


def merge_by(wanted: Mapping[str, str]) -> None:
    """Sets the host's same-page merging. Raises LeftOut if that is not allowed."""
    try:
        for name, value in wanted.items():
            (_KSM / name).write_text(value)
    except OSError as error:
        raise LeftOut(f"same-page merging: {_KSM}: {error.strerror}") from None


def scans() -> int:
    """How often same-page merging has been through all memory that was offered to it."""
    return int((_KSM / "full_scans").read_text())


def merging_cpu() -> float:
    """Seconds of CPU that the kernel's thread of same-page merging has taken; in nobody's account. 0.0 without one."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and (process / "comm").read_text() == "ksmd\n":
                return cpu_seconds(int(process.name))
    return 0.0
