"""The limits on connections of the whole system, and of each group."""

from __future__ import annotations

import msgspec

from solowire.backplane.messages import LEASE_DRAIN_FRACTION

DRIFT = 0.01
MARGIN_SECONDS = 1.0
"""Leases are held for longer than the shard counts, by this: clocks don't run alike."""


class GroupQuota(msgspec.Struct, frozen=True):
    """As `settings.Group`."""

    weight: float = 1.0
    reserved: int = 0
    limit: int | None = None


DEFAULT_QUOTA = GroupQuota()
"""One that nothing is said about."""


class LeaseConfig(msgspec.Struct, frozen=True):
    """The limits on connections of the whole system.

    connections: of the whole system. per_shard, per_address: None for no limit. lease: seconds.
    """

    connections: int = 1_000_000
    per_shard: int | None = None
    per_address: int | None = None
    groups: dict[str, GroupQuota] = {}
    lease_s: float = 120.0

    def hold_seconds(self) -> float:
        """How long after an answer a shard may still have connections by it, seconds."""
        return self.lease_s * (1 + LEASE_DRAIN_FRACTION) * (1 + DRIFT) + MARGIN_SECONDS

    def get_group(self, name: str) -> GroupQuota:
        return self.groups.get(name, DEFAULT_QUOTA)
