"""An event published once reaches every user who may and wants to see it, over one connection each."""

from __future__ import annotations

from tests.support.system import System


async def test_an_event_reaches_a_subscriber_on_each_shard(system: System) -> None:
    """One event, two users of different shards: both get it, with the same offset and id."""
    users = [system.user_on(0, "reach"), system.user_on(1, "reach")]
    hello = {"subscriptions": ["custom.*"]}
    async with (
        system.session(system.token(users[0]), hello) as first,
        system.session(system.token(users[1]), hello) as second,
    ):
        accepted = await system.publish({"type": "custom.reach", "data": {"n": 1}})
        [one], [two] = await first.events(1), await second.events(1)
    assert one == two
    assert one["offset"] == accepted["first_offset"] == accepted["last_offset"]
    assert one["data"] == {"n": 1}
