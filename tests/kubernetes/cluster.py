"""The cluster as its tests use it: kubectl and helm, and what is asked of them again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

CHART = Path(__file__).resolve().parents[2] / "helm" / "solowire"
VALUES = Path(__file__).resolve().parent / "values.yaml"
NAMESPACE = "live"
RELEASE = "solowire"
HOST = "live.example.com"
WAIT_SECONDS = 300.0


class Cluster:
    """folder: of the running node (`__main__`)."""

    def __init__(self, folder: Path) -> None:
        self._tools = folder.parent / "bin"
        self.folder = folder
        home = {f"HELM_{name}_HOME": str(folder / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        self._environment = {**os.environ, **home, "KUBECONFIG": str(folder / "admin.kubeconfig")}

    async def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What it prints. text: for its standard input. Raises AssertionError with what it says if it fails."""
        return await asyncio.to_thread(self.run, "kubectl", arguments, text)

    async def helm(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.run, "helm", ("--namespace", NAMESPACE, *arguments))

    async def apply(self, *objects: Mapping[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        await self.kubectl("apply", "-f", "-", text=json.dumps(items))

    async def get(self, *arguments: str) -> Any:
        """One object, or the items of a list."""
        found = json.loads(await self.kubectl("-n", NAMESPACE, "get", *arguments, "-o", "json"))
        return found["items"] if found["kind"].endswith("List") else found

    async def list_pods(self, role: str = "") -> dict[str, Pod]:
        """The release's pods that are not ending, by name."""
        selector = f"app.kubernetes.io/instance={RELEASE}" + (f",app.kubernetes.io/component={role}" if role else "")
        pods = [Pod(item) for item in await self.get("pods", "-l", selector)]
        return {pod.name: pod for pod in pods if not pod.is_ending}

    async def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
        """Asks `condition`, an async function, again and again. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while not await condition():
            if time.monotonic() > deadline:
                pods = await self.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide")
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{pods}")
            await asyncio.sleep(0.5)

    def run(self, program: str, arguments: Sequence[str], text: str | None = None) -> str:
        """Runs one of the cluster's programs; as `kubectl`."""
        done = subprocess.run(
            [self._tools / program, *arguments],
            env=self._environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout


class Pod:
    """A pod as the API describes it."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self.name: str = item["metadata"]["name"]
        self.uid: str = item["metadata"]["uid"]
        self.role: str = item["metadata"]["labels"].get("app.kubernetes.io/component", "")
        self.node: str = item["spec"].get("nodeName", "")
        self.address: str = item["status"].get("podIP", "")
        self.is_ending = "deletionTimestamp" in item["metadata"]
        conditions = item["status"].get("conditions", [])
        self.is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        self.restart_count = sum(c["restartCount"] for c in item["status"].get("containerStatuses", []))


async def read_metric(address: str, port: int, name: str) -> float:
    """The sum of a metric over its labels; 0 if the process is not there any more."""
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=5, trust_env=False, verify=False) as http:
            text = (await http.get(f"http://{address}:{port}/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)
    return 0.0
