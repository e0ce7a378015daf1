"""The machine: which cores are whose, how programs are started, and what a process takes of it, from /proc.

A server and its load never share a core where there are two, unless a case says so. CPU time is the kernel's account
of whole processes, all threads, user and system; memory is what `smaps_rollup` says.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
CORES = frozenset(os.sched_getaffinity(0))
LOAD_CORES = frozenset([max(CORES)])
SERVER_CORES = CORES - LOAD_CORES or CORES
PINNED = len(CORES) > 1
RESULTS = Path(__file__).resolve().parent / "results"
"""What benchmarks leave behind: compiled programs, peers' packages, figures. Not in the repository."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ZLIB = Path("/usr/include/zlib.h")
"""Of Debian's zlib1g-dev, which .ci/system-packages looks for, too."""
EAGER, USUAL = {"pages_to_scan": "20000", "sleep_millisecs": "20"}, {"pages_to_scan": "100", "sleep_millisecs": "20"}
"""Paces of same-page merging: so that a benchmark need not wait for it, and the kernel's own."""
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_KSM = Path("/sys/kernel/mm/ksm")


class BenchError(Exception):
    """A case can't run: a server does not start, or does not keep its contract."""


class LeftOut(BenchError):
    """A peer is not to be had here; its text is the reason."""


# ---------------------------------------------------------------- what a process takes


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads.

    The same account as utime+stime in /proc/PID/stat, but in ns instead of ticks of 10 ms (clock_getcpuclockid(3)).
    """
    return time.clock_gettime((~pid << 3) | 2)


def process_tree(pid: int) -> list[int]:
    """The process and all below it, in the order of their ids."""
    try:
        return sorted([pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))])
    except psutil.NoSuchProcess:
        return [pid]


def command_line(pid: int) -> str:
    """The words of a process with a blank after each; '' if there is no such process."""
    try:
        return "".join(f"{word} " for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


@dataclass(frozen=True)
class Memory:
    """Bytes. pss: shared pages divided among those who share them. merged: pages that same-page merging has taken."""

    pss: int = 0
    rss: int = 0
    merged: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.pss + other.pss, self.rss + other.rss, self.merged + other.merged)


def read_memory(pid: int) -> Memory:
    """From smaps_rollup; `merged` from ksm_stat. Raises psutil.NoSuchProcess."""
    found = psutil.Process(pid).memory_full_info()
    merged = 0
    with contextlib.suppress(OSError):
        names = ("ksm_zero_pages", "ksm_merging_pages")
        lines = Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()
        merged = sum(int(line.split()[-1]) for line in lines if line.split()[0].rstrip(":") in names)
    return Memory(found.pss, found.rss, merged * PAGE_BYTES)


def sum_memory(pids: Iterable[int]) -> Memory:
    """Of all of these processes that are there."""
    total = Memory()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += read_memory(pid)
    return total


def resident_mib(pid: int) -> float | None:
    """A process's resident memory in MiB; None if it is gone."""
    try:
        return float(psutil.Process(pid).memory_info().rss / 2**20)
    except psutil.NoSuchProcess:
        return None


def busy_seconds(cores: frozenset[int]) -> float:
    """Seconds that these cores have spent on anything since the machine started."""
    found = psutil.cpu_times(percpu=True)
    return float(
        sum(sum(found[core][:7]) + found[core].steal - found[core].idle - found[core].iowait for core in cores)
    )


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


def place_on(cores: Iterable[int]) -> Callable[[], None]:
    """What a child does before it becomes its program: takes its place, and dies with us."""

    def place() -> None:
        os.sched_setaffinity(0, cores)
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)

    return place


def end_tree(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    """SIGTERM, and SIGKILL to what is left of its tree after that."""
    left = {pid: command_line(pid) for pid in process_tree(process.pid)}
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    for pid, command in left.items():
        if command and command_line(pid) == command:  # not another that has its id by now
            with contextlib.suppress(OSError):
                os.kill(pid, _SIGKILL)
    process.wait()


class Program:
    """A C program of bench/ that obeys orders on its standard input until that ends."""

    def __init__(self, source: str, cores: frozenset[int], *arguments: str) -> None:
        command = [str(compile_program(Path(__file__).with_name(source))), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=place_on(cores)
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout

    def order(self, words: bytes) -> None:
        """Raises BenchError if it has ended."""
        try:
            self._stdin.write(words)
            self._stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self._process.args!r} ended") from None

    def read_line(self) -> bytes:
        """Its answer. Raises BenchError if it has ended."""
        line: bytes = self.stdout.readline()
        if not line:
            raise BenchError(f"{self._process.args!r} ended with status {self._process.wait()}")
        return line

    def cpu(self) -> float:
        return cpu_seconds(self._process.pid)

    def close(self, timeout_s: float = 5.0) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.stdout.close()


def compile_program(source: Path) -> Path:
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
        set_merging(wanted)
        yield
    finally:
        for name, value in before.items():
            with contextlib.suppress(OSError):
                (_KSM / name).write_text(value)


def set_merging(wanted: Mapping[str, str]) -> None:
    """Sets the host's same-page merging. Raises LeftOut if that is not allowed."""
    try:
        for name, value in wanted.items():
            (_KSM / name).write_text(value)
    except OSError as error:
        raise LeftOut(f"same-page merging: {_KSM}: {error.strerror}") from None


def wait_until_merged(timeout_s: float = 120.0) -> list[str]:
    """Waits until all memory has been scanned three times for the same pages; a fault if it is not in time."""
    start, deadline = _full_scans(), time.monotonic() + timeout_s
    while (passed := _full_scans() - start) < 4:  # so many ends of a scan are three whole scans at least
        if time.monotonic() > deadline:
            return [f"same-page merging was through {passed} times only within {timeout_s:.0f} s"]
        time.sleep(0.2)
    return []


def _full_scans() -> int:
    return int((_KSM / "full_scans").read_text())


def merging_cpu() -> float:
    """Seconds of CPU that the kernel's thread of same-page merging has taken; in nobody's account. 0.0 without one."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and (process / "comm").read_text() == "ksmd\n":
                return cpu_seconds(int(process.name))
    return 0.0
