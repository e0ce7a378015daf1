"""The events of a request that its answer finds fault with: those that it names, or else one half and the other."""

from __future__ import annotations

import msgspec

Problem = dict[str, object]
"""A problem body (RFC 9457), or what one says of a single event."""


class _EventFault(msgspec.Struct):
    """One entry of `errors` in the problem body of a 400."""

    index: int
    path: str = "$"
    message: str = ""
    code: str = "invalid_event"
    hint: str = ""


def find_event_faults(problem: Problem, length: int) -> dict[int, Problem]:
    """The faults that a 400 names, by the place of their events in the request; empty if it names none of them."""
    try:
        faults = msgspec.convert(problem.get("errors"), list[_EventFault])
    except msgspec.ValidationError:
        return {}
    return {fault.index: msgspec.structs.asdict(fault) for fault in faults if 0 <= fault.index < length}


def halve(run: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The second half and the first, which is sent first."""
    half = len(run) // 2
    return run[half:], run[:half]
