"""The configuration files of a cluster's processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.kubernetes.certificates import Authority
from tests.kubernetes.machine import ADDRESS, NODES

API_URL = f"https://{ADDRESS}:6443"
API_ADDRESS_IN_CLUSTER = "10.97.0.1"
ADAPTER_PORT = 6444

_CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{folder}/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:tests"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""

_COREDNS = """
.:53 {{
  bind {address}
  errors
  kubernetes cluster.local {{
    kubeconfig {folder}/admin.kubeconfig
    ttl 1
  }}
}}
"""


def write_files(folder: Path) -> None:
    """All of them, with new certificates, into `folder`; those of a node into its own folder below that."""
    (folder / "Corefile").write_text(_COREDNS.format(folder=folder, address=ADDRESS))
    (folder / "resolv.conf").write_text("")  # names outside of the cluster are nobody's business
    _write_certificates(folder)
    for number, (name, address) in enumerate(NODES.items()):
        home = folder / name
        (home / "cni").mkdir(parents=True)
        (home / "containerd.toml").write_text(_CONTAINERD.format(folder=home))
        # Routed, and not bridged: what a Service's address was rewritten to comes back the same way.
        addresses = {"type": "host-local", "ranges": [[{"subnet": f"10.98.{number}.0/24"}]], "dataDir": f"{home}/pods"}
        network = {"type": "ptp", "ipam": {**addresses, "routes": [{"dst": "0.0.0.0/0"}]}}
        _write_json(home / "cni" / "pods.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": [network]})
        _write_json(home / "kubelet.yaml", _describe_kubelet(folder, name, address))


def _write_certificates(folder: Path) -> None:
    authority = Authority(folder / "pki")
    authority.issue("api", "kube-apiserver", hosts=[ADDRESS, API_ADDRESS_IN_CLUSTER, "kubernetes.default.svc"])
    for name, address in NODES.items():
        authority.issue(name, f"system:node:{name}", group="system:nodes", hosts=[address, name])
    authority.issue("admin", "admin", group="system:masters")
    authority.issue("front", "front-proxy")
    authority.make_signing_key("accounts")
    for name in ("admin", *NODES):
        cluster = {"server": API_URL, "certificate-authority": f"{folder}/pki/ca.crt"}
        user = {"client-certificate": f"{folder}/pki/{name}.crt", "client-key": f"{folder}/pki/{name}.key"}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name}}],
            "current-context": "tests",
        }
        _write_json(folder / f"{name}.kubeconfig", kubeconfig)


def _describe_kubelet(folder: Path, name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{folder}/{name}/run/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{name}",  # each its own: a kubelet removes what it does not know
        "failCgroupV1": False,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{folder}/pki/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": f"{folder}/pki/{name}.crt",
        "tlsPrivateKeyFile": f"{folder}/pki/{name}.key",
        "address": address,
        "healthzPort": 0,
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": [],
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{folder}/resolv.conf",
        "evictionHard": {"nodefs.available": "1Gi", "memory.available": "200Mi"},
        "imageGCHighThresholdPercent": 100,  # what was imported can't be pulled again
        "podLogsDir": f"{folder}/{name}/pod-logs",
        "podPidsLimit": 512,
        "maxPods": 60,
    }


def _write_json(path: Path, value: Any) -> None:
    """JSON is YAML."""
    path.write_text(json.dumps(value, indent=1))
