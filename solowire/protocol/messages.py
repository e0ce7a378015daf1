"""The messages between a client and its shard, in JSON and in MessagePack (design, section 7).

Each is a tagged struct; `type` is the tag. `Codec` encodes what the server says and decodes what the client says, and
`decode_server` is the same for the SDK. A message that can't be decoded raises InvalidMessage, whatever was wrong with
it: syntax, UTF-8, depth, range, an unknown type, a field that does not fit.

The `events` frame is not encoded from a struct: `Codec.encode_events` joins fragments that were encoded once (see
`solowire.fanout.feed`). Only such frames are ever compressed; whoever reads is ready for any message of the server to
be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from solowire.algorithms.name_suggestion import find_match
from solowire.errors import InvalidMessage
from solowire.model.subscriptions import DeniedPattern
from solowire.protocol.deflate import SUFFIX, deflate_message, inflate_message

JSON = "solowire.v1.json"
MSGPACK = "solowire.v1.msgpack"
SUBPROTOCOLS = (JSON, MSGPACK, JSON + SUFFIX, MSGPACK + SUFFIX)

MAX_MESSAGE_BYTES = 64 * 1024
MAX_FRAME_BYTES = 64 * 1024

Id = str | int | None
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _ProtocolMessage(msgspec.Struct, tag_field="type", omit_defaults=True, gc=False):
    pass


class _Request(_ProtocolMessage, forbid_unknown_fields=True):
    """Of a client alone. A field that is misspelt is refused: a `hello` without its `subscriptions` asks for all."""


# ---------------------------------------------------------------------------------------------- client → server


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the client stands: everything up to `cursor` of `epoch` has arrived."""

    epoch: str
    cursor: Offset


class Hello(_Request, tag="hello"):
    """The first message. subscriptions: None means the defaults of the role, [] means none.

    filter: for all of them, but for those that `filters` names: each of these has its own there.
    """

    id: Id = None
    subscriptions: list[str] | None = None
    filter: dict[str, list[str]] | None = None
    resume: Resume | None = None
    filters: dict[str, dict[str, list[str]]] | None = None


class Subscribe(_Request, tag="subscribe"):
    event_types: list[str]
    id: Id = None
    filter: dict[str, list[str]] | None = None


class Unsubscribe(_Request, tag="unsubscribe"):
    event_types: list[str]
    id: Id = None


class Ping(_ProtocolMessage, tag="ping"):
    """From either side. time: unix seconds, of whoever sends it. cursor: the server's word where the client stands."""

    id: Id = None
    time: float | None = None
    cursor: Offset | None = None


class Pong(_ProtocolMessage, tag="pong"):
    id: Id = None
    time: float | None = None


class Refresh(_Request, tag="refresh"):
    """A new token for the same user."""

    token: str
    id: Id = None


class Stats(_Request, tag="stats"):
    """Asks for what the shard knows of this connection."""

    id: Id = None


class FetchHistory(_Request, tag="history"):
    """Asks for a page of what was sent before (`solowire.protocol.history_query`). Answered with Reply."""

    id: Id = None
    since: str | None = None
    until: str | None = None
    types: list[str] | None = None
    filter: dict[str, list[str]] | None = None
    limit: int | None = None
    after: str | None = None
    order: str | None = None


ClientMessage = Hello | Subscribe | Unsubscribe | Ping | Pong | Refresh | Stats | FetchHistory

# ---------------------------------------------------------------------------------------------- server → client


class Reconnect(msgspec.Struct, frozen=True):
    min_ms: int
    max_ms: int


class Welcome(_ProtocolMessage, tag="welcome", omit_defaults=False):
    """Answers `hello`. cursor: events after it follow. resumed: whether what was missed follows, all of it.

    reason: why not, if the client asked for it: `epoch`, `retention`, `too_much` or `future`.
    """

    session: str
    user: str
    role: str
    epoch: str
    cursor: int
    resumed: bool
    subscriptions: list[str]
    denied: list[DeniedPattern]
    heartbeat_s: float
    reconnect: Reconnect
    token_expires_at: str | None = None
    reason: str | None = None
    id: Id = None


class Subscriptions(_ProtocolMessage, tag="subscriptions", omit_defaults=False):
    subscriptions: list[str]
    denied: list[DeniedPattern]
    id: Id = None


