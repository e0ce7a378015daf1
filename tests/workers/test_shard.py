"""A shard's decisions: what happens to a user's one connection, told by a shard on sockets in memory."""

from __future__ import annotations

import pytest

from solowire.algorithms.hash_ring import Ring
from solowire.backplane.messages import LEASE_DRAIN_FRACTION, LogBatch, UserConnectedElsewhere
from solowire.errors import InvalidToken, RequestRejected
from solowire.protocol import messages as c
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import MAX_MESSAGE_BYTES, Codec
from solowire.workers.connections.connection import State
from tests.support.shard_harness import TOKENS, WALL, ShardHarness, connect_stuck, find_user

# ----------------------------------------------------------------------------------------------- one connection


def test_a_second_connection_replaces_the_first() -> None:
    """A user who opens a second tab has one connection: the new one, and the old is told to stay away."""
    b = ShardHarness()
    old = b.connect(subscriptions=["custom.a"])
    new = b.connect(subscriptions=["custom.a"])
    assert b.close_code(old) == 4409
    assert b.shard.connections == {new}
    b.publish("custom.a")
    assert len(b.read_events(new)) == 1
    assert b.read_events(old) == []
    b.shard.on_closed(old)
    b.wait(1)
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert len(b.read_events(new)) == 1


def test_a_second_connection_can_be_refused_instead() -> None:
    """With the setting `reject` the first tab stays, and the second gets 409 before it is accepted."""
    b = ShardHarness(session__on_duplicate="reject")
    first = b.connect()
    ticket = b.issue_ticket("alice")
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.code) == (409, "duplicate_connection")
    assert b.close_code(first) is None
    b.shard.on_closed(first)
    assert b.shard.admit(ticket, b.now).identity.user == "alice"


def test_users_dont_replace_each_other() -> None:
    """Two users are two connections, and an event for one of them finds the right one after the other has left."""
    b = ShardHarness()
    alice, bob = b.connect("alice"), b.connect("bob")
    assert b.shard.connections == {alice, bob}
    b.shard.on_closed(alice)
    assert b.shard.connections == {bob}
    assert b.close_code(bob) is None


def test_a_ticket_lets_in_once() -> None:
    """A URL that was copied from a log opens nothing."""
    b = ShardHarness()
    ticket = b.issue_ticket("alice")
    b.shard.admit(ticket, b.now)
    with pytest.raises(InvalidToken) as caught:
        b.shard.admit(ticket, b.now)
    assert caught.value.code == "ticket_used"


def test_a_ticket_for_another_shard_or_time_lets_nobody_in() -> None:
    """A ticket of another shard, or of a minute ago, is refused before the connection is accepted."""
    b = ShardHarness()
    with pytest.raises(InvalidToken):
        b.shard.admit(b.issue_ticket("alice", shard=1), b.now)
    ticket = b.issue_ticket("alice")
    b.wait(60)
    with pytest.raises(InvalidToken):
        b.shard.admit(ticket, b.now)


def test_a_user_of_another_shard_is_not_let_in() -> None:
    """When the ring has changed since the ticket was made, the client is sent back to ask for the right shard."""
    b = ShardHarness((0, 1))
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(b.issue_ticket(find_user((0, 1), 1)), b.now)
    assert (caught.value.status, caught.value.code) == (503, "wrong_shard")


def test_a_shard_that_isnt_ready_lets_nobody_in() -> None:
    """A shard that has not read the log up to where it was when it came refuses, and the ticket stays good."""
    b = ShardHarness()
    b.offset, b.epoch = 5, "epoch-2"
    b.change_ring(0)
    ticket = b.issue_ticket("alice")
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    b.shard.on_batch(LogBatch("epoch-2", 0, 5, []), b.now)
    assert b.shard.is_ready
    assert b.shard.admit(ticket, b.now).identity.user == "alice"


def test_a_ring_that_changes_while_a_connection_opens() -> None:
    """A user who was given to another shard between ticket and acceptance is sent there, and gets nothing here."""
    b = ShardHarness()
    user = find_user((0, 1), 1)
    identity = b.shard.admit(b.issue_ticket(user), b.now).identity
    b.change_ring(0, 1)
    connection = b.open_as(identity)
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    b.publish("custom.a")
    b.wait(3)
    assert [type(m) for m in b.read_messages(connection)] == [c.ReconnectNow]
    assert b.close_code(connection) == 4421


