"""The messages between processes: MessagePack arrays with a tag, decoded by one typed decoder for each direction.

    peer ──► router   Join, Heartbeat, Leave, KnownRevocations
    gateway ──►       PublishRequest, StatsRequest, DrainRequest, UndrainRequest, DisconnectRequest, RevokeRequest,
                      UnrevokeRequest
    shard ──►         LogAck, ReplayRequest, ReplayCancel, HistoryRequest, HistoryCancel, StartDraining, LeaseUsage,
                      UsersConnected, DisconnectReport
    router ──► peer   RejoinRequired, HeartbeatResponse, RingState, RevocationUpdate
    ──► gateway       PublishAck, PublishNack, StatsResponse, DrainResponse, DisconnectResponse, RevokeResponse, and
                      AdmissionState with each HeartbeatResponse
    ──► shard         LogBatch, StateSnapshot, ReplayResponse, HistoryResponse, DrainCommand, UndrainCommand,
                      DisconnectCommand, Lease, UserConnectedElsewhere, Superseded, IndexTaken, Fenced, Diagnose

A peer is a shard or a gateway. It sends Join when it starts, when the router requires it (because the router has
restarted and doesn't know the peer), and when a HeartbeatResponse tells of another ring than the peer knows. The router
answers with the ring, and sends the ring again whenever it changes. The file is long because it is a list of
declarations.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from solowire.algorithms.histogram import BUCKETS
from solowire.algorithms.hosts import bracket_host
from solowire.errors import BackplaneError

VERSION = 8
HEARTBEAT_SECONDS = 0.5
DEAD_AFTER_SECONDS = 2.4
"""A peer is given up within 3 s of its last word, the router's looking every half second included."""
REPLAY_RECORDS = 1_000
"""Of so many records of the log an answer to Replay tells at most."""
LEASE_DRAIN_FRACTION = 0.25
"""When a lease has run out, a shard has so much of the lease's time to send its users away; then the slots are free."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]  # a thousand of them can be summed in 63 bits
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Total = Annotated[int, msgspec.Meta(ge=0, le=2**60)]  # of bytes, since a process began
_Number = Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # which NaN is not, nor infinity


class _BackplaneMessage(msgspec.Struct, array_like=True, gc=False):
    pass


class ShardAddress(_BackplaneMessage):
    """Where a shard serves its clients.

    incarnation: new for each start of its process. api: where its HTTP API is (`api_client`). certificate: where it
    speaks TLS to its clients, the SHA-256 of its certificate's DER, in hexadecimal; else "". machine: the network
    stack in which a host and a port are one process's alone (`solowire.runtime.machine`); "" if that is not known.
    """

    index: int
    host: str
    port: int
    incarnation: str
    api: str = ""
    certificate: str = ""
    machine: str = ""

    @property
    def bracketed_host(self) -> str:
        """The host as a URL has it."""
        return bracket_host(self.host)

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"{self.bracketed_host}:{self.port}"


class ShardStats(_BackplaneMessage):
    """One second's numbers of a process. Totals since its start, unless they are states; …_per_s: of the last second.

    groups, codecs, transports: connections by each. latency: how often an event took how long from the gateway to the
    sockets, counts of `histogram` over the last ten seconds. max_connection_lag_s: age of the event that the slowest of
    the lagging connections gets next. event_loop_lag_s: by how much a timer was late at most, in the last second.
    aggregating: feeds by the event type that they get summarised at present. legacy: what was served to old frontends,
    by `path …`, `message …` and `agent …`, and what is open now, by `open …`. A gateway fills in
    `connections_rejected`, `connections_rejected_per_s`, `memory_bytes` and `event_loop_lag_s` alone.
    """

    connections: _Count = 0
    feeds: _Count = 0
    lagging: _Count = 0
    log_end_offset: _Count = 0
    log_start_offset: _Count = 0
    log_bytes: _Count = 0
    events: _Count = 0
    deliveries: _Count = 0
    frames: _Count = 0
    sent_bytes: _Total = 0
    connections_opened: _Count = 0
    connections_rejected: _Count = 0
    groups: dict[str, _Count] = {}
    codecs: dict[str, _Count] = {}
    transports: dict[str, _Count] = {}
    events_per_s: _Number = 0.0
    deliveries_per_s: _Number = 0.0
    frames_per_s: _Number = 0.0
    sent_bytes_per_s: _Number = 0.0
    connections_rejected_per_s: _Number = 0.0
    latency: Annotated[list[_Count], msgspec.Meta(max_length=BUCKETS)] = []
    max_connection_lag_s: _Number = 0.0
    log_events: _Count = 0
    memory_bytes: _Count = 0
    event_loop_lag_s: _Number = 0.0
    lease_used: _Count = 0
    lease_granted: _Count = 0
    aggregating: dict[str, _Count] = {}
    users: _Count = 0
    legacy: dict[str, _Count] = {}


class Join(_BackplaneMessage, tag="join"):
    """A peer joins the system, or joins again.

    incarnation: the process's. shard: None for a gateway. epoch, offset: up to where a shard's log goes already.

    initial_backlog: how many events a shard without a log would like to begin with. is_draining: it is not to be in the
    ring again. revocations_version: of those that it knows, -1 if none: it is told them if there are newer ones.
    is_starting: it can't take users yet, and joins again when it can.
    """

    version: int
    incarnation: str
    shard: ShardAddress | None = None
    epoch: str = ""
    offset: _Offset = 0
    credit: _Count = 0
    initial_backlog: _Count = 0
    is_draining: bool = False
    revocations_version: int = -1
    is_starting: bool = False


class Revocation(_BackplaneMessage):
    """Tokens that are void: of a user, or one by its id (`jti`), or issued before a time, of a user or of all.

    user, token_id, issued_before: None where it doesn't narrow. until: when all of them have expired. Times are unix
    seconds. by: the administrator who wanted it.
    """

    id: str
    user: str | None
    token_id: str | None
    issued_before: float | None
    made_at: float
    until: float
    by: str
    reason: str = ""


class LeaseUsage(_BackplaneMessage, tag="lease_usage"):
    """What a shard uses of its lease. Answered with Lease; part of each heartbeat, and sent when it needs more.

    seq: grows with each one; the answer repeats it, so that the shard counts the lease's time from when it asked.
    fence: of the lease in force, which this confirms; 0 if there is none. used: connections. wanted: how many were
    refused, for want of a slot, since the last one. addresses: connections by address, as the lease asks.
    total: how many the lease in force grants in all, 0 if it is over; a router that has restarted doesn't know.
    capacity: how many its process can have, by its limit of open files; 0 where that is no limit.
    """

    seq: int
    fence: int
    used: dict[str, int]
    wanted: dict[str, int] = {}
    addresses: dict[str, int] = {}
    total: int = 0
    capacity: _Count = 0


class Heartbeat(_BackplaneMessage, tag="heartbeat"):
    incarnation: str
    stats: ShardStats | None = None
    lease_usage: LeaseUsage | None = None


class UsersConnected(_BackplaneMessage, tag="users_connected"):
    """Users have one more connection here. The router tells the shards that may have older ones.

    users: each with how many it has here in all; of one turn of the loop, since a message costs more than a user.
    """

    users: list[tuple[str, int]]


class PublishedEvent(_BackplaneMessage):
    """What the router must know of an event, and the event itself as bytes (`events.encode_event`).

    state: for an event that is one, the state's name; the newest event of a name is its present value.
    """

    id: str
    user: str | None
    body: bytes
    state: str | None = None


class EventTrace(_BackplaneMessage):
    """The events of a request that are of one trace.

    traceparent: of the span that they belong to. count: how many they are. indexes: where the first of them stand in
    the request, as many as anybody looks for.
    """

    traceparent: str
    count: _Count
    indexes: list[_Count]


class PublishRequest(_BackplaneMessage, tag="publish_request"):
    """Events to be put in the log, all or none. request: repeated in the answer. publisher: the user who sends them.

    traces: of the events that are of a trace which is recorded, one for each trace.
    """

    request: int
    events: list[PublishedEvent]
    publisher: str = ""
    traces: list[EventTrace] = []


class LogAck(_BackplaneMessage, tag="log_ack"):
    """All up to `offset` has been taken into the shard's log; `credit` events may be under way beyond it.

    rebalanced_version: the newest ring, by its version, whose moves are done: all users that it takes away have been
    sent away.
    """

    epoch: str
    offset: _Offset
    credit: _Count
    rebalanced_version: int = -1


class ReplayRequest(_BackplaneMessage, tag="replay_request"):
    """Asks for the log behind `prev_offset`, up to and with `end_offset`, as far as it concerns `user`.

    is_user_only: only what is for this user alone. Where both offsets are equal it asks no more than whether the log
    has that one. Answered with ReplayResponse.
    """

    request: int
    epoch: str
    user: str
    prev_offset: int
    end_offset: int
    is_user_only: bool


class ReplayCancel(_BackplaneMessage, tag="replay_cancel"):
    """The client for whom Replay asked has gone: it needs no answer any more. request: as in Replay."""

    request: int


class HistoryBound(_BackplaneMessage):
    """One end of a question about history: at an offset of an epoch, or at a time (unix seconds)."""

    epoch: str = ""
    offset: _Offset | None = None
    at: float | None = None


class HistoryClause(_BackplaneMessage):
    """Events of one of these types whose attributes meet all conditions: (attribute, values, are they names).

    Of names, one that is beneath a value meets it as well. No types: of any.
    """

    types: list[str]
    conditions: list[tuple[str, list[str], bool]] = []


class HistoryRequest(_BackplaneMessage, tag="history_request"):
    """Asks for events of the log between two bounds, as far as they concern `user`. Answered with HistoryResponse.

    since: behind this offset, or from this time on; None: from the oldest on. until: up to and with this offset, or
    before this time; None: to the newest. clauses: only what meets one of them is wanted, None: everything; what comes
    may be more than that. limit: of events in the answer.
    """

    request: int
    user: str
    since: HistoryBound | None
    until: HistoryBound | None
    is_descending: bool
    clauses: list[HistoryClause] | None
    limit: _Count


class HistoryCancel(_BackplaneMessage, tag="history_cancel"):
    """Nobody waits for the answer any more. request: as in HistoryRequest."""

    request: int


class StartDraining(_BackplaneMessage, tag="start_draining"):
    """The shard wants no more users and will send its own away; it goes on with its log meanwhile."""


class DrainRequest(_BackplaneMessage, tag="drain_request"):
    """A gateway's wish that a shard leaves. Answered with DrainResponse.

    by: the administrator's name. is_forced: also if no other shard takes users.
    """

    request: int
    shard: int
    by: str = ""
    is_forced: bool = False


class UndrainRequest(_BackplaneMessage, tag="undrain_request"):
    """A gateway's wish that a shard that is being drained stays after all. Answered with DrainResponse."""

    request: int
    shard: int
    by: str = ""


