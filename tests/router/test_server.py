"""What the router's process makes of its settings."""

from __future__ import annotations

from msgspec import structs

from router.limits import Group, Limits
from router.server import limits_of
from solowire.settings import Settings


def test_all_that_is_set_reaches_the_coordinator() -> None:
    """Each limit of the coordinator is what its setting says, also each of a group's: none keeps its default."""
    settings = Settings.model_validate(
        {
            "max_connections": 1000,
            "max_connections_per_shard": 300,
            "max_connections_per_address": 20,
            "groups": {"big": {"weight": 2.5, "reserved": 30, "limit": 400}, "admin": {"reserved": 7}},
            "lease_s": 50,
        }
    )
    limits = limits_of(settings)
    groups = {"big": Group(2.5, 30, 400), "admin": Group(1.0, 7, None)}
    assert limits == Limits(connections=1000, per_shard=300, per_address=20, groups=groups, lease=50)
    default = structs.asdict(Limits())
    assert [name for name, value in structs.asdict(limits).items() if value == default[name]] == []


def test_administrators_have_slots_of_their_own_by_default() -> None:
    """The coordinator is told of the reserve that the settings give to administrators when nobody says anything."""
    assert limits_of(Settings()).groups["admin"].reserved == 16