# ------------------------------------------------------------------------------------------------- time passing


def test_a_silent_client_is_closed() -> None:
    """A client that answers no heartbeat is closed with 4408, within a little more than three heartbeats."""
    b = ShardHarness()
    connection = b.connect()
    b.wait(49)
    assert b.close_code(connection) is None
    assert sum('"type":"ping"' in str(f) for f in b.sockets.sent[connection]) >= 1
    b.wait(28)
    assert b.close_code(connection) == 4408


def test_a_client_that_answers_stays() -> None:
    """A client that answers its heartbeats, or says anything at all, stays for ever."""
    b = ShardHarness()
    connection = b.connect()
    for n in range(60):
        b.wait(20)
        b.say(connection, c.Pong() if n % 2 else c.Stats())
    assert b.close_code(connection) is None


def test_heartbeats_are_spread() -> None:
    """Many clients that came at once are not all pinged in the same moment of every round."""
    b = ShardHarness()
    connections = []
    for n in range(100):
        connections.append(b.connect(f"user-{n}"))
        b.wait(0.25)
    before = [len(b.sockets.sent[x]) for x in connections]
    b.wait(1.01)
    pinged = sum(len(b.sockets.sent[x]) > n for x, n in zip(connections, before, strict=True))
    assert pinged <= 10


def test_a_pause_of_the_process_is_not_the_clients_fault() -> None:
    """When the process itself stood still for minutes, no client is closed for the heartbeats that nobody sent."""
    b = ShardHarness()
    connection = b.connect()
    b.wait(30)
    b.say(connection, c.Pong())
    b.now += 600
    b.shard.run(b.now)
    assert b.close_code(connection) is None
    b.say(connection, c.Pong())
    b.wait(40)
    assert b.close_code(connection) is None


def test_an_expiring_token_is_announced_and_then_closes() -> None:
    """A client is told a minute before its token ends, and how long that is, and closed for good when it does."""
    b = ShardHarness()
    identity = TOKENS.identify(b.sign_token("alice", ttl=400), b.now + WALL)
    connection = b.open_as(identity)
    b.say(connection, c.Hello())
    b.read_messages(connection)
    for _ in range(33):
        b.wait(10)
        b.say(connection, c.Pong())
    b.wait(9)
    assert b.read_messages(connection) == []
    b.wait(1.1)
    [notice] = b.read_messages(connection)
    assert notice.code == "token_expiring"
    assert 58_000 < notice.after_ms <= 60_000
    b.say(connection, c.Pong())
    b.wait(30)
    b.say(connection, c.Pong())
    b.wait(28)
    assert b.close_code(connection) is None
    b.wait(2)
    assert b.close_code(connection) == 4401


# ------------------------------------------------------------------------------------------------------- moving


def test_users_who_move_are_sent_away() -> None:
    """When a shard joins, the users it takes over are told to reconnect, get nothing more, and are closed."""
    b = ShardHarness((0,))
    leaver, stayer = find_user((0, 1), 1), find_user((0, 1), 0)
    moving, staying = (b.connect(u, subscriptions=["custom.a"]) for u in (leaver, stayer))
    b.publish("custom.a")
    b.publish("custom.a")  # waits for company while the ring changes
    b.read_events(moving)
    b.forget_users(0, 1)
    b.publish("custom.a")
    b.publish("custom.a", user=leaver)
    b.wait(0.5)
    [reconnect] = b.read_messages(moving)
    assert (reconnect.reason, reconnect.after_ms) == ("ring_changed", 0)
    assert len(b.read_events(staying)) == 3
    b.wait(2)
    assert b.close_code(moving) == 4421
    assert b.close_code(staying) is None


def test_users_who_move_get_nothing_whatever_they_say() -> None:
    """A client that was told to reconnect and goes on talking gets no event that its next shard would send again."""
    b = ShardHarness((0,))
    users = [f"user-{n}" for n in range(40) if Ring((0, 1)).owner(f"user-{n}") == 1][:4]
    live = [b.connect(u, subscriptions=["custom.a"]) for u in users[:3]]
    waiting = b.open_connection(users[3])
    b.forget_users(0, 1)
    for connection in (*live, waiting):
        assert [type(m) for m in b.read_messages(connection)] == [c.ReconnectNow]
    b.say(live[0], c.Subscribe(["custom.a", "custom.b"]))
    b.say(live[1], c.Refresh(b.sign_token(users[1])))
    b.say(live[2], c.Unsubscribe(["custom.b"]))
    b.say(waiting, c.Hello(subscriptions=["custom.a"]))
    b.publish("custom.a")
    b.wait(0.9)
    assert [b.read_messages(x) for x in (*live, waiting)] == [[], [], [], []]
    assert len(b.shard.feeds) == 0


