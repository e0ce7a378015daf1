"""The messages between processes: MessagePack arrays with a tag, decoded by one typed decoder for each direction.

    peer ──► router   Hello, Heartbeat, Publish, Ack, Ask, Goodbye
    router ──► peer   Who, RingState, Deliver, Published, NotPublished, Beat, Answer

A peer is a shard or a gateway. It says Hello when it starts and when the router asks Who (because the router has
restarted and doesn't know it); the router answers with the ring, and sends the ring again whenever it changes.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from solowire.errors import BackplaneError

VERSION = 1
HEARTBEAT_SECONDS = 1.0
DEAD_AFTER_SECONDS = 3.0


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


class ShardAddress(_Message):
    """Where a shard serves. boot: new for each start of its process."""

    index: int
    host: str
    port: int
    boot: str


class ShardStats(_Message):
    """One second's word of a shard about itself. Totals since its start, unless they are states."""

    connections: int = 0
    feeds: int = 0
    lagging: int = 0
    offset: int = 0
    oldest: int = 0
    log_bytes: int = 0
    events: int = 0
    deliveries: int = 0
    frames: int = 0
    bytes: int = 0
    admitted: int = 0
    refused: int = 0


class Hello(_Message, tag="hello"):
    """boot: the process's. shard: None for a gateway. epoch, offset: up to where a shard's log goes already."""

    version: int
    boot: str
    shard: ShardAddress | None = None
    epoch: str = ""
    offset: int = 0
    credit: int = 0


class Heartbeat(_Message, tag="beat"):
    boot: str
    stats: ShardStats | None = None


class PublishedEvent(_Message):
    """What the router must know of an event, and the event itself as bytes (`events.encode_event`)."""

    id: str
    user: str | None
    body: bytes


class Publish(_Message, tag="publish"):
    """Events to be put in the log, all or none. request: repeated in the answer."""

    request: int
    events: list[PublishedEvent]


class Ack(_Message, tag="ack"):
    """All up to `offset` has been taken into the shard's log; `credit` events may be under way beyond it."""

    epoch: str
    offset: int
    credit: int


class Ask(_Message, tag="ask"):
    """A gateway's question about the whole system. Answered with Answer."""

    request: int


class Goodbye(_Message, tag="bye"):
    """The peer ends now, in order."""


class Who(_Message, tag="who"):
    """The router doesn't know you: say Hello."""


class RingState(_Message, tag="ring"):
    """The shards that are alive. version grows with each change within an epoch. last: the log's newest offset."""

    epoch: str
    version: int
    last: int
    shards: list[ShardAddress]


class Deliver(_Message, tag="deliver"):
    """The log from behind `after` up to and with `upto`: all of it that is this shard's business."""

    epoch: str
    after: int
    upto: int
    events: list[tuple[int, bytes]]


class Published(_Message, tag="published"):
    """They are in the log. offsets: one for each event. duplicates: indexes of those that were there already."""

    request: int
    epoch: str
    offsets: list[int]
    duplicates: list[int]


class NotPublished(_Message, tag="refused"):
    """None of them is in the log. retry_after: seconds."""

    request: int
    code: str
    message: str
    retry_after: float


class Beat(_Message, tag="pulse"):
    """The router is alive, and knows you."""


class ShardReport(_Message):
    """What the router knows of a shard. in_flight: events sent and not acked. behind: offsets not yet acked."""

    address: ShardAddress
    stats: ShardStats
    in_flight: int
    behind: int


class Answer(_Message, tag="answer"):
    request: int
    epoch: str
    last: int
    events: int
    duplicates: int
    shards: list[ShardReport]
    gateways: int


PeerMessage = Hello | Heartbeat | Publish | Ack | Ask | Goodbye
RouterMessage = Who | RingState | Deliver | Published | NotPublished | Beat | Answer

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
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BackplaneError(str(error)) from None
