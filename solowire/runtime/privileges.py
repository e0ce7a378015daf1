"""A check for more rights than a process needs: root, which a fault of ours would hand to a stranger.

In a container root is nobody outside, so nothing is said there. Nothing tells for sure that a process is in one; what
runtimes leave behind does: Docker's and Podman's files, `container=` (systemd-nspawn, Podman), Kubernetes' variables,
the names of control groups, and a root of layers (overlayfs), which is all that containerd leaves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from solowire.runtime.terminal import PARENT

_FILES = (".dockerenv", "run/.containerenv", "run/systemd/container")
_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST")
_CGROUP = re.compile(r"docker|kubepods|containerd|libpod|lxc|crio|machine\.slice")
_LAYERED_ROOT = re.compile(r"^\d+ \d+ \S+ \S+ / .* - (overlay|fuse-overlayfs) ", re.MULTILINE)

logger = structlog.get_logger("solowire.process")


def is_container(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this process seems to run in a container. root: where the machine's files are, for tests."""
    if any(environment.get(name) for name in _VARIABLES) or any((root / name).exists() for name in _FILES):
        return True
    for name, mark in (
        ("proc/1/cgroup", _CGROUP),
        ("proc/self/cgroup", _CGROUP),
        ("proc/self/mountinfo", _LAYERED_ROOT),
    ):
        with suppress(OSError):
            if mark.search((root / name).read_text(errors="replace")):
                return True
    return False


def warn_of_root(environment: Mapping[str, str] = os.environ, uid: int | None = None, root: Path = Path("/")) -> None:
    """Logs a warning if this process is root outside of a container; not from a child of `up`, which has said so."""
    if (
        (os.geteuid() if uid is None else uid) == 0
        and PARENT not in environment
        and not is_container(environment, root)
    ):
        logger.warning("running_as_root", hint="run it as a user of its own: it needs no right of root's")
