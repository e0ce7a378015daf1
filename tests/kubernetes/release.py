"""The release that the tests use: how it is installed, changed, and compared with what it was."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.kubernetes.cluster import CHART, HOST, NAMESPACE, RELEASE, VALUES, WAIT_SECONDS, Cluster, Pod, read_metric
from tests.kubernetes.crowd import Crowd
from tests.kubernetes.machine import NODES

USERS = 200
ROLES = {"router": "statefulset", "gateway": "deployment", "shard": "statefulset", "edge": "deployment"}


class Release:
    """secret: signs tokens. flags: of helm, beside the values file; they hold for all upgrades that come."""

    def __init__(self, cluster: Cluster, secret: str) -> None:
        self.cluster = cluster
        self.secret = secret
        self.url = f"http://{HOST}"
        self.flags: list[str] = []
        self._flags_before = self.flags

    def crowd(self, count: int = USERS) -> Crowd:
        return Crowd(self.url, self.secret, count)

    async def upgrade(self, *flags: str) -> set[str]:
        """Upgrades with more flags; the roles whose pods were renewed."""
        before = await self.cluster.list_pods()
        self._flags_before, self.flags = self.flags, [*self.flags, *flags]
        await run_upgrade(self.cluster, self.flags)
        return await self.roles_renewed_since(before)

    async def rollback(self) -> set[str]:
        """Goes back to the release before; the roles whose pods were renewed."""
        before = await self.cluster.list_pods()
        self.flags = self._flags_before
        await self.cluster.helm("rollback", RELEASE, "--wait=legacy", f"--timeout={WAIT_SECONDS:.0f}s")
        return await self.roles_renewed_since(before)

    async def roles_renewed_since(self, before: dict[str, Pod]) -> set[str]:
        """Those with pods that were not there before, when none is ending any more."""
        for role, kind in ROLES.items():
            name = f"{kind}/{RELEASE}-{role}"
            await self.cluster.kubectl("-n", NAMESPACE, "rollout", "status", name, f"--timeout={WAIT_SECONDS:.0f}s")
        await self.cluster.wait_for("no pod is ending", self.is_settled)
        known = {pod.uid for pod in before.values()}
        return {pod.role for pod in (await self.cluster.list_pods()).values() if pod.uid not in known}

    async def is_settled(self) -> bool:
        selector = f"app.kubernetes.io/instance={RELEASE}"
        pods = [Pod(item) for item in await self.cluster.get("pods", "-l", selector)]
        return all(pod.is_ready and not pod.is_ending for pod in pods)

    async def count_connections(self) -> dict[str, float]:
        """Of each shard's pod."""
        pods = (await self.cluster.list_pods("shard")).values()
        return {pod.name: await read_metric(pod.address, 9000, "solowire_shard_connections") for pod in pods}

    async def count_relayed(self) -> float:
        """WebSockets that gateways carry themselves since the edge did not: there should be none."""
        pods = (await self.cluster.list_pods("gateway")).values()
        return sum(
            [await read_metric(pod.address, 8000, "solowire_gateway_relayed_connections_opened_total") for pod in pods]
        )


async def install_release(cluster: Cluster) -> Release:
    """In a namespace that takes nothing but what Pod Security `restricted` lets in, with volumes for two routers."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    storage = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    await cluster.apply(namespace, storage, *[_make_volume(cluster.folder / "volumes", name) for name in ("a", "b")])
    await run_upgrade(cluster, [])
    secret = await cluster.get("secret", await _find_secret(cluster))
    address = (await cluster.get("service", f"{RELEASE}-edge"))["spec"]["clusterIP"]
    (cluster.folder / "settings" / "hosts").write_text(f"127.0.0.1 localhost\n{address} {HOST}\n")
    release = Release(cluster, base64.b64decode(secret["data"]["secret"]).decode())
    await cluster.wait_for("no pod is ending", release.is_settled)  # of a release that was there
    return release


async def run_upgrade(cluster: Cluster, flags: list[str]) -> None:
    waiting = ("--wait=legacy", f"--timeout={WAIT_SECONDS:.0f}s")
    await cluster.helm("upgrade", "--install", RELEASE, str(CHART), "-f", str(VALUES), *waiting, *flags)


async def _find_secret(cluster: Cluster) -> str:
    [name] = [item["metadata"]["name"] for item in await cluster.get("secrets") if "curve-seed" in item.get("data", {})]
    return str(name)


def _make_volume(folder: Path, name: str) -> dict[str, object]:
    """A folder of the machine, which both nodes have."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    nodes = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(NODES)}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "local": {"path": str(folder / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [nodes]}]}},
        },
    }