REPLAYING = "replaying"
"""The code of the notice that the welcome comes later: what the client has missed is still being read."""
STATES_FORGOTTEN = "states_forgotten"
"""The code of the notice that not all present states are remembered."""


class Notice(_ProtocolMessage, tag="notice"):
    """Something that the client should know.

    code: gap, slow_consumer, rate_limited, replaying, token_expiring, draining, deprecated, states_forgotten.

    active: of `slow_consumer`: whether it begins or is over. behind: how many events lay between, at its beginning.
    """

    code: str
    message: str
    after_ms: int | None = None
    active: bool | None = None
    behind: int | None = None


class ReconnectNow(_ProtocolMessage, tag="reconnect"):
    """Go away politely: come back through /v1/connect, no sooner than `after_ms`."""

    after_ms: int
    reason: str


class Reply(_ProtocolMessage, tag="reply"):
    data: dict[str, Any]
    id: Id = None


class Error(_ProtocolMessage, tag="error", omit_defaults=False):
    code: str
    message: str
    hint: str = ""
    id: Id = None
    retry_after: float | msgspec.UnsetType = msgspec.UNSET


class ReceivedEvent(msgspec.Struct, frozen=True):
    """An event as a client gets it. data: the payload through the user's view. timestamp: RFC 3339, UTC."""

    offset: int
    id: str
    type: str
    priority: str
    timestamp: str
    data: dict[str, Any]
    key: str | None = None
    user: str | None = None
    source: str | None = None
    correlation_id: str | None = None


class Events(_ProtocolMessage, tag="events"):
    cursor: int
    events: list[ReceivedEvent]
    compacted: dict[str, int] = {}


ServerMessage = Welcome | Events | Subscriptions | Ping | Pong | Notice | ReconnectNow | Reply | Error

# ---------------------------------------------------------------------------------------------------- the codecs

M = TypeVar("M")

_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()
_decode_json = msgspec.json.Decoder(ClientMessage).decode
_decode_pack = msgspec.msgpack.Decoder(ClientMessage).decode
_decode_server_json = msgspec.json.Decoder(ServerMessage).decode
_decode_server_pack = msgspec.msgpack.Decoder(ServerMessage).decode

_PACK_HEAD = b"\x83" + _pack.encode("type") + _pack.encode("events") + _pack.encode("cursor")
_PACK_EVENTS = _pack.encode("events")


class Codec(Enum):
    """How a connection's messages are written. Its value is the WebSocket subprotocol.

    label: its name in statistics. is_json: else it is MessagePack. is_deflated: frames for many are compressed.
    """

    json = JSON
    msgpack = MSGPACK
    json_deflate = JSON + SUFFIX
    msgpack_deflate = MSGPACK + SUFFIX

    def __init__(self, subprotocol: str) -> None:
        self.label = subprotocol.removeprefix("solowire.v1.")
        self.is_json = subprotocol.startswith(JSON)
        self.is_deflated = subprotocol.endswith(SUFFIX)

    # Members are equal only to themselves; Enum would hash their names, in Python, for every event and feed.
    __hash__ = object.__hash__

    @property
    def without_deflate(self) -> Codec:
        """The same without compression."""
        return Codec(self.value.removesuffix(SUFFIX))

    def encode(self, message: ServerMessage) -> str | bytes:
        """One frame, never a compressed one: str becomes a text frame, bytes a binary one."""
        if self.is_json:
            return _json.encode(message).decode()
        return _pack.encode(message)

    def encode_events(
        self, cursor: int, fragments: Sequence[bytes], compacted: dict[str, int] | None = None
    ) -> str | bytes:
        """An `events` frame of events that are encoded already, none of them again; compressed where that pays.

        compacted: how many of each type were left out.
        """
        if compacted:
            body = self._encode_compacted(cursor, fragments, compacted)
        elif self.is_json:
            body = b'{"type":"events","cursor":%d,"events":[%b]}' % (cursor, b",".join(fragments))
        else:
            body = b"".join((_PACK_HEAD, _pack.encode(cursor), _PACK_EVENTS, _array_head(len(fragments)), *fragments))
        if self.is_deflated and (packed := deflate_message(body)) is not None:
            return packed
        return body.decode() if self.is_json else body

    def _encode_compacted(self, cursor: int, fragments: Sequence[bytes], compacted: dict[str, int]) -> bytes:
        if self.is_json:
            head = b'{"type":"events","cursor":%d,"compacted":%b,"events":[' % (cursor, _json.encode(compacted))
            return head + b",".join(fragments) + b"]}"
        head = b"\x84" + _PACK_HEAD[1:] + _pack.encode(cursor) + _pack.encode("compacted") + _pack.encode(compacted)
        return b"".join((head, _PACK_EVENTS, _array_head(len(fragments)), *fragments))

    def decode(self, raw: str | bytes) -> ClientMessage:
        """A client's message, which is plain in every codec. Raises InvalidMessage."""
        message: ClientMessage = _decode_message(_decode_json if self.is_json else _decode_pack, raw, self)
        return message

    def read_id(self, raw: str | bytes) -> Id:
        """The id of a client's message that is not looked at further."""
        return _read_id(raw, self)

    def decode_server(self, raw: str | bytes) -> ServerMessage:
        """A server's message, for clients. Raises InvalidMessage."""
        decode = _decode_server_json if self.is_json else _decode_server_pack
        message: ServerMessage = _decode_message(decode, self.inflate(raw), self)
        return message

    def inflate(self, raw: str | bytes) -> str | bytes:
        """What a server has sent, without its compression. Raises InvalidMessage."""
        return inflate_message(raw) if self.is_deflated else raw