def test_users_who_wait_for_hello_and_move_get_no_defaults() -> None:
    """A client that was told to reconnect before it said hello is not given the defaults when two seconds are over."""
    b = ShardHarness((0,), shard__rebalance_users_per_s=0.1)
    users = [f"user-{n}" for n in range(40) if Ring((0, 1)).owner(f"user-{n}") == 1][:2]
    waiting = [b.open_connection(u) for u in users]
    b.forget_users(0, 1)
    b.publish("custom.a")
    b.wait(5)
    assert [[type(m) for m in b.read_messages(x)] for x in waiting] == [[c.ReconnectNow]] * 2


def test_users_who_move_leave_one_after_the_other() -> None:
    """Users are sent away at a set pace, so that their next shard isn't run over, once for all changes of the ring."""
    b = ShardHarness((0,), shard__rebalance_users_per_s=10.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 1][:30]
    moving = [b.connect(u) for u in users]
    b.forget_users(0, 1)
    b.forget_users(0, 1, 2)
    delays = [[m.after_ms for m in b.read_messages(x)] for x in moving]
    assert sorted(delays) == [[n * 100] for n in range(30)]
    b.wait(1.5)
    assert 1 <= sum(b.close_code(x) == 4421 for x in moving) <= 10
    b.wait(4)
    assert all(b.close_code(x) == 4421 for x in moving)


def test_users_who_wait_are_all_told_when_the_router_has_forgotten_them() -> None:
    """A router that has restarted tells the same ring, and gives this shard nothing of theirs: nobody waits on."""
    b = ShardHarness((0,), shard__rebalance_users_per_s=0.1)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 1][:3]
    moving = [b.connect(u) for u in users]
    b.change_ring(0, 1)
    b.send_ring(0, 1, since=b.version - 1)  # it has not forgotten
    assert sum(x.state is State.live for x in moving) == 2
    b.send_ring(0, 1, since=b.version)
    assert [x.state for x in moving] == [State.draining] * 3
    assert [len(b.read_messages(x)) for x in moving] == [1, 1, 1]
    assert b.shard.completed_version == b.version


def test_users_who_wait_for_their_turn_are_served_until_then() -> None:
    """As long as the router goes on with their own events, they get everything up to their turn, and then nothing."""
    b = ShardHarness((0,), shard__rebalance_users_per_s=2.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 1][:3]
    moving = [b.connect(u, subscriptions=["custom.a"]) for u in users]
    b.change_ring(0, 1)
    assert b.shard.completed_version == 1
    published: list[list[int]] = [[], [], []]
    got: list[list[int]] = [[], [], []]
    told = [False, False, False]
    for _ in range(20):
        for n, user in enumerate(users):
            published[n].append(b.publish("custom.a", user=user))
        b.wait(0.2)
        for n, connection in enumerate(moving):
            for m in b.read_messages(connection):
                told[n] = told[n] or isinstance(m, c.ReconnectNow)
                got[n] += [e.offset for e in m.events] if isinstance(m, c.Events) else []
    assert all(told)
    assert all(mine == all_of[: len(mine)] for mine, all_of in zip(got, published, strict=True))
    first, _, last = sorted(map(len, got))
    assert first <= 1
    assert 3 <= last < 20
    assert b.shard.completed_version == 2
    assert [b.close_code(x) for x in moving] == [4421] * 3


def test_a_shard_that_leaves_sends_everybody_away_at_its_pace() -> None:
    """It takes no new users, tells its own one after the other, closes with 1012; done when all sockets are gone."""
    b = ShardHarness((0, 1), shard__rebalance_users_per_s=10.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 0][:20]
    connections = [b.connect(u) for u in users]
    b.shard.start_drain(b.now)
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(b.issue_ticket("late"), b.now)
    assert (caught.value.status, caught.value.code) == (503, "draining")
    b.change_ring(1)
    b.wait(1)
    assert 5 <= sum(bool(b.read_messages(x)) for x in connections) <= 15
    assert not b.shard.is_drained
    b.wait(4)
    assert [b.close_code(x) for x in connections] == [1012] * 20
    for connection in connections:
        assert not b.shard.is_drained, "a socket is there until it is known to be gone"
        b.shard.on_closed(connection)
    assert b.shard.is_drained


