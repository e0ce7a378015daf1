"""The measurements of a host, by psutil, and in a container what can be seen there.

What it keeps true: what can't be measured (no such file in /proc, no swap, no right to look) is absent, and keeps
nothing else from being measured. Counts of disks, interfaces and processes are bounded. Rates are between two
measurements, so the first has none.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

MAX_DISKS = 32
MAX_INTERFACES = 32
MAX_PROCESSES = 16
_READ_ONLY = {"squashfs", "iso9660", "erofs"}  # always full
_ABSENT = (OSError, psutil.Error, NotImplementedError, AttributeError, KeyError, ValueError, IndexError)

T = TypeVar("T")


class HostMeter:
    """Measures one host, again and again. disks: mount points; all local ones if there are none. names: of processes.

    cgroup: where the container's own limits stand (control groups, version 2).
    """

    def __init__(
        self, disks: Sequence[str] = (), names: Sequence[str] = ("named",), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._disks = disks
        self._names = frozenset(names)
        self._cgroup = cgroup
        self._measured_at = 0.0
        self._cpu: tuple[float, float] | None = None  # busy and whole time
        self._interfaces: dict[str, tuple[float, ...]] = {}
        self._processes: dict[tuple[int, float], psutil.Process] = {}

    def measure(self) -> dict[str, Any]:
        """The payload's fields that can be measured, without `cpu_usage` the first time. It may take its time."""
        now = time.monotonic()
        elapsed, self._measured_at = now - self._measured_at, now
        parts: list[Callable[[], dict[str, Any]]] = [
            self._measure_cpu,
            self._measure_load,
            self._measure_memory,
            self._measure_swap,
            self._measure_disks,
            lambda: self._measure_network(elapsed),
            self._measure_processes,
            lambda: {"uptime_s": max(0.0, round(time.time() - psutil.boot_time(), 1))},
        ]
        found: dict[str, Any] = {}
        for part in parts:
            found |= _attempt(part) or {}
        return {name: value for name, value in found.items() if value is not None}

    def _measure_cpu(self) -> dict[str, Any]:
        times = psutil.cpu_times()
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # in `user` already
        busy = whole - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu = self._cpu, (busy, whole)
        figures: dict[str, Any] = {"cpu_count": _attempt(_count_cpus)}
        if before is not None and whole > before[1]:
            figures["cpu_usage"] = _percent(busy - before[0], whole - before[1])
        return figures

    def _measure_load(self) -> dict[str, Any]:
        loads = psutil.getloadavg()
        return {f"load_{minutes}m": round(load, 2) for minutes, load in zip((1, 5, 15), loads, strict=True)}

    def _measure_memory(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        total, used = memory.total, memory.total - memory.available
        limited = _attempt(lambda: self._read_container_memory(total))
        if limited is not None:
            total, used = limited
        return {"memory_usage": _percent(used, total), "memory_bytes": used, "memory_total_bytes": total}

    def _read_container_memory(self, host_total: int) -> tuple[int, int] | None:
        """The limit, and what is used of it as the kernel counts: without the cache of inactive files."""
        limit = int((self._cgroup / "memory.max").read_text())  # "max" is no number: there is no limit
        if limit >= host_total:
            return None
        used = int((self._cgroup / "memory.current").read_text())
        lines = (self._cgroup / "memory.stat").read_text().splitlines()
        inactive = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return limit, max(0, used - inactive)

    def _measure_swap(self) -> dict[str, Any]:
        swap = psutil.swap_memory()
        return {"swap_usage": _percent(swap.used, swap.total), "swap_bytes": swap.used} if swap.total else {}

    def _measure_disks(self) -> dict[str, Any]:
        disks = []
        for path in self._disks or _list_mounts():
            usage = _attempt(lambda path=path: psutil.disk_usage(path))  # type: ignore[misc]
            if usage is not None and usage.total:
                # As df has it: what only root may use counts as used.
                full = _percent(usage.used, usage.used + usage.free)
                disks.append({"path": path, "usage": full, "used_bytes": usage.used, "total_bytes": usage.total})
        shown = sorted(disks, key=lambda disk: -(disk["usage"] or 0.0))[:MAX_DISKS]
        if not shown:
            return {}
        root = next((disk for disk in disks if disk["path"] == "/"), shown[0])
        return {"disks": sorted(shown, key=lambda disk: disk["path"]), "disk_usage": root["usage"]}

    def _measure_network(self, elapsed: float) -> dict[str, Any]:
        counters = psutil.net_io_counters(pernic=True)
        interfaces: list[dict[str, Any]] = []
        before, self._interfaces = self._interfaces, {}
        for name, now in sorted(counters.items(), key=lambda item: -(item[1].bytes_recv + item[1].bytes_sent)):
            if name == "lo" or len(interfaces) == MAX_INTERFACES:
                continue
            counts = (now.bytes_recv, now.bytes_sent, now.errin + now.errout, now.dropin + now.dropout)
            self._interfaces[name] = counts
            interfaces.append({"name": name})
            if name in before and elapsed > 0:
                rates = [
                    max(0.0, round((new - old) / elapsed, 2)) for new, old in zip(counts, before[name], strict=True)
                ]
                interfaces[-1] |= dict(zip(_RATES, rates, strict=True))
        return {"network": sorted(interfaces, key=lambda each: str(each["name"]))} if interfaces else {}

    def _measure_processes(self) -> dict[str, Any]:
        known, self._processes = self._processes, {}
        processes: list[dict[str, Any]] = []
        for found in psutil.process_iter(["name", "create_time"]):
            if found.info.get("name") not in self._names or len(processes) == MAX_PROCESSES:
                continue
            key = (found.pid, found.info.get("create_time") or 0.0)
            process = self._processes[key] = known.get(key, found)
            measured = _attempt(lambda process=process: _measure_process(process))  # type: ignore[misc]
            if measured is not None:
                if key not in known:
                    measured.pop("cpu_usage", None)  # it has nothing to compare with yet
                processes.append({"name": found.info["name"], "pid": found.pid, **measured})
        return {"processes": processes} if processes else {}


_RATES = ("received_bytes_per_second", "sent_bytes_per_second", "errors_per_second", "drops_per_second")


def _measure_process(process: psutil.Process) -> dict[str, Any]:
    with process.oneshot():
        figures: dict[str, Any] = {
            "cpu_usage": _attempt(lambda: round(process.cpu_percent(), 1)),
            "memory_bytes": _attempt(lambda: process.memory_info().rss),
            "threads": _attempt(process.num_threads),
            "open_files": _attempt(process.num_fds),
            "uptime_s": _attempt(lambda: max(0.0, round(time.time() - process.create_time(), 1))),
        }
    return {name: value for name, value in figures.items() if value is not None}


def _list_mounts() -> list[str]:
    """Where local file systems are mounted, each device once; the root at least."""
    paths = {"/": "/"}
    for partition in _attempt(lambda: psutil.disk_partitions(all=False)) or []:
        if partition.fstype not in _READ_ONLY and os.path.isdir(partition.mountpoint):  # containers have files there
            paths.setdefault(partition.device, partition.mountpoint)
    devices: dict[int | None, str] = {}
    for path in paths.values():
        device = _attempt(lambda path=path: os.stat(path).st_dev)  # type: ignore[misc]
        devices.setdefault(device, path)
    return list(devices.values())


def _count_cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _percent(part: float, whole: float) -> float | None:
    if not whole or not math.isfinite(part / whole):
        return None
    return round(min(100.0, max(0.0, 100.0 * part / whole)), 1)


def _attempt(work: Callable[[], T]) -> T | None:
    """What `work` finds; None where it can't be seen."""
    try:
        return work()
    except _ABSENT:
        return None
