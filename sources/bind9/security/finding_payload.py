"""The events of findings: what a rule has found, and a change that came by no pipeline.

Pure: values in, data out.
"""

from __future__ import annotations

from typing import Any

from solowire.sources.agent.event_time import format_moment
from solowire.sources.bind9.security.rule_engine import Finding

_MESSAGES = {
    "policy_hits": "{count} answers rewritten by policy",
    "query_flood": "{count} queries",
    "nxdomain_ratio": "{count} names that don't exist",
    "query_types": "{count} queries of unusual types",
    "long_names": "{count} queries for long names",
    "refusals": "{count} refused requests",
}


def make_finding_payload(finding: Finding) -> dict[str, Any]:
    """The data of the event that the finding's rule names. The evidence is in `details`."""
    rule = finding.rule
    who = f"{finding.client_count} clients" if finding.client_ip is None else finding.client_ip
    seen = _MESSAGES[rule.kind].format(count=finding.count)
    duration = max(0.0, finding.last_at - finding.first_at)
    if finding.phase == "began":
        message = f"{rule.name}: {seen} of {who} within {rule.window_s:g} s"
    else:
        message = f"{rule.name}: over; {seen} of {who} in {duration:.0f} s"
    details: dict[str, Any] = {"rule": rule.name, "threshold": rule.threshold, "window_s": rule.window_s}
    if finding.samples:
        details["names"] = list(finding.samples)
    if finding.ratio is not None:
        details["ratio"] = finding.ratio
    if finding.client_ip is None:
        details["clients"] = finding.client_count
    data = {
        "severity": rule.severity if finding.phase == "began" else "info",
        "message": message,
        "threat_type": rule.kind,
        "category": rule.name,
        "action": finding.phase,
        "client_ip": finding.client_ip,
        "count": finding.count,
        "first_seen": format_moment(finding.first_at),
        "last_seen": format_moment(finding.last_at),
        "query_domain": finding.samples[0] if finding.samples else None,
        "query_type": finding.query_type,
        "view": finding.view,
        "details": details,
    }
    return {name: value for name, value in data.items() if value is not None}
