"""The machine that a process runs on, as far as its network goes: a host, or one container of it."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")


def identify_machine() -> str:
    """The running kernel and this process's network namespace in it; "" where the system doesn't say.

    Two processes with the same one can't listen on the same address and port at a time. See proc(5), namespaces(7).
    """
    try:
        return f"{_BOOT.read_text().strip()}/{os.stat(_NETWORK).st_ino}"
    except OSError:
        return ""
