"""The settings of how many connections there may be, whose, and how fast they may come."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from solowire.model.access import ADMINISTRATORS
from solowire.runtime.settings.section import Section, Table, make_conflict

MAX_CONNECTIONS = 10**7
"""Of a whole system, whatever it is set to: more than any machine has ports and memory for."""
ADMINISTRATORS_RESERVE = 16
"""Slots for administrators, or a tenth of all if that is less, one at least; unless `groups` says what they have."""


class GroupQuota(Section):
    """Who shares connections fairly. weight: of its share. reserved: slots that nobody else gets. limit: of its own."""

    weight: float = Field(default=1.0, ge=0.001, le=1000)
    reserved: int = Field(default=0, ge=0, le=MAX_CONNECTIONS)
    limit: int | None = Field(default=None, ge=1, le=MAX_CONNECTIONS)


DEFAULT_QUOTA = GroupQuota()
"""One that nothing is said about."""


class ConnectSettings(Section):
    """How fast new connections may come.

    Rates are of all gateways together, but for a user's.
    """

    rate: float = Field(1000.0, gt=0, le=1e9, description="new connections per second of the whole system")
    burst: float = Field(2000.0, ge=1, le=1e9, description="new connections that may come at once")
    rate_per_user: float = Field(
        10.0, gt=0, le=1e9, description="the same of one user, for each connection that it may have, at each gateway"
    )
    burst_per_user: float = Field(200.0, ge=1, le=1e9, description="the same of one user, for each of its connections")
    rate_per_address: float | None = Field(None, gt=0, le=1e9, description="the same of one address; default: no limit")
    burst_per_address: float = Field(50.0, ge=1, le=1e9, description="the same of one address")


class LimitsSettings(Section):
    """How many connections, and whose."""

    max_connections: int = Field(10_000, ge=1, le=MAX_CONNECTIONS, description="connections of the whole system")
    max_connections_per_shard: int | None = Field(
        None, ge=1, le=MAX_CONNECTIONS, description="the same of one shard; default: no limit"
    )
    max_connections_per_user: int = Field(1, ge=1, le=100, description="of one user; the newest stay")
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        le=MAX_CONNECTIONS,
        description="of one address, but for what it opens at several shards within a second; default: no limit",
    )
    group_by: Literal["role", "tenant"] = Field(
        "role", description="what of its token makes a user's group; who may administer is in the group admin"
    )
    groups: Table[GroupQuota] = Field(
        default_factory=dict,
        description="name → weight (1), reserved slots (0; of admin 16, or a tenth of all) and limit (none) of a group",
    )
    lease_s: float = Field(
        120.0, ge=1, le=3600, description="a shard that has not heard of the router for so long sends its users away"
    )
    connect: ConnectSettings = ConnectSettings()

    @model_validator(mode="after")
    def _agree(self) -> LimitsSettings:
        most = self.max_connections
        for name, group in self.groups.items():
            if group.limit is not None and group.reserved > group.limit:
                raise make_conflict(
                    f"{{}}: {_quote(name)} has {group.reserved} slots reserved and a limit of {group.limit}; "
                    "lower its `reserved` or raise its `limit`",
                    "groups",
                )
            if group.limit is not None and group.limit > most:
                raise make_conflict(
                    f"{{}}: the limit of {_quote(name)}, {group.limit}, is above {{}}, {most}; "
                    "lower the one or raise the other",
                    "groups",
                    "max_connections",
                )
        reserved = sum(group.reserved for group in self.groups.values())
        if reserved > most:
            raise make_conflict(
                f"{{}}: {reserved} slots are reserved, and {{}} is {most}; lower the reserves or raise max_connections",
                "groups",
                "max_connections",
            )
        for name in ("max_connections_per_shard", "max_connections_per_user", "max_connections_per_address"):
            value = getattr(self, name)
            if value is not None and value > most:
                raise make_conflict(
                    f"{{}}, {value}, is above {{}}, {most}; lower the one or raise the other", name, "max_connections"
                )
        return self

    def get_group(self, name: str) -> GroupQuota:
        """What is said of a group."""
        return self.groups.get(name, DEFAULT_QUOTA)

    def with_administrators(self) -> LimitsSettings:
        """The same, with a reserve for administrators where nobody has said how many slots are reserved for them."""
        admins = self.groups.get(ADMINISTRATORS, DEFAULT_QUOTA)
        if "reserved" in admins.model_fields_set or self.max_connections < 2:
            return self
        left = self.max_connections - sum(group.reserved for group in self.groups.values())
        most = left if admins.limit is None else min(left, admins.limit)
        reserved = min(ADMINISTRATORS_RESERVE, max(1, self.max_connections // 10), most)
        admins = admins.model_copy(update={"reserved": reserved})
        return self.model_copy(update={"groups": self.groups | {ADMINISTRATORS: admins}})


def _quote(name: str) -> str:
    return repr(name).replace("{", "{{").replace("}", "}}")