_TYPES = tuple(str(kind.__struct_config__.tag) for kind in get_args(ClientMessage))
_FIELDS = tuple(dict.fromkeys(name for kind in (*get_args(ClientMessage), Resume) for name in kind.__struct_fields__))
_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)")
_UNKNOWN_TYPE = re.compile(r"Invalid value '(.*)' - at `\$\.type`", re.DOTALL)
_TOLD = 300
"""Characters of a fault that are told."""

_CODECS = {codec.value: codec for codec in Codec}


def choose_codec(offered: Sequence[str]) -> tuple[Codec, str | None]:
    """The codec for a client that offers these subprotocols, and the one to answer with.

    No offer means JSON. Raises InvalidMessage if there is an offer and none of it is ours.
    """
    for name in offered:
        codec = _CODECS.get(name)
        if codec is not None:
            return codec, name
    if offered:
        raise InvalidMessage(
            "unsupported_subprotocol",
            "none of the offered subprotocols is spoken here",
            "offer one of " + ", ".join(SUBPROTOCOLS),
        )
    return Codec.json, None


def _array_head(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _decode_message(decode: Any, raw: str | bytes, codec: Codec) -> Any:
    try:
        if not codec.is_json and isinstance(raw, str):
            raw = raw.encode()
        return decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)
        hint = _hint_for(text)
        if len(text) > _TOLD:  # a name out of the message is in it, whole
            text = text[:_TOLD] + "…"
        raise InvalidMessage("invalid_message", text, hint, _read_id(raw, codec)) from None
    except RecursionError:
        raise InvalidMessage("invalid_message", "it is nested too deeply", "see docs/protocol.md") from None
    except (msgspec.DecodeError, UnicodeError, ValueError, OverflowError) as error:
        name = "JSON" if codec.is_json else "MessagePack"
        hint = f"the subprotocol of this connection says {name}"
        raise InvalidMessage("invalid_message", f"it is not valid {name}: {error}", hint) from None


def _hint_for(text: str) -> str:
    """The way out of what msgspec says of a client's message."""
    if found := _UNKNOWN_FIELD.search(text):
        return _suggest(found[1], _FIELDS)
    if found := _UNKNOWN_TYPE.search(text):
        return _suggest(found[1], _TYPES)
    return "see docs/protocol.md"


def _suggest(wrong: str, known: Sequence[str]) -> str:
    match = find_match(wrong, known)
    return f"did you mean {match!r}?" if match else f"known are {', '.join(known)}"


def _read_id(raw: str | bytes, codec: Codec) -> Id:
    """The id of a message that is well-formed but not one of ours, so that its sender knows which was refused."""
    try:
        if codec.is_json:
            return msgspec.json.decode(raw, type=_IdOnly).id
        return msgspec.msgpack.decode(raw, type=_IdOnly).id  # type: ignore[arg-type]
    except (msgspec.DecodeError, RecursionError, UnicodeError, ValueError):
        return None


class _IdOnly(msgspec.Struct):
    id: Id = None