class DisconnectRequest(_BackplaneMessage, tag="disconnect_request"):
    """A gateway's wish that all connections of a user are closed (4410). Answered with DisconnectResponse.

    by: the administrator's name.
    """

    request: int
    user: str
    by: str = ""


class DisconnectCommand(_BackplaneMessage, tag="disconnect_command"):
    """The router's word to each shard for that, with a number of its own. Answered with Disconnected."""

    request: int
    user: str


class DisconnectReport(_BackplaneMessage, tag="disconnect_report"):
    """The shard has closed so many."""

    request: int
    connections: _Count


class DisconnectResponse(_BackplaneMessage, tag="disconnect_response"):
    """So many connections were closed, on all shards. silent_shards: those that have not answered in time."""

    request: int
    connections: _Count
    silent_shards: _Count = 0


class RevokeRequest(_BackplaneMessage, tag="revoke_request"):
    """A gateway's wish that tokens are void. Answered with Revoked."""

    request: int
    revocation: Revocation


class UnrevokeRequest(_BackplaneMessage, tag="unrevoke_request"):
    """… and that they are not any more. Answered with Revoked."""

    request: int
    id: str
    by: str = ""


class RevokeResponse(_BackplaneMessage, tag="revoke_response"):
    """The answer to RevokeRequest and UnrevokeRequest.

    revocation: the one that is in force now, or, for Unrevoke, was; None if there is none, or no room for one more.

    is_kept: whether it is on disk, so that a restart of the router doesn't forget it.
    """

    request: int
    revocation: Revocation | None
    is_kept: bool = True


