"""What the whole system allows, and each group of it."""

from __future__ import annotations

import msgspec

from solowire.backplane.messages import EMPTYING

DRIFT = 0.01
MARGIN_SECONDS = 1.0
"""Leases are held for longer than the shard counts, by this: clocks don't run alike."""


class Group(msgspec.Struct, frozen=True):
    """As `settings.Group`."""

    weight: float = 1.0
    reserved: int = 0
    limit: int | None = None


ANY = Group()
"""One that nothing is said about."""


class Limits(msgspec.Struct, frozen=True):
    """connections: of the whole system. per_shard, per_address: None for no limit. lease: seconds."""

    connections: int = 1_000_000
    per_shard: int | None = None
    per_address: int | None = None
    groups: dict[str, Group] = {}
    lease: float = 120.0

    def held_for(self) -> float:
        """How long after an answer a shard may still have connections by it, seconds."""
        return self.lease * (1 + EMPTYING) * (1 + DRIFT) + MARGIN_SECONDS

    def group(self, name: str) -> Group:
        return self.groups.get(name, ANY)
