"""The message of an answer that a response policy zone has rewritten (categories `rpz` and `rpz-passthru`).

Pure: text in, values out. The message names the rule by its owner, which ends with the policy zone. Where the zone
begins can be told by the trigger: behind the name that was asked, or behind the label `rpz-ip` and its like.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from solowire.sources.bind9.log_line import ClientMessage

EVENT_TYPE = "rpz_hit"

_MESSAGE = re.compile(
    r"""
    (?P<disabled> disabled\  )? rpz\  (?P<trigger> CLIENT-IP | QNAME | IP | NSIP | NSDNAME ) \  (?P<action> [!-~]+ )
    (?: \ [!-~]+ )?? \ rewrite\  (?P<name> [!-~]+? ) (?: / (?P<type> [A-Z0-9-]+ ) / (?P<class> [A-Z0-9]+ ) )?
    \ via\  (?P<rule> [!-~]+ ) (?: \ \(CNAME\ to:\  (?P<target> [!-~]+ ) \) )?
    (?: \ .* )?  # what later versions may add
    """,
    re.ASCII | re.VERBOSE,
)
_LABELS = {"CLIENT-IP": "rpz-client-ip", "IP": "rpz-ip", "NSIP": "rpz-nsip", "NSDNAME": "rpz-nsdname"}


class PolicyHit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One rewritten answer.

    action: BIND's word, such as `NXDOMAIN`, `Local-Data`, `PASSTHRU`. trigger: such as `QNAME`. rule: its owner without
    the policy zone; with it where that can't be told, and `policy_zone` is None. is_disabled: the policy is only
    logged (`policy disabled`), and the answer was not rewritten. target: of a CNAME policy.
    """

    client_ip: str
    client_port: int
    query_domain: str
    action: str
    trigger: str
    rule: str
    query_type: str | None = None
    query_class: str | None = None
    policy_zone: str | None = None
    view: str | None = None
    target: str | None = None
    is_disabled: bool = False


def parse_rpz_message(client: ClientMessage) -> PolicyHit | None:
    """The hit that a message tells of; None if it tells of none."""
    match = _MESSAGE.fullmatch(client.message)
    if match is None:
        return None
    trigger, name = match["trigger"], match["name"]
    rule, zone = _split_rule(match["rule"], trigger, name)
    return PolicyHit(
        client_ip=client.client_ip,
        client_port=client.client_port,
        query_domain=name,
        action=match["action"],
        trigger=trigger,
        rule=rule,
        query_type=match["type"],
        query_class=match["class"],
        policy_zone=zone,
        view=client.view,
        target=match["target"],
        is_disabled=match["disabled"] is not None,
    )


def make_hit_payload(hit: PolicyHit) -> dict[str, Any]:
    """The data of an `rpz_hit`."""
    data = {
        "client_ip": hit.client_ip,
        "client_port": hit.client_port,
        "query_domain": hit.query_domain,
        "query_type": hit.query_type,
        "query_class": hit.query_class,
        "action": hit.action,
        "trigger": hit.trigger,
        "rule": hit.rule,
        "zone": hit.policy_zone,
        "view": hit.view,
    }
    if hit.is_disabled:
        data["message"] = "only logged: the policy is disabled"
    elif hit.target is not None:
        data["message"] = f"answered with {hit.target}"
    return {name: value for name, value in data.items() if value is not None}


def _split_rule(owner: str, trigger: str, name: str) -> tuple[str, str | None]:
    """A rule's owner in two: what is beneath the policy zone, and the zone. None if that can't be told."""
    label = _LABELS.get(trigger)
    if label is not None:
        rule, found, zone = owner.rpartition(f".{label}.")
        return (f"{rule}.{label}", zone) if found and zone else (owner, None)
    small, asked = owner.lower(), name.lower()
    if asked != "." and small.startswith(f"{asked}.") and len(small) > len(asked) + 1:
        return owner[: len(asked)], owner[len(asked) + 1 :]
    if small.startswith("*."):  # should a version name the wildcard that matched
        for dot in re.finditer(r"\.", asked):
            rest = asked[dot.end() :]
            if small.startswith(f"*.{rest}.") and len(small) > len(rest) + 3:
                return owner[: len(rest) + 2], owner[len(rest) + 3 :]
    return owner, None
