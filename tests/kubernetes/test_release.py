"""The chart in a real cluster: what users notice of all that is done to it. Each test begins with what the last left.

Nothing durable may be lost, whatever happens. Where pods go in order no connection may end but by a word of the server.
The figures that are printed are for docs/deploy.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster import NAMESPACE, RELEASE, Cluster, Pod
from tests.kubernetes.crowd import Report
from tests.kubernetes.custom_metrics import list_objects, serving_metrics
from tests.kubernetes.machine import NODES
from tests.kubernetes.release import ROLES, USERS, Release


def assert_kept(report: Report) -> None:
    """All users got all events."""
    assert (report.lost, report.told_gaps) == (0, 0), report


async def test_users_reach_their_shards(release: Release) -> None:
    """All through the edge, each at its owner, none relayed by a gateway."""
    async with release.crowd() as crowd:
        async with crowd.disturbed("nothing"):
            await asyncio.sleep(5)
        counts = await release.count_connections()
        print(counts)
        assert len(counts) == 2
        assert sum(counts.values()) == USERS
        assert await release.count_relayed() == 0


async def test_helm_test(release: Release) -> None:
    """The chart's own test finds nothing."""
    await release.cluster.helm("test", RELEASE, "--timeout=120s")


async def test_an_image_is_upgraded(release: Release) -> None:
    """Router, shards and gateways are renewed in an order in which nobody is cut off; the edge is not touched."""
    async with release.crowd() as crowd:
        async with crowd.disturbed("helm upgrade: another image") as reports:
            renewed = await release.upgrade("--set=image.tag=next")
        assert renewed == {"router", "gateway", "shard"}
        assert_kept(reports[0])
        assert reports[0].abrupt == 0, reports[0]
        assert await release.count_relayed() == 0


async def test_a_setting_of_one_role_is_changed(release: Release) -> None:
    """Only the pods of that role are renewed."""
    changes = {
        "gateway": "gateway.settings.publish.max_request_bytes=2097152",
        "shard": "shard.settings.shard.flush.high_ms=10",
        "router": "router.settings.router.stats_interval_s=10",
        "edge": "edge.accessLog=true",
    }
    async with release.crowd() as crowd:
        for role, change in changes.items():
            async with crowd.disturbed(f"helm upgrade: {change}") as reports:
                renewed = await release.upgrade(f"--set={change}")
            assert renewed == {role}
            assert_kept(reports[0])
            # An edge's sockets are cut when its time is over: there is nobody who could tell their users before.
            assert reports[0].abrupt == 0 or role == "edge", reports[0]


async def test_everything_is_changed_at_once(release: Release) -> None:
    """A label of all pods renews them all. An old edge lives until the shards have sent all of its users away."""
    async with release.crowd() as crowd:
        async with crowd.disturbed("helm upgrade: all pods") as reports:
            renewed = await release.upgrade("--set=commonLabels.round=second")
        assert renewed == ROLES.keys()
        assert_kept(reports[0])
        assert reports[0].abrupt == 0, reports[0]


async def test_it_is_rolled_back(release: Release) -> None:
    """To the release before, in the same way."""
    async with release.crowd() as crowd:
        async with crowd.disturbed("helm rollback") as reports:
            renewed = await release.rollback()
        assert renewed == ROLES.keys()
        assert_kept(reports[0])


@pytest.mark.parametrize("role", ROLES)
async def test_a_pod_is_deleted(role: str, release: Release) -> None:
    """At once, with two seconds for its end: users come back by themselves, and have missed nothing."""
    cluster = release.cluster
    async with release.crowd() as crowd:
        async with crowd.disturbed(f"a pod deleted at once: {role}") as reports:
            before = await cluster.list_pods()
            name = next(name for name, pod in sorted(before.items()) if pod.role == role)
            await cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
            assert await release.roles_renewed_since(before) == {role}
            await asyncio.sleep(5)
        assert_kept(reports[0])


@pytest.mark.parametrize("role", ROLES)
async def test_a_container_is_killed(role: str, release: Release) -> None:
    """Without a word, as by want of memory: it starts again in its pod, and nobody has missed anything."""
    cluster = release.cluster
    async with release.crowd() as crowd:
        async with crowd.disturbed(f"a container killed: {role}") as reports:
            pod = next(pod for _, pod in sorted((await cluster.list_pods(role)).items()))
            os.kill(find_first_process(pod), signal.SIGKILL)
            await cluster.wait_for("it runs again", partial(has_restarted, cluster, pod))
            await asyncio.sleep(5)
        assert_kept(reports[0])


