"""The one reader of answers takes what servers send, whole or not."""

from __future__ import annotations

import pytest

from bench.http_client import format_request, parse_reply

PLAIN = b'HTTP/1.1 503 No\r\nRetry-After: 2\r\nCONTENT-LENGTH: 21\r\n\r\n{"code":"over_limit"}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize(("answer", "status"), [(PLAIN, 503), (CHUNKED, 200), (UPGRADE, 101)])
def test_an_answer_is_taken_when_it_is_whole(answer: bytes, status: int) -> None:
    """Until its last byte it is none; what follows it is handed back."""
    assert all(parse_reply(answer[:size]) is None for size in range(len(answer)))
    found = parse_reply(answer + b"next")
    assert found is not None
    assert (found[0].status, found[1]) == (status, b"next")


def test_a_refusal_says_what_and_when() -> None:
    """Its code and the time to stay away, however its headers are written; 0 and '' where there are none."""
    found, plain = parse_reply(PLAIN), parse_reply(UPGRADE)
    assert found is not None
    assert plain is not None
    assert (found[0].code, found[0].retry_after) == ("over_limit", 2.0)
    assert (plain[0].code, plain[0].retry_after) == ("", 0.0)


def test_a_request_is_one_write() -> None:
    """Head, further headers and body, with the length of the body."""
    request = format_request("POST", "/x", 80, "A: b\r\n", b"body")
    assert request == b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nA: b\r\nContent-Length: 4\r\n\r\nbody"