class RevocationUpdate(_BackplaneMessage, tag="revocation_update"):
    """Changes what tokens are void: `added` and `removed` (ids), for who knows version `after`.

    With `after` None they are all that there are. Who knows another version says hello, and is told all. epoch: of the
    journal that they are in. A peer that knows some of another says so (KnownRevocations).
    """

    epoch: str
    version: int
    prev_version: int | None
    added: list[Revocation]
    removed: list[str] = []


class KnownRevocations(_BackplaneMessage, tag="known_revocations"):
    """What a peer knows of a journal that the router has lost."""

    revocations: list[Revocation]


class StatsRequest(_BackplaneMessage, tag="stats_request"):
    """A gateway's question about the whole system. Answered with Answer."""

    request: int


class Leave(_BackplaneMessage, tag="leave"):
    """The peer ends now, in order."""


class RejoinRequired(_BackplaneMessage, tag="rejoin_required"):
    """The router doesn't know you: say Hello."""


class RingState(_BackplaneMessage, tag="ring_state"):
    """The shards that take users. version grows with each change within an epoch. last_offset: the log's.

    personal_since: the oldest ring by which the receiver, a shard, still gets its users' own events: whom a ring from
    then on took away may stay until it is their turn. removed_shards: (index, connections) of those that this change
    has taken away. earlier_epochs: up to which offset the log is that of another epoch, by epoch.
    """

    epoch: str
    version: int
    last_offset: int
    shards: list[ShardAddress]
    personal_since: int = 0
    removed_shards: list[tuple[int, int]] = []
    earlier_epochs: dict[str, int] = {}


