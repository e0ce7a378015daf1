"""User names in URLs: each has one of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.errors import RequestRejected
from solowire.protocol.user_names import decode_user_name, encode_user_name, one_line


@given(st.text(min_size=1, max_size=256))
def test_any_name_survives_a_path(user: str) -> None:
    """Whatever UTF-8 can say comes back as it was, in a segment that nobody takes apart."""
    segment = encode_user_name(user)
    assert decode_user_name(segment.encode("ascii")) == user
    assert not set(segment) & set("/?#. ")


@pytest.mark.parametrize("raw", [b"%", b"%4", b"%zz", b"%FF", b"%ED%A0%80", b"\xff", b"a%2"])
def test_what_is_no_name(raw: bytes) -> None:
    """What is no percent-encoding of UTF-8 stands for nobody."""
    with pytest.raises(RequestRejected) as caught:
        decode_user_name(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_user_name")


def test_a_name_stays_one_line() -> None:
    """What a terminal would obey is written as an escape, and all else as it is."""
    assert one_line("a\nb\x1b[31mc\x9bd\u2028e") == r"a\nb\x1b[31mc\x9bd\u2028e"
    assert one_line("Zoë ann@example.com/1 漢字") == "Zoë ann@example.com/1 漢字"
