"""Messages on a WebSocket of ours, in the codec that was agreed on."""

from __future__ import annotations

import logging
from typing import get_args

import msgspec
from websockets.asyncio.client import ClientConnection

from solowire.errors import InvalidMessage
from solowire.protocol.messages import SUBPROTOCOLS, ClientMessage, Codec, ServerMessage

logger = logging.getLogger("solowire.client")


class _TypedMessage(msgspec.Struct):
    type: str


_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ServerMessage))


async def send_message(socket: ClientConnection, message: ClientMessage) -> None:
    """Sends one message. Raises ConnectionClosed."""
    if _codec_of(socket).is_json:
        await socket.send(msgspec.json.encode(message).decode())
    else:
        await socket.send(msgspec.msgpack.encode(message))


async def receive_message(socket: ClientConnection) -> ServerMessage | None:
    """The next message; None for one of a type that is newer than this client.

    Raises InvalidMessage, ConnectionClosed.
    """
    raw, codec = await socket.recv(), _codec_of(socket)
    try:
        return codec.decode_server(raw)
    except InvalidMessage:
        unknown = _unknown_type(raw, codec)
        if unknown is None:
            raise
        logger.debug("a message of the unknown type %r is ignored", unknown)
        return None


def _codec_of(socket: ClientConnection) -> Codec:
    """What was agreed on; a server that chose nothing speaks JSON."""
    return Codec(socket.subprotocol) if socket.subprotocol in SUBPROTOCOLS else Codec.json


def _unknown_type(raw: str | bytes, codec: Codec) -> str | None:
    """The type of a well-formed message that this version does not know; None if it isn't one."""
    try:
        raw = codec.inflate(raw)
        if codec.is_json:
            name = msgspec.json.decode(raw, type=_TypedMessage).type
        else:
            name = msgspec.msgpack.decode(raw if isinstance(raw, bytes) else raw.encode(), type=_TypedMessage).type
    except (InvalidMessage, msgspec.DecodeError, RecursionError, UnicodeError, ValueError):
        return None
    return None if name in _KNOWN else name
