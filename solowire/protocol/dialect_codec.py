"""The codec of a dialect's connections: events by its translator, each a WebSocket message of its own.

What it keeps true: nothing of `solowire.v1` is written to such a connection. What its session says goes there beside
the codec, as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from solowire.errors import InvalidMessage
from solowire.model.dialect import Translator
from solowire.model.events import Event
from solowire.protocol.messages import ClientMessage, Codec, Id


class TextBatch(bytes):
    """Several text messages that are sent together, one a line; empty where nothing is sent."""

    __slots__ = ()


NOTHING_SENT = TextBatch()


class DialectCodec:
    """In the place of `solowire.protocol.messages.Codec`. label: its name in statistics."""

    is_json = True
    is_deflated = False

    def __init__(self, translator: Translator, label: str) -> None:
        self.label = label
        self._translator = translator

    @property
    def without_deflate(self) -> DialectCodec:
        return self

    def encode(self, message: object) -> TextBatch:
        """A message of `solowire.v1`, of which such a client is told nothing."""
        return NOTHING_SENT

    def decode(self, raw: str | bytes) -> ClientMessage:
        """Raises InvalidMessage: what such a client says is its session's to read."""
        raise InvalidMessage("invalid_message", "this connection does not speak solowire.v1", "open /ws for that")

    def read_id(self, raw: str | bytes) -> Id:
        return None

    def translate_event(self, event: Event, data: dict[str, Any], offset: int) -> bytes | None:
        """An event as a fragment. data: through the reader's view."""
        return self._translator.translate_event(event, data, offset)

    def read_timestamp(self, fragment: bytes) -> str:
        """When the event of a fragment happened, as its frame says it."""
        return self._translator.read_timestamp(fragment)

    def encode_events(
        self, cursor: int, fragments: Sequence[bytes], compacted: dict[str, int] | None = None
    ) -> TextBatch:
        """The frames of these events. Counts of what was left out are not told: no client of a dialect knows them."""
        return TextBatch(self._translator.join_fragments(fragments))


AnyCodec = Codec | DialectCodec
"""How a connection's messages are written, whatever it speaks."""


def make_batch(frames: Iterable[str]) -> TextBatch:
    """Frames of a session, none of which holds a line break."""
    return TextBatch("\n".join(frames).encode())
