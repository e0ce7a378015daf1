"""The message of each change that a dynamic update makes (category `update`).

Pure: text in, values out.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from solowire.sources.bind9.log_line import ClientMessage

_MESSAGE = re.compile(
    r"""
    updating\ zone\ '(?P<zone> [!-~]+? )/ [!-~]+? ':[ ]
    (?: adding\ an\ RR\ at\ '(?P<added> [!-~]+? )'\ (?P<added_type> [A-Z0-9-]+ ) (?: \ (?P<value> .* ) )?
      | deleting\ an\ RR\ at\ '?(?P<deleted> [!-~]+? )'?\ (?P<deleted_type> [A-Z0-9-]+ ) (?: \ .* )?
      | deleting\ rrset\ at\ '(?P<set> [!-~]+? )'\ (?P<set_type> [A-Z0-9-]+ )
      | delet(?:e|ing)\ all\ rrsets\ from\ (?: name\  )? '?(?P<name> [!-~]+? )'? )
    """,
    re.ASCII | re.VERBOSE | re.DOTALL,
)
_TRUNCATED = "[TRUNCATED]"


class LoggedUpdate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One change. type: None where all types of a name are deleted. value: RDATA; None where the line tells none."""

    zone: str
    name: str
    action: Literal["add", "delete"]
    type: str | None = None
    value: str | None = None


def parse_update(client: ClientMessage) -> LoggedUpdate | None:
    """The change that a message tells of; None if it tells of none."""
    if not client.message.startswith("updating zone ") or (match := _MESSAGE.fullmatch(client.message)) is None:
        return None
    zone = match["zone"]
    if match["added"] is not None:
        value = match["value"]
        if value is not None and value.endswith(_TRUNCATED):
            value = None
        return LoggedUpdate(zone=zone, name=match["added"], action="add", type=match["added_type"], value=value)
    name = match["deleted"] or match["set"] or match["name"]
    return LoggedUpdate(zone=zone, name=name, action="delete", type=match["deleted_type"] or match["set_type"])