def test_a_full_address_lets_a_user_take_its_own_place() -> None:
    """Who comes back from an address that is full replaces its older connection there; another user is refused."""
    b = ShardHarness(limits__max_connections_per_address=1)
    b.address = "192.0.2.7"
    old = b.open_connection("alice")
    new = b.open_connection("alice")
    assert b.close_code(old) == 4409
    with pytest.raises(RequestRejected) as refused:
        b.open_connection("alice")  # the old socket is still there, and the next one's would be a third
    assert refused.value.code == "too_many_from_address"
    b.shard.on_closed(old)
    with pytest.raises(RequestRejected):
        b.open_connection("bob")
    third = b.open_connection("alice")
    assert b.close_code(new) == 4409
    assert b.close_code(third) is None


def test_a_shard_is_not_drained_while_a_handshake_is_under_way() -> None:
    """Who has been let in has a slot before it is a connection; one that is only kept for somebody holds up nobody."""
    b = ShardHarness()
    admitted = b.shard.admit(b.issue_ticket("alice"), b.now)
    b.shard.start_drain(b.now)
    assert not b.shard.is_drained
    b.shard._slot_manager.reserve_for("alice", "viewer", b.now)
    b.shard.cancel_admission(admitted.identity, admitted.address)
    assert b.shard._slot_manager.lease.used_count == 1
    assert b.shard.is_drained


def test_a_shard_that_must_end_soon_tells_everybody_in_time() -> None:
    """The grace period of a process counts for more than the pace."""
    b = ShardHarness((0,), shard__rebalance_users_per_s=1.0)
    connections = [b.connect(f"user-{n}") for n in range(50)]
    b.shard.start_drain(b.now, within=2.0)
    b.wait(4)
    assert [b.close_code(x) for x in connections] == [1012] * 50


def test_the_same_ring_again_moves_nobody() -> None:
    """A ring that is told twice is told once."""
    b = ShardHarness((0,))
    connection = b.connect()
    b.version -= 1
    b.change_ring(0)
    b.wait(2)
    assert b.close_code(connection) is None
    assert b.read_messages(connection) == []


def test_everything_is_closed_before_the_process_ends() -> None:
    """A shard that ends closes every connection with the code that it is given."""
    b = ShardHarness()
    connections = [b.connect("alice"), b.open_connection("bob"), connect_stuck(b, user="carol")]
    b.shard.close_all(CloseCode.restarting)
    assert [b.close_code(x) for x in connections] == [1012] * 3
    for connection in connections:
        b.shard.on_closed(connection)
        b.shard.on_closed(connection)
    assert {x.state for x in connections} == {State.closed}


def test_the_numbers_are_right() -> None:
    """A shard's statistics count its connections, feeds, events, deliveries and frames."""
    b = ShardHarness()
    for n in range(3):
        b.connect(f"user-{n}", subscriptions=["custom.a"])
    b.connect("other", subscriptions=["custom.b"])
    b.deliver(b.make_event("custom.a"), b.make_event("custom.a"), b.make_event("custom.c"))
    stats = b.shard.stats()
    assert (stats.connections, stats.feeds, stats.connections_opened, stats.lagging) == (4, 2, 4, 0)
    assert (stats.events, stats.deliveries, stats.frames) == (3, 6, 3)
    assert (stats.log_end_offset, stats.log_start_offset) == (3, 0)
    assert stats.sent_bytes > 0
    assert stats.log_bytes == b.shard.log.held_bytes > b.shard.log.entry_bytes > 0


# ------------------------------------------------------------------------------------------------------ the lease


def refused(b: ShardHarness, user: str, role: str = "viewer") -> RequestRejected:
    """With what one more is refused."""
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(b.issue_ticket(user, role), b.now)
    return caught.value


def test_without_a_slot_nobody_is_let_in() -> None:
    """What the lease doesn't grant is refused before it is accepted, with a word when to try again."""
    b = ShardHarness()
    b.grant_lease(viewer=1)
    first = b.connect("alice")
    ticket = b.issue_ticket("bob")
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.code) == (503, "over_limit")
    assert caught.value.retry_after
    b.shard.on_closed(first)
    assert b.shard.admit(ticket, b.now).identity.user == "bob"


