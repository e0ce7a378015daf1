"""The custom metrics API, as far as an autoscaler of pods asks it: a stand-in for an adapter that asks Prometheus.

It answers for one metric, `solowire_connections`, by scraping the pods that are asked for when it is asked.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from tests.kubernetes.cluster import Cluster, Pod
from tests.kubernetes.machine import ADDRESS

METRIC = "solowire_connections"
SERIES = "solowire_shard_connections"
"""What shards call it."""
PORT = 6444
_GROUP, _VERSION = "custom.metrics.k8s.io", "v1beta2"
_PATH = re.compile(rf"/apis/{_GROUP}/{_VERSION}/namespaces/([^/]+)/pods/\*/{METRIC}")


@contextlib.contextmanager
def serving_metrics(cluster: Cluster) -> Iterator[None]:
    """Within the block autoscalers find the metric, once `list_objects` are in the cluster."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = _answer(cluster, unquote(self.path))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.folder / "pki/api.crt", cluster.folder / "pki/api.key")
    server = ThreadingHTTPServer((ADDRESS, PORT), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def list_objects() -> list[dict[str, Any]]:
    """What tells the cluster of this API."""
    place = {"name": "metrics", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"ports": [{"port": 443}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**place, "labels": {"kubernetes.io/service-name": "metrics"}},
            "addressType": "IPv4",
            "ports": [{"port": PORT}],
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{_VERSION}.{_GROUP}"},
            "spec": {
                "group": _GROUP,
                "version": _VERSION,
                "service": {**place, "port": 443},
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]


def _answer(cluster: Cluster, target: str) -> tuple[int, Mapping[str, Any]]:
    url = urlsplit(target)
    group_version = f"{_GROUP}/{_VERSION}"
    if url.path == f"/apis/{group_version}":
        resource = {"name": f"pods/{METRIC}", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
        return 200, {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": [{**resource, "singularName": ""}],
        }
    if (asked := _PATH.fullmatch(url.path)) is None:
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "message": url.path}
    selector = parse_qs(url.query).get("labelSelector", [""])[0]
    listed = cluster.run("kubectl", ("-n", asked[1], "get", "pods", "-l", selector, "-o", "json"))
    items = []
    for pod in map(Pod, json.loads(listed)["items"]):
        with contextlib.suppress(httpx.HTTPError):  # one that begins or ends has no figure
            items.append(_describe_value(asked[1], pod.name, _scrape(pod.address)))
    return 200, {"kind": "MetricValueList", "apiVersion": group_version, "metadata": {}, "items": items}


def _describe_value(namespace: str, pod: str, value: float) -> dict[str, Any]:
    described = {"kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": pod}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"describedObject": described, "metric": {"name": METRIC}, "timestamp": now, "value": str(int(value))}


def _scrape(address: str) -> float:
    text = httpx.get(f"http://{address}:9000/metrics", timeout=2, trust_env=False, verify=False).text
    return sum(float(value) for value in re.findall(rf"^{SERIES}(?:\{{.*\}})? (\S+)$", text, re.M))
