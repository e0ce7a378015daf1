"""The weight of events: as how many a publisher pays for one, against its rate.

What it keeps true: a large event costs its publisher about what it costs a gateway, so that nobody gets more of one for
the same rate by sending few events of many values: 4 KB of gzip may hold 120 that take as long as 12,000 plain ones.
What is no larger than PLAIN_BYTES weighs one, and is not looked at.
"""

from __future__ import annotations

from solowire.algorithms.json_structure import count_values
from solowire.model.events import Event

PLAIN_BYTES = 1024
WEIGHT_BYTES = 4096
"""So many bytes of data weigh as much as an event, beyond itself."""
WEIGHT_VALUES = 64
"""And so many values in it."""


def weigh_event(event: Event) -> int:
    """What it weighs: at least one."""
    data = event.data
    size = len(data)
    return 1 if size <= PLAIN_BYTES else 1 + size // WEIGHT_BYTES + count_values(data) // WEIGHT_VALUES