def test_a_handshake_that_comes_to_nothing_gives_its_slot_back() -> None:
    """Whoever was admitted and went away before it was accepted leaves its slot to the next."""
    b = ShardHarness()
    b.grant_lease(viewer=1)
    identity = b.shard.admit(b.issue_ticket("alice"), b.now).identity
    refused(b, "bob")
    b.shard.cancel_admission(identity)
    b.connect("bob")


def test_a_slot_is_free_when_the_socket_is_gone_and_not_before() -> None:
    """A connection that is being closed has its slot until its socket has ended."""
    b = ShardHarness()
    b.grant_lease(viewer=1)
    first = b.connect("alice")
    b.send_raw(first, "x" * (MAX_MESSAGE_BYTES + 1))
    assert b.close_code(first) == 1009
    refused(b, "bob")
    b.shard.on_closed(first)
    b.connect("bob")


def test_who_has_been_idle_longest_gives_way() -> None:
    """A lease that grants less sends away the longest idle of the group, politely, and closes it with 1013."""
    b = ShardHarness()
    users = [b.connect(f"user-{n}", subscriptions=["custom.a"]) for n in range(3)]
    operator = b.connect("operator", "operator")
    for connection in (users[0], users[2]):
        b.wait(1)
        b.say(connection, c.Ping())
    b.wait(1)
    b.say(users[1], c.Pong())  # an answer to a ping is no sign of use
    for connection in users:
        b.read_messages(connection)
    b.grant_lease(viewer=2, operator=1)
    [told] = b.read_messages(users[1])
    assert (told.reason, told.after_ms) == ("over_limit", 5000)
    b.wait(1)
    assert [b.close_code(x) for x in (*users, operator)] == [None, 1013, None, None]
    refused(b, "late")
    b.publish("custom.a")
    b.wait(1)
    assert [len(b.read_events(x)) for x in users] == [1, 0, 1]


def test_those_who_go_already_are_counted() -> None:
    """A second lease that grants as little as the first sends nobody else away."""
    b = ShardHarness()
    users = [b.connect(f"user-{n}") for n in range(4)]
    b.grant_lease(viewer=3)
    b.wait(1)
    b.grant_lease(viewer=3)
    b.grant_lease(viewer=2)
    b.wait(1)
    assert sum(b.close_code(x) == 1013 for x in users) == 2


def test_a_legacy_duplicate_gives_way_before_anybody_else() -> None:
    """Of a user with several connections of the old frontend one can be done without."""
    b = ShardHarness()
    idle = b.connect("idle")
    b.wait(5)
    older, _ = b.connect_old("alice"), b.connect("alice")
    b.grant_lease(viewer=2)
    b.wait(1)
    assert (b.close_code(older), b.close_code(idle)) == (1013, None)


def test_when_the_lease_is_over_users_are_sent_away_before_the_slots_are_somebody_elses() -> None:
    """A shard that does not hear of the router accepts nobody, and is empty when its slots are given to others."""
    b = ShardHarness(leased_for=100.0, session__heartbeat_interval_s=600.0)
    users = [b.connect(f"user-{n}") for n in range(10)]
    b.wait(99.9)
    assert b.shard.is_ready
    b.wait(0.2)
    assert not b.shard.is_ready
    with pytest.raises(RequestRejected) as caught:
        b.shard.admit(b.issue_ticket("late"), b.now)
    assert caught.value.status == 503
    b.wait(20)
    assert [b.read_messages(x)[-1].reason for x in users] == ["no_lease"] * 10
    b.wait(4.9)
    assert all(b.close_code(x) for x in users)


def test_a_shard_whose_lease_was_short_is_empty_in_time() -> None:
    """With too short a lease to let everybody go politely, the rest are closed when the slots become somebody else's;
    the shard itself says when it has to look.
    """
    b = ShardHarness(leased_for=3.0, session__heartbeat_interval_s=600.0)
    users = [b.connect(f"user-{n}") for n in range(10)]
    free_at = b.now + 3.0 * (1 + LEASE_DRAIN_FRACTION)
    for _ in range(100):
        if b.shard.next_due() <= free_at:
            b.now = max(b.now, b.shard.next_due())
            b.shard.run(b.now)
    assert [b.close_code(x) for x in users] == [1012] * 10


