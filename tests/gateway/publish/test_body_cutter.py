"""Bodies are cut in steps: the same items as at once, the same faults, and never much read in one step."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solowire.errors import RequestError, RequestRejected
from solowire.gateway.publish import body_cutter
from solowire.gateway.publish.body_cutter import STEP_BYTES, BodyCutter

JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"
MIB = 2**20
WINDOW = 100

Small = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
Blank = st.text(" \n\t\r", max_size=3).map(str.encode)


def run(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """What it returns, and in how many steps."""
    count = 1
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def cut(body: bytes, kind: str, *, in_steps: bool, max_events: int = 5) -> list[bytes] | str:
    """The items without the blanks around them, or the code of the refusal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_cutter, "HUGE_BYTES", 0 if in_steps else 2**40)
        patch.setattr(body_cutter, "STEP_BYTES", 2)
        try:
            items, _ = run(BodyCutter(max_events, WINDOW).cut(body, kind))
        except RequestError as error:
            return error.code
    blanks = b"" if kind == MSGPACK else b" \n\t\r"
    return [bytes(memoryview(item)).strip(blanks) for item in items]


@given(st.lists(Small, max_size=7), Blank, Blank, Blank)
def test_an_array_is_cut_in_steps_as_at_once(items: list[Any], before: bytes, between: bytes, behind: bytes) -> None:
    encoded = [msgspec.json.encode(item) for item in items]
    body = before + b"[" + between + (between + b"," + between).join(encoded) + between + b"]" + behind
    found = cut(body, JSON, in_steps=True)
    assert found == cut(body, JSON, in_steps=False)
    assert found == ("too_many_events" if len(items) > 5 else encoded)
    packed = msgspec.msgpack.encode(items)
    assert cut(packed, MSGPACK, in_steps=True) == cut(packed, MSGPACK, in_steps=False)


@given(st.lists(Small, max_size=5).map(msgspec.json.encode), st.integers(0, 200), st.binary(max_size=3))
@example(b"[1,2]", 4, b"")
@example(b"[1,2]", 4, b",")
@example(b"[1,2]", 5, b"]")
@example(b"[1,2]", 1, b"")
@example(b"[1,2]", 3, b"]")
@example(b"[1,2]", 2, b"{}]")
def test_a_broken_array_is_refused_in_steps_as_at_once(body: bytes, at: int, put: bytes) -> None:
    """Cut anywhere, with whatever behind it."""
    broken = body[:at] + put
    if broken.lstrip()[:1] == b"[":
        assert cut(broken, JSON, in_steps=True) == cut(broken, JSON, in_steps=False)


@given(st.lists(Small, max_size=5).map(msgspec.msgpack.encode), st.integers(0, 200), st.binary(max_size=3))
def test_a_broken_packed_array_is_refused_in_steps_as_at_once(body: bytes, at: int, put: bytes) -> None:
    broken = body[:at] + put
    assert cut(broken, MSGPACK, in_steps=True) == cut(broken, MSGPACK, in_steps=False)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[[" + b"1," * (2 * MIB) + b"1]]", JSON),
        (b'["a",[' + b"[]," * MIB + b"1]]", JSON),
        (b'["' + b"x" * MIB + b'"]', JSON),
        (b"[1" + b"0" * MIB + b"]", JSON),
        (b"\x91\xdd" + (4 * MIB).to_bytes(4, "big") + b"\x01" * (4 * MIB), MSGPACK),
        (b"\x92\xa0\xdb" + MIB.to_bytes(4, "big") + b"x" * MIB, MSGPACK),
    ],
)
def test_an_item_that_is_too_large_is_not_read_to_its_end(body: bytes, kind: str) -> None:
    """One byte more than an event may have tells that it is none; nothing behind it is looked for."""
    items, _ = run(BodyCutter(10, WINDOW).cut(body, kind))
    assert len(memoryview(items[-1])) == WINDOW + 1
    assert all(len(memoryview(item)) <= WINDOW for item in items[:-1])


@pytest.mark.parametrize("blank", [b" ", b"\n", b"\t\r"])
@pytest.mark.parametrize(("before", "behind", "kind"), [(b"[", b"1]", JSON), (b"[1", b"]", JSON), (b"", b"1", NDJSON)])
def test_blanks_are_passed_over_in_steps(blank: bytes, before: bytes, behind: bytes, kind: str) -> None:
    """Four megabytes of nothing held the loop for as long as four of events."""
    items, steps = run(BodyCutter(10, 3 * STEP_BYTES).cut(before + blank * (4 * MIB // len(blank)) + behind, kind))
    assert bytes(memoryview(items[0])).strip() == b"1" or len(memoryview(items[0])) > 3 * STEP_BYTES
    assert steps > 4 * MIB // STEP_BYTES - 2 or before == b"[1"


def test_lines_are_cut_in_steps() -> None:
    body = b'{"a":1}\r\n\n  {"b":2}\n \n[3]'
    assert cut(body, NDJSON, in_steps=True) == [b'{"a":1}', b'{"b":2}', b"[3]"]
    assert cut(b"1\n" * 6, NDJSON, in_steps=True) == "too_many_events"
    _, steps = run(BodyCutter(5000, WINDOW).cut(b'{"a":"%s"}\n' % (b"x" * 500) * 5000, NDJSON))
    assert steps > 15


def test_too_many_are_refused_before_any_is_read() -> None:
    with pytest.raises(RequestRejected, match="may have 5 events"):
        run(BodyCutter(5, WINDOW).cut(b"\xdd\xff\xff\xff\xff" + b"\x01" * MIB, MSGPACK))
