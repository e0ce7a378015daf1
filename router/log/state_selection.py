"""The states that are read when the router starts, where all together are too many: of each event type its fair share.

So whoever makes up keys of one type, or fills them, takes nothing from the others' states. Of a type the newest are
chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from solowire.algorithms.fair_share import Claim, share_slots


class SizedState(NamedTuple):
    """Where the newest value of a state is. type: its event type. size: of its body, bytes."""

    offset: int
    type: str
    size: int


def type_of_state(name: str) -> str:
    """The event type of a state, by its name in the journal (`model.events.name_state`)."""
    return name.partition("\0")[0]


def choose_states(states: Iterable[SizedState], max_states: int, max_bytes: int) -> list[int]:
    """The offsets of those to be read, in ascending order: at most so many, with at most so many bytes together."""
    by_type: dict[str, list[SizedState]] = defaultdict(list)
    for state in sorted(states, reverse=True):
        by_type[state.type].append(state)
    counts = share_slots(max_states, {name: Claim(len(found)) for name, found in by_type.items()})
    sizes = share_slots(max_bytes, {name: Claim(sum(s.size for s in found)) for name, found in by_type.items()})
    chosen = []
    for name, found in by_type.items():
        left = sizes[name]
        for state in found[: counts[name]]:
            left -= state.size
            if left < 0:
                break
            chosen.append(state.offset)
    return sorted(chosen)