def find_first_process(pod: Pod) -> int:
    """Process 1 of a pod's only container, by its number out here: the tests are in the nodes' pid namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_pause = (entry / "cmdline").read_bytes().startswith(b"/pause")
            if pod.uid in (entry / "cgroup").read_text() and not is_pause:
                found.append(int(entry.name))
    return min(found)


async def has_restarted(cluster: Cluster, pod: Pod) -> bool:
    now = (await cluster.list_pods(pod.role))[pod.name]
    return now.restart_count > pod.restart_count and now.is_ready


async def test_a_node_is_drained(release: Release) -> None:
    """Each node in turn: all of its pods come up on the other one, one of each role at a time."""
    cluster = release.cluster
    async with release.crowd() as crowd:
        for node in NODES:
            async with crowd.disturbed(f"kubectl drain {node}") as reports:
                before = await cluster.list_pods()
                await cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
                await release.roles_renewed_since(before)
                assert {pod.node for pod in (await cluster.list_pods()).values()} == NODES.keys() - {node}
                await cluster.kubectl("uncordon", node)
            assert_kept(reports[0])


async def test_shards_are_scaled_by_connections(release: Release) -> None:
    """Two shards become four and two again: each step moves the share that it has to, and nobody else."""
    cluster = release.cluster
    flags = ("enabled=true", "minReplicas=2", "maxReplicas=20", "targetPercent=10")  # 50 of 500: four for 200 users
    with serving_metrics(cluster):
        await cluster.apply(*list_objects())
        async with release.crowd() as crowd:
            async with crowd.disturbed("2 shards to 4") as reports:
                await release.upgrade(*(f"--set=shard.autoscaling.{flag}" for flag in flags))
                await hasten_autoscaler(cluster)
                await cluster.wait_for("there are four shards", lambda: has_shards(release, 4))
                await asyncio.sleep(15)
            assert_kept(reports[0])
            assert reports[0].abrupt == 0, reports[0]
            assert abs(reports[0].moved / USERS - (1 - 2 / 4)) < 0.15, reports[0]
            await crowd.leave(USERS // 2)
            async with crowd.disturbed("4 shards to 2") as reports:
                await cluster.wait_for("there are two shards", lambda: has_shards(release, 2), seconds=600)
            assert_kept(reports[0])
            assert reports[0].abrupt == 0, reports[0]
            assert abs(reports[0].moved / len(crowd.users) - (1 - 2 / 4)) < 0.2, reports[0]


async def hasten_autoscaler(cluster: Cluster) -> None:
    """The chart's pauses are for real floods of users: here they are some seconds."""
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0},
        "scaleDown": {
            "stabilizationWindowSeconds": 15,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }
    patch = json.dumps({"spec": {"behavior": behavior}})
    await cluster.kubectl("-n", NAMESPACE, "patch", "hpa", f"{RELEASE}-shard", "--type=merge", "-p", patch)


async def has_shards(release: Release, count: int) -> bool:
    """Whether there are so many, all ready, and none is ending."""
    items = await release.cluster.get("pods", "-l", "app.kubernetes.io/component=shard")
    pods = [Pod(item) for item in items]
    return len(pods) == count and all(pod.is_ready and not pod.is_ending for pod in pods)


@pytest.mark.parametrize("role", ["router", "gateway", "shard"])
async def test_a_pod_that_only_starts_is_ended(role: str, release: Release) -> None:
    """SIGTERM at any moment of a start ends it at once: nobody waits for the grace period."""
    cluster = release.cluster
    [*_, template] = list(await cluster.get("pods", "-l", f"app.kubernetes.io/component={role}"))
    for moment in range(6):
        name = f"starts-{role}-{moment}"
        await cluster.apply(make_lone_pod(template, name))
        await cluster.wait_for("its container runs", partial(has_started, cluster, name))
        await asyncio.sleep(moment * 0.2)
        told_at = time.monotonic()
        await cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--timeout=60s")
        took = time.monotonic() - told_at
        print(f"{role}, told {moment * 0.2:.1f} s after its start: gone after {took:.1f} s")
        assert took < GRACE_SECONDS / 2


GRACE_SECONDS = 30
"""Of a lone pod: one that has lost the signal takes all of it."""


def make_lone_pod(template: dict[str, Any], name: str) -> dict[str, Any]:
    """A pod with the same container, that belongs to nobody, and has no pause before SIGTERM."""
    spec = {**template["spec"], "terminationGracePeriodSeconds": GRACE_SECONDS, "nodeName": next(iter(NODES))}
    container = {key: value for key, value in spec["containers"][0].items() if key != "lifecycle"}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        container.pop(probe, None)
    index = {"name": "SOLOWIRE_SHARD_INDEX", "value": "99"}  # a shard that nobody else is
    container["env"] = [index if entry["name"] == index["name"] else entry for entry in container["env"]]
    volumes = [
        {"name": volume["name"], "emptyDir": {}} if "persistentVolumeClaim" in volume else volume
        for volume in spec["volumes"]
    ]
    spec |= {"containers": [container], "volumes": volumes, "restartPolicy": "Never"}
    spec.pop("hostname", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


async def has_started(cluster: Cluster, name: str) -> bool:
    pod = await cluster.get("pod", name)
    return any("running" in status["state"] for status in pod["status"].get("containerStatuses", []))
