"""A rule: how much of something one client may do within a window before it is an alert.

Pure: the text of a TOML file in, rules out. What is wrong in it is told by name and line.
"""

from __future__ import annotations

import re
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from solowire.errors import ConfigError

RuleKind = Literal["policy_hits", "query_flood", "nxdomain_ratio", "query_types", "long_names", "refusals"]

_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_Duration = Annotated[float, Meta(ge=0.1, le=86_400)]
_Network = IPv4Network | IPv6Network
_RULES = 100

DEFAULT_RULES = """\
# The rules that hold where no file is given. One [[rule]] for each.
#
# name        what alerts call it: their category
# kind        policy_hits      answers that a response policy zone has rewritten       (needs --log)
#             query_flood      queries                                                 (needs dnstap or the query log)
#             nxdomain_ratio   queries, of which `ratio` or more got NXDOMAIN          (needs dnstap)
#             query_types      queries of one of `types`                               (needs dnstap or the query log)
#             long_names       queries for names of `length` characters or more        (needs dnstap or the query log)
#             refusals         requests that were refused, of one of `refused`:
#                              transfer, update, query, signature, control             (needs --log)
# threshold   so many from one client (of IPv6: from one /64) ...
# window_s    ... within so many seconds are an alert
# quiet_s     once it has been below that for so long, the alert is over: one more event tells how much it was in all
# event       threat_detected or security_alert
# severity    info, low, medium, warning, high, error or critical
# exempt      addresses and networks of which nothing is said, such as ["192.0.2.0/24"]

[[rule]]
name = "malware"
kind = "policy_hits"
threshold = 5
window_s = 60
quiet_s = 600
event = "threat_detected"
severity = "high"

[[rule]]
name = "flood"
kind = "query_flood"
threshold = 2000
window_s = 10
quiet_s = 60
event = "security_alert"
severity = "high"

[[rule]]
name = "dga"
kind = "nxdomain_ratio"
threshold = 100
ratio = 0.8
window_s = 60
quiet_s = 600
event = "threat_detected"
severity = "medium"

[[rule]]
name = "tunnel_names"
kind = "long_names"
length = 80
threshold = 100
window_s = 60
quiet_s = 600
event = "threat_detected"
severity = "medium"

[[rule]]
name = "tunnel_types"
kind = "query_types"
types = ["NULL", "TYPE10", "PRIVATE"]
threshold = 20
window_s = 60
quiet_s = 600
event = "threat_detected"
severity = "high"

[[rule]]
name = "txt_volume"
kind = "query_types"
types = ["TXT"]
threshold = 600
window_s = 60
quiet_s = 600
event = "threat_detected"
severity = "medium"

[[rule]]
name = "amplification"
kind = "query_types"
types = ["ANY"]
threshold = 100
window_s = 60
quiet_s = 600
event = "security_alert"
severity = "medium"

[[rule]]
name = "zone_transfer"
kind = "refusals"
refused = ["transfer"]
threshold = 1
window_s = 60
quiet_s = 600
event = "security_alert"
severity = "high"

[[rule]]
name = "intrusion"
kind = "refusals"
refused = ["update", "signature", "control"]
threshold = 3
window_s = 60
quiet_s = 600
event = "security_alert"
severity = "high"
"""


class SecurityRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; see DEFAULT_RULES for its fields."""

    name: _Name
    kind: RuleKind
    threshold: Annotated[int, Meta(ge=1, le=10**9)]
    window_s: _Duration
    quiet_s: _Duration = 600.0
    event: Literal["threat_detected", "security_alert"] = "security_alert"
    severity: Literal["info", "low", "medium", "warning", "high", "error", "critical"] = "high"
    exempt: list[str] = []
    types: list[str] | None = None
    ratio: Annotated[float, Meta(gt=0, le=1)] | None = None
    length: Annotated[int, Meta(ge=1, le=1024)] | None = None
    refused: list[Literal["transfer", "update", "query", "signature", "control"]] | None = None

    @property
    def exempt_networks(self) -> list[_Network]:
        """What `exempt` says. Raises ValueError."""
        return [ip_network(text, strict=False) for text in self.exempt]


class _RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: list[SecurityRule]


_OF_KIND = {"nxdomain_ratio": "ratio", "query_types": "types", "long_names": "length", "refusals": "refused"}
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?", re.DOTALL)
_AT = re.compile(r"(.*?)(?: - at `\$(?P<at>.*)`)?", re.DOTALL)
_TABLE = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


def parse_rules(text: str, path: str) -> list[SecurityRule]:
    """The rules of a file. path: what messages call it. Raises ConfigError, which names the fault and its line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the rules {path} are no valid TOML: {error}") from None
    if not document.get("rule"):
        raise ConfigError(f"the rules {path} have no [[rule]]: see `solowire source rules` for some")
    try:
        rules = msgspec.convert(document, _RuleFile).rule
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), text, path)) from None
    if len(rules) > _RULES:
        raise ConfigError(f"the rules {path} are {len(rules)}, and {_RULES} are the most: leave some out")
    for index, rule in enumerate(rules):
        if (fault := _find_fault(rule, rules[:index])) is not None:
            key, what = fault
            raise ConfigError(f"the rules {path}, {_name_place(text, index, key)}, rule {rule.name!r}: {what}")
    return rules


def _find_fault(rule: SecurityRule, earlier: list[SecurityRule]) -> tuple[str, str] | None:
    """The key that is at fault, and what is wrong with it; None if nothing is."""
    if any(rule.name == other.name for other in earlier):
        return "name", "there are two of this name: give each its own"
    for kind, key in _OF_KIND.items():
        given = getattr(rule, key) is not None
        if rule.kind == kind and (not given or getattr(rule, key) == []):
            return key if given else "kind", f"the kind {kind} needs `{key}`: add it"
        if rule.kind != kind and given:
            return key, f"`{key}` belongs to the kind {kind} and not to {rule.kind}: leave it out"
    try:
        _ = rule.exempt_networks
    except ValueError as error:
        return "exempt", f"`exempt` has no address and no network: {error}"
    return None


def _explain(error: str, text: str, path: str) -> str:
    """Makes a message for a user of one of msgspec's."""
    unknown = _UNKNOWN_FIELD.fullmatch(error)
    matched = _AT.fullmatch(error)
    at = (unknown[2] if unknown is not None else matched["at"] if matched is not None else None) or ""
    index = re.match(r"\.rule\[(\d+)\](?:\.(\w+))?", at)
    number = None if index is None else int(index[1])
    if unknown is not None:
        known = ", ".join(SecurityRule.__struct_fields__) if number is not None else "[[rule]] tables alone"
        return f"the rules {path}, {_name_place(text, number, unknown[1])}: unknown key {unknown[1]!r}; known: {known}"
    key = index[2] if index is not None else None
    what = matched[1] if matched is not None else error
    subject = f"`{key}`: " if key else ""
    return f"the rules {path}, {_name_place(text, number, key)}: {subject}{what}"


def _name_place(text: str, index: int | None, key: str | None) -> str:
    """Where a key stands: `line 7`; the line of its table if the key isn't found."""
    starts = [match.start() for match in _TABLE.finditer(text)]
    start, end = 0, len(text)
    if index is not None and index < len(starts):
        start = starts[index]
        end = starts[index + 1] if index + 1 < len(starts) else len(text)
    if key:
        spelled = rf"""^[ \t]*\[*["']?{re.escape(key)}["']?[ \t]*[=.\]]"""
        if (found := re.search(spelled, text[start:end], re.MULTILINE)) is not None:
            start += found.start()
    return f"line {text.count(chr(10), 0, start) + 1}"
