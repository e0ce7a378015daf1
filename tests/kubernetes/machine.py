"""The machine that a cluster believes to be on: namespaces that end with the process that made them.

What it keeps true: nothing of the real machine is changed. This process is in pid, mount, network, cgroup and host name
namespaces of its own (`__main__` makes them), so mounts and addresses are gone with it. What the kubelet would set for
the whole machine it sets in files of ours, which are mounted over the kernel's.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from pathlib import Path

from tests.kubernetes.control_groups import CONTROLLERS, make_group

ADDRESS = "10.99.0.1"
"""Where the API and the cluster's names are."""
NODES = {"node1": "10.99.0.1", "node2": "10.99.0.2"}
"""The addresses of the nodes, which are one machine: each has a kubelet and a containerd of its own."""
POD_NETWORK = "10.98.0.0/16"
SERVICE_NETWORK = "10.97.0.0/16"

_WANTED_SETTINGS = {  # as the kubelet wants them
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

_OURS = ("/run", "/var/lib", "/var/log")
"""Where kubelet, containerd and CNI keep things that no option moves."""


def set_up_machine(folder: Path) -> None:
    """Makes network, mounts and limits. folder: for files of its own. Raises RuntimeError outside of namespaces."""
    if os.getppid() != 1 or len(socket.if_nameindex()) > 1:
        raise RuntimeError("not in namespaces of its own: start it by `make test-kubernetes`")
    _run("hostname", "cluster")
    _run("mount", "--make-rshared", "/")
    for path in _OURS:
        _run("mount", "-t", "tmpfs", "ours", path)
    _mount_settings(folder)
    _mount_control_groups()
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "node0", "type", "bridge")
    for address in NODES.values():
        _run("ip", "address", "add", f"{address}/24", "dev", "node0")
    _run("ip", "link", "set", "node0", "up")
    _run("ip", "route", "add", "default", "dev", "node0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _mount_settings(folder: Path) -> None:
    """Files in place of the kernel's settings, and of the machine's own names: a test adds the release's to these."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in _WANTED_SETTINGS.items():
        _mount_file(folder / name.replace("/", "-"), value, Path("/proc/sys") / name)
    _mount_file(folder / "hosts", "127.0.0.1 localhost\n", Path("/etc/hosts"))


def _mount_file(file: Path, text: str, place: Path) -> None:
    file.write_text(text)
    _run("mount", "--bind", file, place)


def _mount_control_groups() -> None:
    """A tree of version 1 whose root is the group of this namespace."""
    root = Path("/sys/fs/cgroup")
    _run("mount", "-t", "tmpfs", "cgroups", root)
    for name in CONTROLLERS:
        (root / name).mkdir()
        options = "none,name=systemd" if name == "systemd" else name
        _run("mount", "-t", "cgroup", "-o", options, name, root / name)
        for node in NODES:
            make_group(root / name / node)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)
