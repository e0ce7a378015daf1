"""Values with which the chart is tried: the two that it needs, all that there is to make, and the examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.chart import EXAMPLES, ROLES, merge, read_example

_PODS = {
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"e": "f"},
    "tolerations": [{"key": "g", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
_EXTRA = {
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/ca/ca.pem"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
}
EVERYTHING = merge(
    dict.fromkeys(ROLES, _PODS),
    dict.fromkeys(("router", "gateway", "shard"), _EXTRA),
    {
        "gateway": {"autoscaling": {"enabled": True}},
        "shard": {"autoscaling": {"enabled": True}},
        "edge": {"accessLog": True},
        "expose": {
            "type": "loadBalancer",
            "loadBalancer": {"annotations": {"h": "i"}, "className": "x", "sourceRanges": ["192.0.2.0/24"]},
        },
        "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboard")},
        "tracing": {"endpoint": "http://collector:4318"},
        "roles": '  [viewer]\npermissions = ["dns.view"] # <a> & "b"\n',
        "eventTypes": '[types."custom.backup"]\n',
        "network": {"ipv6": True},
        "networkPolicy": {
            "edgeFrom": [{"namespaceSelector": {}}],
            "publishersFrom": [{"podSelector": {"matchLabels": {"j": "k"}}}],
        },
        "priorityClassName": "high",
        "image": {"pullSecrets": [{"name": "registry"}], "digest": f"sha256:{'0' * 64}"},
        "commonLabels": {"team": "dns"},
        "sources": {
            "zones": {
                "command": ["bind9"],
                "tokenSecret": "zones-token",
                "notifyPort": 5353,
                "persistence": {"size": "1Gi", "storageClassName": "fast"},
                "settings": {"zones": {"address": "192.0.2.53#53", "notify": "0.0.0.0#5353"}},
            },
            "host": {"command": ["host"], "tokenSecret": "host-token", **_PODS, **_EXTRA},
        },
        "settings": {
            "legacy": "off",
            "limits": {"groups": {"staff": {"weight": 2.5, "reserved": 10}, "b x": {"limit": 5}}},
            "listen": {"allowed_origins": ["https://app.example.com"]},
            "session": {"heartbeat_interval_s": 10},
            "journal": {"max_age_s": 172800, "max_bytes": 1073741824},
        },
    },
)
CASES: Mapping[str, dict[str, Any]] = {
    "minimal": {},
    "everything": EVERYTHING,
    **{path.stem: read_example(path) for path in EXAMPLES},
}
