"""A cluster of two nodes on one machine: `python -m tests.kubernetes.cluster_processes CACHE FOLDER`.

It runs in namespaces of its own, which `__main__` makes, starts all processes of the control plane and of the nodes,
writes the file `ready` when these take pods, and ends by SIGTERM. All processes are in its pid namespace, and so end
with it, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.kubernetes.cluster_files import write_files
from tests.kubernetes.machine import ADDRESS, NODES, POD_NETWORK, SERVICE_NETWORK, set_up_machine

IMAGES = ("pause", "solowire", "solowire-next", "edge")
READY_SECONDS = 180.0
END_SECONDS = 10.0


class ClusterProcesses:
    """The processes. tools: the folder of the built programs. folder: for everything that they write."""

    def __init__(self, cache: Path, folder: Path) -> None:
        self._tools, self._images, self._folder = cache / "bin", cache / "images", folder
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "log").mkdir()

    def start(self) -> None:
        """Returns when the nodes take pods. Raises TimeoutError."""
        kubeconfig, pki = self._folder / "admin.kubeconfig", self._folder / "pki"
        self._spawn("etcd", "etcd", f"--data-dir={self._folder}/etcd", "--unsafe-no-fsync", *_ETCD_PORTS)
        self._spawn("api", self._tools / "kube-apiserver", *_describe_api(pki))
        for name in NODES:
            self._spawn(f"containerd-{name}", "containerd", "-c", self._folder / name / "containerd.toml")
        self._wait("the API", lambda: self._kubectl("get", "--raw", "/readyz"))
        self._spawn(
            "controllers",
            self._tools / "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={pki}/accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--horizontal-pod-autoscaler-sync-period=5s",
        )
        self._spawn(
            "scheduler",
            self._tools / "kube-scheduler",
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )
        for name, address in NODES.items():
            self._start_node(name, address)
        self._spawn(
            "proxy",
            self._tools / "kube-proxy",
            f"--kubeconfig={kubeconfig}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_NETWORK}",
            f"--hostname-override={next(iter(NODES))}",
            f"--bind-address={ADDRESS}",
            "--conntrack-max-per-core=0",  # the whole machine's, so left alone
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        self._spawn("dns", self._tools / "coredns", "-conf", self._folder / "Corefile")
        self._wait("the nodes", lambda: self._kubectl("wait", "node", *NODES, "--for=condition=Ready"))

    def _start_node(self, name: str, address: str) -> None:
        home = self._folder / name
        self._wait("containerd", lambda: self._ctr(home, "version"))
        for image in IMAGES:
            if not self._ctr(home, "images", "import", self._images / f"{image}.tar"):
                raise RuntimeError(f"the image {image} can't be imported")
        self._spawn(
            f"kubelet-{name}",
            self._tools / "kubelet",
            f"--config={home}/kubelet.yaml",
            f"--kubeconfig={self._folder}/{name}.kubeconfig",
            f"--root-dir={home}/kubelet",
            f"--cert-dir={home}/kubelet/pki",
            f"--hostname-override={name}",
            f"--node-ip={address}",
            "-v=2",
        )

    def stop(self) -> None:
        """Ends the processes, the youngest first."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, name: str, *command: str | Path) -> None:
        with (self._folder / "log" / name).open("w") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def _kubectl(self, *arguments: str) -> bool:
        return _succeeds(self._tools / "kubectl", f"--kubeconfig={self._folder}/admin.kubeconfig", *arguments)

    def _ctr(self, home: Path, *arguments: str | Path) -> bool:
        return _succeeds("ctr", "-a", home / "run/containerd.sock", "-n", "k8s.io", *arguments)

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} is not ready after {READY_SECONDS:.0f} s: see {self._folder}/log")
            time.sleep(0.5)


_ETCD_PORTS = (
    "--listen-client-urls=http://127.0.0.1:2379",
    "--advertise-client-urls=http://127.0.0.1:2379",
    "--listen-peer-urls=http://127.0.0.1:2380",
)


def _describe_api(pki: Path) -> list[str]:
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={ADDRESS}",
        f"--advertise-address={ADDRESS}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--tls-cert-file={pki}/api.crt",
        f"--tls-private-key-file={pki}/api.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/accounts.key",
        f"--service-account-signing-key-file={pki}/accounts.key",
        "--authorization-mode=Node,RBAC",
        # for the metrics that an autoscaler reads
        "--enable-aggregator-routing",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front.crt",
        f"--proxy-client-key-file={pki}/front.key",
    ]


def _succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main(cache: Path, folder: Path) -> None:
    set_up_machine(folder / "settings")
    write_files(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node = ClusterProcesses(cache, folder)
    try:
        node.start()
        (folder / "ready").write_text(str(os.getpid()))
        signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        node.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