class LogBatch(_BackplaneMessage, tag="log_batch"):
    """The log from behind `after` up to and with `upto`: all of it that is this shard's business.

    traces: of events that have just been published, (offset, traceparent of the span that they belong to), one for each
    trace. What is sent again, or to who comes later, has none.
    """

    epoch: str
    prev_offset: int
    end_offset: int
    events: list[tuple[int, bytes]]
    traces: list[tuple[_Offset, str]] = []


class StateSnapshot(_BackplaneMessage, tag="state_snapshot"):
    """A shard's log begins anew, behind `upto`. events: the present value of each state there, (offset, event).

    forgotten_types: there are more states of these types than are remembered.
    """

    epoch: str
    end_offset: int
    events: list[tuple[int, bytes]]
    forgotten_types: list[str] = []


class ReplayResponse(_BackplaneMessage, tag="replay_response"):
    """The log up to and with `upto`. refusal: why it can't be had: `epoch`, `future` or `retention`."""

    request: int
    end_offset: int
    events: list[tuple[int, bytes]]
    refusal: str | None = None


class HistoryResponse(_BackplaneMessage, tag="history_response"):
    """Part of the log, in the order that was asked for: all that is wanted of it from one bound on, to `reached`.

    start, end: the bounds as offsets: what is wanted lies behind `start` and up to `end`. reached: everything up to
    there (descending: from there on) has been looked at; `end` (descending: `start`) when there is no more.
    refusal: `epoch`, `future`, `retention` or `unreadable`; all that is kept lies then behind `start` and up to `end`.
    oldest_at: when the log took the oldest of it; 0 if there is none.
    """

    request: int
    epoch: str
    start: _Offset
    end: _Offset
    reached: _Offset
    events: list[tuple[int, bytes]]
    refusal: str | None = None
    oldest_at: float = 0.0


class UndrainCommand(_BackplaneMessage, tag="undrain_command"):
    """To a shard that is being drained: take users again, and keep those whom the ring then gives you."""


class DrainCommand(_BackplaneMessage, tag="drain_command"):
    """An administrator wants the shard to leave."""


class Diagnose(_BackplaneMessage, tag="diagnose"):
    """The shard is to log what makes it slow. reason: the alert's metric."""

    reason: str


class Superseded(_BackplaneMessage, tag="superseded"):
    """Another process has said hello as the same shard, later: the receiver is to end."""


class IndexTaken(_BackplaneMessage, tag="index_taken"):
    """A process on another host is the shard, and is heard of: the receiver is to wait, or to end if it has users.

    held_by: host and port of the other one.
    """

    held_by: str


class DrainResponse(_BackplaneMessage, tag="drain_response"):
    """The answer to DrainRequest and UndrainRequest.

    users: how many the shard has to send away; None if there is no such shard, or it is not being drained.
    is_known: whether there is such a shard. is_last: it is not drained without force, since no other takes users.
    """

    request: int
    users: int | None
    is_known: bool = False
    is_last: bool = False


class Lease(_BackplaneMessage, tag="lease"):
    """How many connections a shard may have: those of `slots`, by group, and `shared_slots` more of any group.

    A lease takes the place of those with a smaller `fence`, and prolongs the one with the same. It holds for `seconds`
    from when the shard sent the LeaseUsage that it answers (`in_reply_to`), or, if it answers none (0), for as long as
    the lease before. Where it grants less than is used, the shard makes room. groups_without_shared: those that may use
    no shared slot, since they have a limit of their own. full_addresses: they may open no further connection.
    report_threshold: the shard is to say which addresses have so many connections or more, and, however many those
    have, what the `tracked_addresses` have; 0: of none.
    """

    fence: int
    in_reply_to: int
    seconds: float
    slots: dict[str, int]
    shared_slots: int = 0
    groups_without_shared: list[str] = []
    full_addresses: list[str] = []
    report_threshold: int = 0
    tracked_addresses: list[str] = []


