"""The scope that a directly answered request has, and what its head may cost."""

from __future__ import annotations

import time

import pytest

from solowire.gateway.front.direct_request import is_close, read_scope

PEER = ("127.0.0.1", 1)


def test_headers_are_read_without_the_blanks_around_them() -> None:
    """Names in lower case, values as they came, empty ones too."""
    head = b"POST /v1/events?a=b HTTP/1.1\r\nHost:x\r\nA-B: \t c : d \t\r\nEmpty:\r\n\r\n"
    scope = read_scope(head, PEER)
    assert scope["headers"] == [(b"host", b"x"), (b"a-b", b"c : d"), (b"empty", b"")]
    assert (scope["path"], scope["query_string"]) == ("/v1/events", b"a=b")


def test_a_header_of_blanks_costs_no_more_than_one_of_letters() -> None:
    """A pattern that tries each blank as the last one took 140 ms for 16 KB, from anybody."""

    def cost(filling: bytes) -> float:
        head = b"GET /v1/route HTTP/1.1\r\nHost: x\r\nX: a" + filling * 16_000 + b"b\r\n\r\n"
        times = []
        for _ in range(5):
            began = time.process_time()
            read_scope(head, PEER)
            times.append(time.process_time() - began)
        return min(times)

    assert cost(b" ") < 50 * cost(b"x") + 0.005


@pytest.mark.parametrize(("value", "closes"), [(b"close", True), (b"Keep-Alive, Close", True), (b"closed", False)])
def test_who_asks_for_the_end_is_understood(value: bytes, closes: bool) -> None:
    assert is_close(value) is closes
