"""The time for which what a shard was granted counts as its own."""

from __future__ import annotations

from solowire.backplane.messages import LEASE_DRAIN_FRACTION

DRIFT = 0.01
MARGIN_SECONDS = 1.0
"""Leases are held for longer than the shard counts, by this: clocks don't run alike."""


def compute_hold_seconds(lease_s: float) -> float:
    """How long after an answer a shard may still have connections by it, seconds."""
    return lease_s * (1 + LEASE_DRAIN_FRACTION) * (1 + DRIFT) + MARGIN_SECONDS
