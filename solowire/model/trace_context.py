"""Trace contexts: what a `traceparent` says (W3C Trace Context, level 1, section 3.2).

What it keeps true: what is no `traceparent` is no error here, but none at all, as the recommendation has it: it must
not fail the request that carries it. What is let through has 55 characters, whatever was sent.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST = 512
"""Characters of what a later version may have behind the flags; more is looked at by nobody."""
_SAMPLED = 0x01


class TraceContext(NamedTuple):
    """A place in a trace: ids in lower-case hexadecimal digits, 32 and 16 of them, and whether it is recorded."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """It as a header has it, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


def parse_traceparent(text: object) -> TraceContext | None:
    """What it says; None for what is none. A later version is read as far as this one goes."""
    if type(text) is not str or len(text) > _LONGEST:
        return None
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (found[5] is not None and found[1] == "00"):
        return None
    return TraceContext(found[2], found[3], bool(int(found[4], 16) & _SAMPLED))
