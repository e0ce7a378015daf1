"""The structure of JSON texts: how deep they are nested, and how many values they hold.

What it keeps true: a text is looked at as bytes, by what the interpreter does at once for all of them, and no object is
made of any value. 32 KB of `[],` take a tenth of a millisecond, where a walk over the values takes one. Texts are valid
JSON: for others the answers say nothing.
"""

from __future__ import annotations

from itertools import accumulate

_STEP_OUT = b"\xff"  # -1, as a signed byte
_STEPS = bytes.maketrans(b"{[]}", b"\1\1" + 2 * _STEP_OUT)
_NO_BRACKETS = bytes(set(range(256)).difference(b"{[]}"))
_STEPS_AT_ONCE = 32
_FEW_VALUES = 500
_BEFORE_VALUES = b",[{"
"""Before each value, or member of an object, stands one of these."""


def is_deeper(text: bytes, levels: int) -> bool:
    """Whether `text` has more levels of objects and arrays than `levels`. Brackets are counted one by one near it."""
    if text.count(b"{") + text.count(b"[") <= levels:
        return False
    steps = _drop_strings(text).translate(_STEPS, _NO_BRACKETS)
    depth = 0
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        part = steps[start : start + _STEPS_AT_ONCE]
        closed = part.count(_STEP_OUT)
        opened = len(part) - closed
        end = depth + opened - closed
        # Within the part it is no deeper than either of these, and most often just that.
        if (
            min(depth + opened, end + closed) > levels
            and max(accumulate(memoryview(part).cast("b"), initial=depth)) > levels
        ):
            return True
        depth = end
    return False


def count_values(text: bytes) -> int:
    """How many values `text` holds, nearly: those in arrays, the members of objects, and empty ones of both.

    Where there are few, what looks like more in strings is counted as well, since to drop these takes longer.
    """
    count = text.count(b",") + text.count(b"[") + text.count(b"{")
    if count <= _FEW_VALUES:
        return count
    bare = _drop_strings(text)
    return len(bare) - len(bare.translate(None, _BEFORE_VALUES))


def _drop_strings(text: bytes) -> bytes:
    """What stands between the strings."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(text.split(b'"')[::2])