def test_a_lease_that_comes_back_in_time_lets_the_rest_stay() -> None:
    """When the router is heard again those who were not yet sent away stay, and others are let in."""
    b = ShardHarness(leased_for=100.0, session__heartbeat_interval_s=600.0)
    users = [b.connect(f"user-{n}") for n in range(10)]
    b.wait(103)
    gone = sum(x.state in (State.draining, State.closing) for x in users)
    assert 0 < gone < 10
    b.grant_lease(spare=100, seconds=100.0)
    b.wait(50)
    assert sum(b.close_code(x) is not None for x in users) == gone
    b.connect("late")


def test_at_a_full_shard_a_user_comes_back_to_its_own_slot() -> None:
    """A user whose old connection is half dead gets in again with its next attempt, however many others want in."""
    b = ShardHarness()
    b.grant_lease(viewer=1)
    old = b.connect("alice")
    assert refused(b, "alice").retry_after == 1
    assert b.close_code(old) == 4409
    refused(b, "bob")
    b.shard.on_closed(old)
    refused(b, "bob")
    b.connect("alice")
    refused(b, "bob")


def test_a_used_ticket_ends_nobodys_connection() -> None:
    """At a full shard a ticket from a log neither lets in nor makes room for itself."""
    b = ShardHarness()
    b.grant_lease(viewer=1)
    ticket = b.issue_ticket("alice")
    connection = b.shard.open_connection(b.shard.admit(ticket, b.now).identity, Codec.json, None, b.now)
    with pytest.raises(InvalidToken):
        b.shard.admit(ticket, b.now)
    assert b.close_code(connection) is None


# --------------------------------------------------------------------------------------------------- of one user


def test_with_a_limit_of_two_the_newest_two_stay() -> None:
    """The third connection of a user ends the first, and what is for the user reaches both that are left."""
    b = ShardHarness(limits__max_connections_per_user=2)
    first, second, third = [b.connect(subscriptions=["custom.a"]) for _ in range(3)]
    assert [b.close_code(x) for x in (first, second, third)] == [4409, None, None]
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert [len(b.read_events(x)) for x in (second, third)] == [1, 1]
    b.shard.on_closed(second)
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert [len(b.read_events(x)) for x in (second, third)] == [0, 1]


def test_with_reject_the_first_two_stay() -> None:
    """Where newer connections are refused, the limit is as high."""
    b = ShardHarness(limits__max_connections_per_user=2, session__on_duplicate="reject")
    b.connect()
    b.connect()
    assert refused(b, "alice").code == "duplicate_connection"


def test_the_router_hears_of_each_connection() -> None:
    """With the user's number, however long ago the ring changed: the shard that it comes from may have it still."""
    b = ShardHarness((0,), limits__max_connections_per_user=2, session__heartbeat_interval_s=1e6)
    b.connect("alice")
    b.wait(10_000)
    b.connect("alice")
    assert b.connected_users == [("alice", 1), ("alice", 2)]


def test_the_router_does_not_hear_of_a_connection_that_is_sent_away() -> None:
    """A user of another shard's counts there, and not here, where it has come while the ring changed."""
    b = ShardHarness((0,))
    user = find_user((0, 1), 1)
    admitted = b.shard.admit(b.issue_ticket(user), b.now)
    b.change_ring(0, 1)
    b.shard.open_connection(admitted.identity, Codec.json, None, b.now)
    assert b.connected_users == []


def test_newer_connections_elsewhere_end_older_ones_here() -> None:
    """Of the user's connections here as many stay as the limit leaves; one that was told to leave is left alone."""
    b = ShardHarness((0,), limits__max_connections_per_user=2, shard__rebalance_users_per_s=0.5)
    user = find_user((0, 1), 1)
    first, second = b.connect(user), b.connect(user)
    b.shard.on_newer_elsewhere(UserConnectedElsewhere(user, 1))
    assert [b.close_code(x) for x in (first, second)] == [4409, None]
    b.change_ring(0, 1)
    b.wait(0.5)
    assert second.state is State.draining
    b.shard.on_newer_elsewhere(UserConnectedElsewhere(user, 2))
    assert b.close_code(second) is None
    b.shard.on_newer_elsewhere(UserConnectedElsewhere("nobody", 2))