class UserConnectedElsewhere(_BackplaneMessage, tag="user_connected_elsewhere"):
    """The user has so many newer connections on another shard: of those here only the newest may stay beside them."""

    user: str
    connections: int


class Fenced(_BackplaneMessage, tag="fenced"):
    """The shard has said what can't be true of its lease, and is no shard any more: it is to end."""

    reason: str


class AdmissionState(_BackplaneMessage, tag="admission_state"):
    """What a gateway needs to refuse a user before a shard has to.

    Part of each HeartbeatResponse to a gateway, which hears it as a message of its own
    (`solowire.backplane.router_link`).

    full_groups: they would get no slot now. unknown_groups_full: whether that holds for a group that nobody is in yet.
    retry_after: seconds. full_addresses: with as many connections as they may have. gateway_count: how many there are.
    is_journal_gone: the journal's file is not under its name any more, so that nothing can be published.
    """

    full_groups: list[str]
    unknown_groups_full: bool
    retry_after: float
    full_addresses: list[str] = []
    gateway_count: int = 1
    is_journal_gone: bool = False


class PublishAck(_BackplaneMessage, tag="publish_ack"):
    """They are in the log. offsets: one for each event. duplicates: indexes of those that were there already."""

    request: int
    epoch: str
    offsets: list[int]
    duplicates: list[int]


class PublishNack(_BackplaneMessage, tag="publish_nack"):
    """None of them is in the log. retry_after: seconds."""

    request: int
    code: str
    message: str
    retry_after: float


class HeartbeatResponse(_BackplaneMessage, tag="heartbeat_response"):
    """The router is alive, and knows you. ring_version: of its ring. lease: a shard's. admission_state: a gateway's.

    revocations_version: of those in force, -1 if there never were any.
    """

    epoch: str
    ring_version: int
    lease: Lease | None = None
    admission_state: AdmissionState | None = None
    revocations_version: int = -1


class ShardReport(_BackplaneMessage):
    """The router's view of a shard. inflight_events: sent and not acked. lag_offsets: offsets not yet acked."""

    address: ShardAddress
    stats: ShardStats
    inflight_events: int
    lag_offsets: int
    is_draining: bool = False


class StatsResponse(_BackplaneMessage, tag="stats_response"):
    """The system's numbers. connections_rejected, …_per_s: by all gateways; `shards` have their own."""

    request: int
    epoch: str
    last_offset: int
    events: int
    duplicates: int
    shards: list[ShardReport]
    gateways: int
    connections_rejected: int = 0
    connections_rejected_per_s: float = 0.0


PeerMessage = (
    Join
    | Heartbeat
    | PublishRequest
    | LogAck
    | StatsRequest
    | Leave
    | ReplayRequest
    | ReplayCancel
    | HistoryRequest
    | HistoryCancel
    | StartDraining
    | DrainRequest
    | UndrainRequest
    | LeaseUsage
    | UsersConnected
    | DisconnectRequest
    | DisconnectReport
    | RevokeRequest
    | UnrevokeRequest
    | KnownRevocations
)
RouterMessage = (
    RejoinRequired
    | RingState
    | LogBatch
    | PublishAck
    | PublishNack
    | HeartbeatResponse
    | StatsResponse
    | StateSnapshot
    | ReplayResponse
    | HistoryResponse
    | DrainCommand
    | UndrainCommand
    | Superseded
    | IndexTaken
    | DrainResponse
    | Lease
    | UserConnectedElsewhere
    | Fenced
    | AdmissionState
    | Diagnose
    | DisconnectCommand
    | DisconnectResponse
    | RevokeResponse
    | RevocationUpdate
)

M = TypeVar("M")

encode = msgspec.msgpack.Encoder().encode
_from_peer: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)
_from_router: msgspec.msgpack.Decoder[RouterMessage] = msgspec.msgpack.Decoder(RouterMessage)


def decode_from_peer(raw: bytes) -> PeerMessage:
    """Raises BackplaneError for anything that is not one of ours."""
    return _decode(_from_peer, raw)


def decode_from_router(raw: bytes) -> RouterMessage:
    """Raises BackplaneError for anything that is not one of ours."""
    return _decode(_from_router, raw)


def _decode(decoder: msgspec.msgpack.Decoder[M], raw: bytes) -> M:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, MemoryError, ValueError) as error:
        raise BackplaneError(str(error)) from None
