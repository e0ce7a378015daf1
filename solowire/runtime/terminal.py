"""A check whether a process belongs to a terminal, which may close."""

from __future__ import annotations

import os

PARENT = "_SOLOWIRE_PARENT"
"""The variable by which a child of `up` knows whose it is."""


def has_terminal() -> bool:
    """Whether the process was started from a terminal that may close; one of `up` is told to end by `up`."""
    return PARENT not in os.environ and any(os.isatty(number) for number in range(3))
