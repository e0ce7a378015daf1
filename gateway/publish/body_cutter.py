"""The items of a publish request's body, as they stand in it: events, or what may be none.

What it keeps true: a body is cut without looking into its items, and in steps of a few milliseconds at most, whatever
it holds: 4 MB of `[[1,1,…]]` take fifty times as long to read as events of that size. No more items are made than a
request may have, and none that is larger than an event may be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import Annotated

import msgspec

from solowire.algorithms.json_faults import describe_json_fault
from solowire.errors import RequestError, RequestRejected
from solowire.model.events import MAX_DEPTH

JSON_TYPES = ("application/json", "")
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")

LARGE_BYTES = 128 * 1024
"""Above it items are counted while a body is cut: 4 MB may hold two million, which take a tenth of a second. To count
costs 0.05 ms, too much for a small body."""
HUGE_BYTES = 512 * 1024
"""Above it a body is cut item by item. It costs 1.5 µs for each; what is smaller takes a millisecond at once."""
MAX_COUNTED = 50_000
"""With more events in a request than that, as an operator may allow, they are counted when they are cut."""
STEP_BYTES = 128 * 1024
"""Read in a step, and an item more."""

TOO_DEEP = f"it is nested too deeply: data may have {MAX_DEPTH} levels"

Item = bytes | memoryview | msgspec.Raw
Items = Sequence[Item]

_PACKED_ARRAYS = (*range(0x90, 0xA0), 0xDC, 0xDD)
_NOT_BLANK = re.compile(rb"\S")
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
_FAULT_AT = re.compile(r"\(byte (\d+)\)")
_UNCERTAIN = 16
"""So close to the end of what was looked at a fault may come of the end: it may stand within a number or an escape."""

_NO_ITEM = msgspec.Raw()
_one_json = msgspec.json.Decoder(msgspec.Raw).decode
_one_packed = msgspec.msgpack.Decoder(msgspec.Raw).decode


@cache
def _make_array_decoder(most: int) -> Callable[[bytes], msgspec.Struct]:
    """Decodes a JSON array of `most` items at most, as one object of so many fields; _NO_ITEM where there is none.

    It stops at the first item too many, where a list is made whole before its length is looked at. Raises what msgspec
    raises.
    """
    fields = [(f"item{index}", msgspec.Raw, _NO_ITEM) for index in range(most)]
    array = msgspec.defstruct("_Items", fields, array_like=True, forbid_unknown_fields=True)
    return msgspec.json.Decoder(array).decode


class BodyCutter:
    """Cuts bodies. max_events: in one. max_item_bytes: of one event as it stands there, all included."""

    def __init__(self, max_events: int, max_item_bytes: int) -> None:
        self._max_events = max_events
        self._window = max_item_bytes + 1
        items = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=max_events)]
        self._cut_large_json = _make_array_decoder(max_events) if max_events <= MAX_COUNTED else None
        self._cut_json, self._cut_pack = msgspec.json.Decoder(items).decode, msgspec.msgpack.Decoder(items).decode

    def cut(self, body: bytes, kind: str) -> Generator[None, None, Items]:
        """Yields after each step; returns the items. kind: the media type.

        Behind an item that is too large none is looked for. Raises RequestRejected (413, 415), RequestError.
        """
        if kind in NDJSON_TYPES:
            return (yield from self._cut_lines(body))
        if kind not in (*JSON_TYPES, *MSGPACK_TYPES):
            raise RequestRejected(
                415,
                "unsupported_media_type",
                f"{kind!r} is not understood",
                "send application/json, application/x-ndjson or application/msgpack",
            )
        is_packed = kind in MSGPACK_TYPES
        if not (body[:1] and body[0] in _PACKED_ARRAYS if is_packed else body.lstrip()[:1] == b"["):
            return [body]
        try:
            if len(body) > HUGE_BYTES:
                return (yield from (self._cut_packed_items(body) if is_packed else self._cut_json_items(body)))
            if is_packed:
                return self._cut_pack(body)
            if len(body) > LARGE_BYTES and self._cut_large_json is not None:
                return [item for item in msgspec.structs.astuple(self._cut_large_json(body)) if item is not _NO_ITEM]
            return self._cut_json(body)
        except msgspec.ValidationError:
            raise self._make_too_many() from None
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise make_unreadable(error, kind, body) from None

    def _cut_lines(self, body: bytes) -> Generator[None, None, Items]:
        lines: list[bytes] = []
        position = looked_at = 0
        while position < len(body):
            found = _NOT_BLANK.search(body, position, position + STEP_BYTES)
            if found is None:
                position += STEP_BYTES
            elif len(lines) == self._max_events:
                raise self._make_too_many()
            else:
                end = body.find(b"\n", found.start())
                position = len(body) if end < 0 else end + 1
                lines.append(body[found.start() : position].rstrip(b"\n"))
            if position - looked_at >= STEP_BYTES:
                looked_at = position
                yield
        return lines

    def _cut_json_items(self, body: bytes) -> Generator[None, None, Items]:
        """Of an array. Raises msgspec.DecodeError."""
        items: list[Item] = []
        view = memoryview(body)
        position = looked_at = yield from self._skip_blanks(body, body.index(b"[") + 1)
        if body[position : position + 1] == b"]":
            position += 1
        else:
            while True:
                item, end = self._take_item(view, position, _one_json)
                self._add(items, item)
                if end is None:
                    return items
                if body[end : end + 1] not in (b",", b"]"):
                    raise msgspec.DecodeError(f"JSON is malformed: expected ',' or ']' (byte {end})")
                position = yield from self._skip_blanks(body, end + 1)
                if body[end : end + 1] == b"]":
                    break
                if position - looked_at >= STEP_BYTES:
                    looked_at = position
                    yield
        position = yield from self._skip_blanks(body, position)
        if position < len(body):
            raise msgspec.DecodeError(f"JSON is malformed: trailing characters (byte {position})")
        return items

    def _cut_packed_items(self, body: bytes) -> Generator[None, None, Items]:
        """Of an array. Raises msgspec.DecodeError."""
        size = {0xDC: 2, 0xDD: 4}.get(body[0], 0)
        count = int.from_bytes(body[1 : 1 + size], "big") if size else body[0] & 0x0F
        if count > self._max_events:
            raise self._make_too_many()
        items: list[Item] = []
        view = memoryview(body)
        position = looked_at = 1 + size
        for _ in range(count):
            item, end = self._take_item(view, position, _one_packed)
            items.append(item)
            if end is None:
                return items
            position = end
            if position - looked_at >= STEP_BYTES:
                looked_at = position
                yield
        if position < len(body):
            raise msgspec.DecodeError(f"MessagePack data is malformed: trailing characters (byte {position})")
        return items

    def _take_item(
        self, view: memoryview, position: int, decode: Callable[[memoryview], msgspec.Raw]
    ) -> tuple[memoryview, int | None]:
        """The item that begins at `position`, and where what follows it begins; None if it is too large.

        Raises msgspec.DecodeError, RecursionError.
        """
        window = view[position : position + self._window]
        is_whole = position + len(window) == len(view)
        try:
            decode(window)
        except msgspec.DecodeError as error:
            found = _TRAILING.search(str(error))
            if found is not None:
                # msgspec counts from 1 behind JSON, and from 0 behind MessagePack.
                size = int(found[1]) - (decode is _one_json)
                return window[:size], position + size
            fault = _FAULT_AT.search(str(error))
            if is_whole or (fault is not None and int(fault[1]) < len(window) - _UNCERTAIN):
                raise
            return window, None
        return (window, len(view)) if is_whole else (window, None)

    def _skip_blanks(self, body: bytes, position: int) -> Generator[None, None, int]:
        """Where the next byte that is none stands; behind the body if there is none."""
        while position < len(body):
            if body[position] > 0x20:
                return position
            found = _NOT_BLANK.search(body, position, position + STEP_BYTES)
            if found is not None:
                return found.start()
            position += STEP_BYTES
            yield
        return len(body)

    def _add(self, items: list[Item], item: memoryview) -> None:
        if len(items) == self._max_events:
            raise self._make_too_many()
        items.append(item)

    def _make_too_many(self) -> RequestRejected:
        most = self._max_events
        hint = f"send {most} at most in each; an operator raises SOLOWIRE_PUBLISH__MAX_REQUEST_EVENTS"
        return RequestRejected(413, "too_many_events", f"a request may have {most} events", hint)


def make_unreadable(error: Exception, kind: str, raw: bytes) -> RequestError:
    """The refusal of a body that can't be read. raw: what was to be decoded."""
    reason = TOO_DEEP if isinstance(error, RecursionError) else describe_json_fault(error, raw)
    name = "MessagePack" if kind in MSGPACK_TYPES else "JSON"
    hint = f"the Content-Type says {kind or JSON_TYPES[0]}: send that, or say what it is"
    return RequestError("invalid_body", f"the body is not valid {name}: {reason}", hint)
