"""`make test-kubernetes`: builds what is missing, starts a cluster, and runs the tests of this folder in it.

`python -m tests.kubernetes --keep` starts the cluster alone, and says how to get into it; Ctrl-C ends it.
Other arguments are pytest's, such as `-k killed`. What was built is kept in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.kubernetes.control_groups import ControlGroups
from tests.support.namespaces import FirstProcess
from tests.support.system import alive

HERE = Path(__file__).resolve().parent
PACKAGES = {  # of Debian, and a program of each
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "etcd-server": "etcd",
    "nftables": "nft",
    "iproute2": "ip",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "tini": "tini",
}
NAMESPACES = ("--net", "--cgroup", "--uts", "--ipc")
START_SECONDS = 300.0
END_SECONDS = 60.0


def main() -> int:
    if os.geteuid() != 0:
        print("make test-kubernetes: it makes namespaces and containers, which takes root's rights", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "solowire-kubernetes"
    cache.mkdir(parents=True, exist_ok=True)
    prepare(cache)
    folder = cache / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ControlGroups():
        command = [sys.executable, "-m", "tests.kubernetes.cluster_processes", str(cache), str(folder)]
        node = FirstProcess(["tini", "--", *command], {}, folder / "node.log", cwd=HERE.parents[1], more=NAMESPACES)
        try:
            wait_until_ready(node, folder)
            return run_in(node, folder, sys.argv[1:])
        finally:
            node.end(seconds=END_SECONDS)


def prepare(cache: Path) -> None:
    """Installs Debian's packages, and builds programs and images, as far as they are missing."""
    missing = [name for name, program in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        subprocess.run([HERE.parents[1] / ".ci/system-packages", *missing], check=True)
    for script in ("tools/build", "images/build"):
        subprocess.run([HERE / script, cache], check=True)


def wait_until_ready(node: FirstProcess, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (folder / "ready").exists():
        if not alive(node.pid) or time.monotonic() > deadline:
            sys.exit(f"the cluster does not start:\n{(folder / 'node.log').read_text()}\nsee also {folder}/log")
        time.sleep(0.2)


def run_in(node: FirstProcess, folder: Path, arguments: list[str]) -> int:
    """The tests, in the node's namespaces; or, with --keep, nothing until Ctrl-C."""
    enter = ["nsenter", f"--target={node.pid}", "--all", f"--wdns={HERE.parents[1]}"]
    if arguments == ["--keep"]:
        print("ready. Get in by:", *enter, "env", f"KUBECONFIG={folder}/admin.kubeconfig", "bash")
        with suppress(KeyboardInterrupt):
            signal.pause()
        return 0
    environment = {**os.environ, "KUBERNETES_TESTS": str(folder)}
    tests = [sys.executable, "-m", "pytest", "-s", str(HERE), *arguments]  # with the figures that they print
    return subprocess.run([*enter, *tests], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
