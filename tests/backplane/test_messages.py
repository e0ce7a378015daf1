"""Messages between processes: they survive the way, and anything else is one kind of error."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.histogram import BUCKETS
from solowire.backplane import messages as b
from solowire.errors import BackplaneError
from tests.support.examples import examples

ADDRESS = b.ShardAddress(3, "10.0.0.1", 9003, "boot-1")
STATS = b.ShardStats(connections=7, log_end_offset=99, sent_bytes=2**40)
REVOCATION = b.Revocation("r1", "alice", None, 1.5, 2.5, 3.5, "admin", "has left")
FROM_PEER: list[Any] = [
    b.Join(b.VERSION, "boot-1", ADDRESS, "epoch", 12, 1000),
    b.Join(b.VERSION, "boot-2"),
    b.Heartbeat("boot-1", STATS),
    b.Heartbeat("boot-1"),
    b.PublishRequest(5, [b.PublishedEvent("id", "alice", b"\x00\xff"), b.PublishedEvent("id2", None, b"", "state")]),
    b.LogAck("epoch", 2**40, 500),
    b.StatsRequest(1),
    b.Leave(),
    b.ReplayRequest(6, "epoch", "alice", 12, 40, True),
    b.ReplayCancel(6),
    b.HistoryRequest(
        7,
        "alice",
        b.HistoryBound("epoch", 12),
        b.HistoryBound(at=1.5),
        True,
        [b.HistoryClause(["record_updated"], [("zone", ["example.com"], True)])],
        100,
    ),
    b.HistoryRequest(8, "alice", None, None, False, None, 1),
    b.HistoryCancel(7),
    b.StartDraining(),
    b.DrainRequest(7, 3),
    b.UndrainRequest(8, 3, "root"),
    b.LeaseUsage(8, 2**41, {"viewer": 3}, {"admin": 1}, {"192.0.2.7": 2}, 40),
    b.Heartbeat("boot-1", STATS, b.LeaseUsage(9, 2, {})),
    b.UsersConnected([("alice", 1)]),
    b.DisconnectRequest(10, "alice", "admin"),
    b.DisconnectReport(10, 2),
    b.RevokeRequest(11, REVOCATION),
    b.UnrevokeRequest(12, "r1", "admin"),
    b.KnownRevocations([REVOCATION]),
]
FROM_ROUTER: list[Any] = [
    b.RejoinRequired(),
    b.RingState("epoch", 4, 1234, [ADDRESS], 3, [(2, 500)]),
    b.LogBatch("epoch", 10, 13, [(11, b"one"), (13, b"two")]),
    b.PublishAck(5, "epoch", [14, 15], [1]),
    b.PublishNack(5, "journal_full", "the disk is full", 1.5),
    b.HeartbeatResponse("epoch", 4),
    b.StatsResponse(1, "epoch", 9, 8, 7, [b.ShardReport(ADDRESS, STATS, 1, 2)], 2),
    b.StateSnapshot("epoch", 12, [(3, b"one")]),
    b.ReplayResponse(6, 40, [(13, b"one")]),
    b.ReplayResponse(6, 12, [], "retention"),
    b.HistoryResponse(7, "epoch", 12, 40, 20, [(13, b"one")]),
    b.HistoryResponse(7, "epoch", 12, 40, 0, [], "retention", 1.5),
    b.DrainCommand(),
    b.UndrainCommand(),
    b.Superseded(),
    b.IndexTaken("10.0.0.5:8001"),
    b.Diagnose("event_loop_lag_seconds"),
    b.DrainResponse(7, None),
    b.Lease(2**41, 8, 120.0, {"viewer": 3}, 4, ["tenant"], ["192.0.2.7"]),
    b.UserConnectedElsewhere("alice", 2),
    b.Fenced("it lies"),
    b.AdmissionState(["viewer"], True, 5.0, ["192.0.2.7"], 2),
    b.HeartbeatResponse("epoch", 4, b.Lease(2, 9, 120.0, {}), None),
    b.HeartbeatResponse("epoch", 4, None, b.AdmissionState([], False, 5.0)),
    b.HeartbeatResponse("epoch", 4, None, None, 7),
    b.DisconnectCommand(10, "alice"),
    b.DisconnectResponse(10, 2, 1),
    b.RevokeResponse(11, REVOCATION, False),
    b.RevokeResponse(12, None),
    b.RevocationUpdate("epoch", 8, 7, [REVOCATION], ["r0"]),
]
DECODERS = [b.decode_from_peer, b.decode_from_router]
EITHER = [(b.decode_from_peer, m) for m in FROM_PEER] + [(b.decode_from_router, m) for m in FROM_ROUTER]


@pytest.mark.parametrize(("decode", "message"), EITHER)
def test_a_message_survives_its_way(decode: Any, message: Any) -> None:
    """What one process says is what the other hears."""
    heard = decode(b.encode(message))
    assert heard == message
    assert type(heard) is type(message)


def test_every_message_is_covered() -> None:
    """No message of the protocol is missing from this file."""
    assert {type(m) for m in FROM_PEER} == set(get_args(b.PeerMessage))
    assert {type(m) for m in FROM_ROUTER} == set(get_args(b.RouterMessage))


@pytest.mark.parametrize(("decode", "message"), EITHER)
def test_a_truncated_message_is_refused(decode: Any, message: Any) -> None:
    """A message that was cut off anywhere is refused, never half obeyed."""
    raw = b.encode(message)
    for length in range(len(raw)):
        with pytest.raises(BackplaneError):
            decode(raw[:length])


@pytest.mark.parametrize("decode", DECODERS)
@given(raw=st.binary(max_size=300))
@settings(deadline=None, max_examples=examples(150))
def test_garbage_is_refused(decode: Any, raw: bytes) -> None:
    """Any bytes whatever are a message or a BackplaneError, so that no peer can stop a process."""
    try:
        decode(raw)
    except BackplaneError:
        return


@pytest.mark.parametrize(("decode", "message"), EITHER)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=examples(40))
def test_a_damaged_message_is_refused_or_read(decode: Any, message: Any, at: int, byte: int) -> None:
    """A message with a byte changed on the way is a message or a BackplaneError."""
    raw = bytearray(b.encode(message))
    raw[at % len(raw)] = byte
    try:
        decode(bytes(raw))
    except BackplaneError:
        return


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        msgspec.msgpack.encode(["no such tag", 1]),
        msgspec.msgpack.encode({"type": "hello"}),
        msgspec.msgpack.encode(["hello", "version", 1]),
        b"\x91\xa5\xff\xff\xff\xff\xff",
        b"\x93\xa7publish\x01\xdd\xff\xff\xff\xff",
        b"\x93\xa7deliver\xc6\xff\xff\xff\xff",
    ],
    ids=["empty", "reserved", "deep", "unknown", "map", "types", "utf-8", "length", "bytes"],
)
def test_what_is_not_ours_is_refused(decode: Any, raw: bytes) -> None:
    """Deep nesting, wrong types, bad UTF-8 and lengths that promise gigabytes cost nothing but a refusal."""
    with pytest.raises(BackplaneError):
        decode(raw)


@pytest.mark.parametrize(
    "stats",
    [
        b.ShardStats(connections=-1),
        b.ShardStats(memory_bytes=2**63),
        b.ShardStats(groups={"viewer": -1}),
        b.ShardStats(latency=[1] * (BUCKETS + 1)),
        b.ShardStats(latency=[-1]),
        b.ShardStats(event_loop_lag_s=-0.5),
        b.ShardStats(event_loop_lag_s=float("nan")),
        b.ShardStats(event_loop_lag_s=float("inf")),
    ],
)
def test_numbers_that_can_not_be_are_refused(stats: b.ShardStats) -> None:
    """Less than nothing, more than can be summed, and what is no number: nobody has to reckon with it."""
    with pytest.raises(BackplaneError):
        b.decode_from_peer(b.encode(b.Heartbeat("boot-1", stats)))


@pytest.mark.parametrize(
    "message",
    [
        b.Join(b.VERSION, "boot-1", ADDRESS, "epoch", -1),
        b.Join(b.VERSION, "boot-1", ADDRESS, "epoch", 1, -1),
        b.Join(b.VERSION, "boot-1", ADDRESS, "epoch", 1, 1, -1),
        b.LogAck("epoch", -1, 500),
        b.LogAck("epoch", 1, -500),
    ],
)
def test_places_in_the_log_that_can_not_be_are_refused(message: Any) -> None:
    """How far behind a shard is, is reckoned from what it says: none is before the log, or takes less than nothing."""
    with pytest.raises(BackplaneError):
        b.decode_from_peer(b.encode(message))


def test_every_number_of_a_process_has_its_bounds() -> None:
    """No field of the statistics takes a negative number."""
    for name, value in msgspec.structs.asdict(b.ShardStats()).items():
        wrong: Any = {int: -1, float: -1.0, dict: {"x": -1}, list: [-1]}[type(value)]
        with pytest.raises(BackplaneError):
            b.decode_from_peer(b.encode(b.Heartbeat("boot-1", b.ShardStats(**{name: wrong}))))


@pytest.mark.parametrize("message", FROM_PEER)
def test_the_directions_are_apart(message: Any) -> None:
    """What a peer may say a router may not, so that a message that goes the wrong way is noticed."""
    with pytest.raises(BackplaneError):
        b.decode_from_router(b.encode(message))
