"""The messages of requests that were refused: transfers, updates, queries, bad signatures, control commands.

Pure: text in, values out. The categories are `security`, `update-security`, `xfer-out` and `general`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from solowire.sources.bind9.log_line import ClientMessage

Refused = Literal["transfer", "update", "query", "signature", "control"]

_ADDRESS = r"(?P<ip>[0-9a-fA-F:.]+(?:%[^\s#]+)?)#\d{1,5}"
_ZONE = r"'(?P<zone>[!-~]+?)/[!-~]+'"
_OF_CLIENT: tuple[tuple[Refused, re.Pattern[str]], ...] = (
    ("transfer", re.compile(rf"zone transfer {_ZONE} denied(?: .*)?", re.ASCII)),
    ("transfer", re.compile(rf"bad zone transfer request: {_ZONE}: non-authoritative zone .*", re.ASCII)),
    ("update", re.compile(rf"update(?: forwarding)? {_ZONE} denied(?: .*)?", re.ASCII)),
    ("query", re.compile(rf"query(?: \(cache\))? {_ZONE} denied(?: .*)?", re.ASCII)),
    ("signature", re.compile(r"request has invalid signature: (?:TSIG (?P<key>[!-~]+): )?.*", re.ASCII)),
)
_CONTROL = re.compile(
    rf"(?:invalid command from {_ADDRESS}: .+|rejected command channel message from {_ADDRESS.replace('ip', 'ip2')})",
    re.ASCII,
)


class Refusal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that was refused. name: the zone, or what was asked; None where it says none. text: named's own."""

    what: Refused
    client_ip: str
    text: str
    name: str | None = None
    key: str | None = None
    view: str | None = None


def parse_refusal(client: ClientMessage) -> Refusal | None:
    """The refusal that a message about a client tells of; None if it tells of none."""
    for what, pattern in _OF_CLIENT:
        if (match := pattern.fullmatch(client.message)) is not None:
            found = match.groupdict()
            return Refusal(
                what=what,
                client_ip=client.client_ip,
                text=client.message,
                name=found.get("zone"),
                key=found.get("key") or client.key,
                view=client.view,
            )
    return None


def parse_control_refusal(message: str) -> Refusal | None:
    """The same of a command for the control channel (`rndc`), whose messages have no client before them."""
    match = _CONTROL.fullmatch(message)
    if match is None:
        return None
    return Refusal(what="control", client_ip=match["ip"] or match["ip2"], text=message)
