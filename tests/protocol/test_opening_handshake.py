"""The opening handshake as bytes: what RFC 6455 asks for is accepted, and what it forbids is refused by name.

So is each head that two readers could read in two ways.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from solowire.errors import RequestRejected
from solowire.protocol.opening_handshake import (
    HEAD_BYTES,
    HEAD_END,
    Framing,
    Head,
    check_beginning,
    check_origin,
    make_upgrade_required,
    parse_head,
    parse_subprotocols,
    read_framing,
    render_accept,
    render_rejection,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    b"Host": b"example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def raw_head(first: bytes = b"GET /ws HTTP/1.1", more: bytes = b"", **changed: bytes | None) -> bytes:
    """The head of a good handshake with headers changed (None: left out; `_` for `-`) and more lines behind them."""
    headers = dict(HEADERS)
    for name, value in changed.items():
        key = next(known for known in HEADERS if known.decode().replace("-", "_").lower() == name)
        if value is None:
            del headers[key]
        else:
            headers[key] = value
    lines = b"".join(b"%s: %s\r\n" % header for header in headers.items())
    return first + b"\r\n" + lines + more + b"\r\n"


def handshake(raw: bytes) -> bytes:
    """What a server does with it."""
    head = parse_head(raw)
    check_origin(head, ())
    parse_subprotocols(head)
    return render_accept(head, None)


def refusal(raw: bytes) -> tuple[int, str]:
    """The status and the code with which a handshake is refused."""
    with pytest.raises(RequestRejected) as refused:
        handshake(raw)
    return refused.value.status, refused.value.code


# ------------------------------------------------------------------------------------------------------- the good ones


def test_the_example_of_the_rfc_is_accepted() -> None:
    """With the accept key that RFC 6455, section 1.3, gives for it, with what is added, and whole to the last byte."""
    raw = raw_head(more=b"Sec-WebSocket-Protocol: two, one\r\n")
    answer = render_accept(parse_head(raw), "one", [("X-Solowire-Shard", "3")])
    first, *lines = answer.removesuffix(HEAD_END).split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    assert first == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
    assert (headers[b"upgrade"], headers[b"connection"]) == (b"websocket", b"upgrade")
    assert headers[b"x-solowire-shard"] == b"3"
    assert answer.endswith(HEAD_END)
    assert answer.count(HEAD_END) == 1


def test_a_real_client_takes_the_answer() -> None:
    """The one of `websockets`, with subprotocols: it is told the one that was chosen."""
    client = ClientProtocol(parse_uri("ws://example.com/ws?ticket=x"), subprotocols=["other", "one"])  # type: ignore[list-item]
    client.send_request(client.connect())
    head = parse_head(b"".join(client.data_to_send()))
    assert (head.method, head.path, head.query, head.version) == ("GET", "/ws", "ticket=x", (1, 1))
    assert head.is_websocket_request
    assert parse_subprotocols(head) == ["other", "one"]
    client.receive_data(render_accept(head, "one"))
    assert client.handshake_exc is None
    assert client.subprotocol == "one"


@pytest.mark.parametrize(
    "changed",
    [
        {"upgrade": b"WebSocket"},
        {"connection": b"keep-alive, Upgrade"},
        {"connection": b"upgrade"},
        {"host": b"example.com:8000"},
        {"host": b"[::1]:8000"},
        {"host": b"\t example.com \t"},
        {"first": b"GET http://example.com/ws HTTP/1.1"},
        {"more": b"Content-Length: 0\r\n"},
        {"more": b"Cookie: a=\xc3\xa4\xff\r\n"},
        {"more": b"X-Empty:\r\n"},
        {"more": b"Sec-WebSocket-Extensions: permessage-deflate\r\n"},
    ],
)
def test_what_the_rfc_leaves_open_is_accepted(changed: dict[str, bytes]) -> None:
    """Upper and lower case, further options, white space around a value, an empty body; no extension is agreed on."""
    answer = handshake(raw_head(**changed))
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"extensions" not in answer.lower()


# ---------------------------------------------------------------------------------------------------- what it must have


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"first": b"POST /ws HTTP/1.1"}, 405, "method_not_allowed"),
        ({"first": b"get /ws HTTP/1.1"}, 405, "method_not_allowed"),
        ({"first": b"GET /ws HTTP/1.0"}, 505, "http_version_not_supported"),
        ({"first": b"GET /ws HTTP/0.9"}, 505, "http_version_not_supported"),
        ({"host": None}, 400, "bad_handshake"),
        ({"more": b"Host: example.com\r\n"}, 400, "bad_handshake"),
        ({"more": b"Origin: http://example.com\r\nHost: other.example\r\n"}, 400, "bad_handshake"),
        ({"upgrade": None}, 426, "upgrade_required"),
        ({"upgrade": b"h2c"}, 426, "upgrade_required"),
        ({"connection": None}, 426, "upgrade_required"),
        ({"connection": b"keep-alive"}, 426, "upgrade_required"),
        ({"connection": b"@"}, 400, "bad_handshake"),
        ({"sec_websocket_key": None}, 400, "bad_handshake"),
        ({"sec_websocket_key": b""}, 400, "bad_handshake"),
        ({"sec_websocket_key": b"AAAAAAAAAAAAAAAAAAAA"}, 400, "bad_handshake"),  # 15 bytes
        ({"sec_websocket_key": b"AAAAAAAAAAAAAAAAAAAAAAA="}, 400, "bad_handshake"),  # 17 bytes
        ({"sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZQ="}, 400, "bad_handshake"),  # a padding too few
        ({"sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZ!=="}, 400, "bad_handshake"),
        ({"sec_websocket_key": b"\xe9" * 22 + b"=="}, 400, "bad_handshake"),
        ({"more": b"Sec-WebSocket-Key: " + KEY + b"\r\n"}, 400, "bad_handshake"),
        ({"sec_websocket_version": None}, 400, "bad_handshake"),
        ({"sec_websocket_version": b"8"}, 426, "websocket_version_not_supported"),
        ({"sec_websocket_version": b"14"}, 426, "websocket_version_not_supported"),
        ({"sec_websocket_version": b"013"}, 426, "websocket_version_not_supported"),
        ({"sec_websocket_version": b"13, 8"}, 426, "websocket_version_not_supported"),
        ({"sec_websocket_version": b""}, 426, "websocket_version_not_supported"),
        ({"more": b"Sec-WebSocket-Version: 13\r\n"}, 400, "bad_handshake"),
        ({"more": b"Content-Length: 5\r\n"}, 400, "bad_handshake"),
        ({"more": b"Content-Length: 0\r\nContent-Length: 5\r\n"}, 400, "bad_handshake"),
        ({"more": b"Content-Length: -0\r\n"}, 400, "bad_handshake"),
        ({"more": b"Transfer-Encoding: chunked\r\n"}, 400, "bad_handshake"),
        ({"more": b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n"}, 400, "bad_handshake"),
        ({"more": b"Sec-WebSocket-Protocol: a b\r\n"}, 400, "bad_handshake"),
        ({"more": b"Sec-WebSocket-Protocol: \xe9\r\n"}, 400, "bad_handshake"),
    ],
)
def test_what_a_handshake_lacks_or_must_not_have(changed: dict[str, bytes | None], status: int, code: str) -> None:
    """Method, version of HTTP and of the protocol, Host, key, upgrade, no body (RFC 6455, section 4.2.1)."""
    assert refusal(raw_head(**changed)) == (status, code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/1.1 \r\n\r\n",
        b"GET  /ws HTTP/1.1\r\n\r\n",
        b"GET\t/ws\tHTTP/1.1\r\n\r\n",
        b"GET /w s HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n",
        b"GET /ws http/1.1\r\n\r\n",
        b"GET /ws HTTP/1.10\r\n\r\n",
        b"GET /ws HTTP/11\r\n\r\n",
        b"G@T /ws HTTP/1.1\r\n\r\n",
        b"\r\n" + raw_head(),
        raw_head(b"GET /ws\x00 HTTP/1.1"),
        raw_head(b"GET /ws\rHTTP/1.1"),
        raw_head(more=b" folded: x\r\n"),
        raw_head(more=b"X: a\r\n b\r\n"),
        raw_head(more=b"X: a\r\n\tb\r\n"),
        raw_head(more=b"X : a\r\n"),
        raw_head(more=b"X\r\n"),
        raw_head(more=b": a\r\n"),
        raw_head(more=b"X\xe9: a\r\n"),
        raw_head(more=b"X: a\x00b\r\n"),
        raw_head(more=b"X: a\x7fb\r\n"),
        raw_head(more=b"X: a\x1bb\r\n"),
        raw_head(more=b"X: a\rHost: b\r\n"),
        raw_head(more=b"X: a\nHost: b\r\n"),
        raw_head(more=b"X: a\n"),
        raw_head().replace(b"\r\n", b"\n"),
    ],
)
def test_what_is_no_head_is_refused(raw: bytes) -> None:
    """Folded lines, line feeds or returns alone, NUL, white space in the wrong place: none is read kindly."""
    assert refusal(raw) == (400, "bad_handshake" if b"\nupgrade:" in raw.lower() else "bad_request")


@pytest.mark.parametrize("version", ["2.0", "0.9", "3.0", "9.9"])
def test_a_version_that_is_not_spoken(version: str) -> None:
    """It is refused as such, whoever reads the head."""
    raw = b"GET / HTTP/" + version.encode() + b"\r\nHost: x\r\n\r\n"
    for read in (parse_head, read_framing):
        with pytest.raises(RequestRejected) as refused:
            read(raw)
        assert (refused.value.status, refused.value.code) == (505, "http_version_not_supported")


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.6p1 Debian\r\n", b"EHLO example.com\r\n", b"\r\nNICK ann\n", b"GET /\r\n"]
)
def test_a_greeting_of_another_protocol(greeting: bytes) -> None:
    """Its first line is enough: who waits for an answer to it would hear nothing until it is cut."""
    with pytest.raises(RequestRejected) as refused:
        check_beginning(greeting)
    assert (refused.value.status, refused.value.code) == (400, "not_http")
    check_beginning(greeting.strip(b"\r\n"))  # which may become anything yet


@pytest.mark.parametrize(
    "beginning", [b"GET / HTTP/1.1\r\nHo", b"\r\nGET /x HTTP/1.1\r\n", b"GET /" + b"x" * 4000, b"G"]
)
def test_the_beginning_of_a_request(beginning: bytes) -> None:
    """Whatever has come of it."""
    check_beginning(beginning)


def test_a_hundred_headers_are_taken_and_no_more() -> None:
    """As the refusal says."""
    assert handshake(raw_head(more=b"X: a\r\n" * (100 - len(HEADERS)))).startswith(b"HTTP/1.1 101")
    assert refusal(raw_head(more=b"X: a\r\n" * (101 - len(HEADERS)))) == (431, "too_many_headers")


# -------------------------------------------------------------------------------------------------------------- origin


def origin_is_allowed(origin: str | None, host: str = "example.com", allowed: tuple[str, ...] = ()) -> bool:
    more = b"" if origin is None else b"Origin: %s\r\n" % origin.encode("latin-1")
    try:
        check_origin(parse_head(raw_head(host=host.encode("latin-1"), more=more)), allowed)
    except RequestRejected as error:
        return error.code != "origin_not_allowed"
    return True


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "example.com"),
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),
        ("https://example.com:3000", "example.com:8000"),
        ("https://EXAMPLE.com", "example.COM:8000"),
        ("http://[::1]:3000", "[::1]:8000"),
        ("http://[2001:DB8::1]", "[2001:db8::1]"),
        ("http://127.0.0.1:5173", "127.0.0.1:8000"),
    ],
)
def test_pages_of_the_requests_own_host_may_connect(origin: str | None, host: str) -> None:
    """Whatever the port and however it is spelled; and so may who sends no origin, which is no browser."""
    assert origin_is_allowed(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "example.com"),
        ("https://example.com.evil.example", "example.com"),
        ("https://evilexample.com", "example.com"),
        ("https://example.com@evil.example", "example.com"),
        ("https://evil.example/example.com", "example.com"),
        ("https://evil.example#example.com", "example.com"),
        ("http://[::2]", "[::1]"),
        ("http://[::1", "[::1]"),
        ("http://::1", "[::1]"),
        ("null", "example.com"),
        ("null", "null"),
        ("", "example.com"),
        ("", ""),
        ("file://", ""),
        ("example.com", "example.com"),
        ("*", "example.com"),
        ("http://\xe9", "example.com"),
    ],
)
def test_pages_of_others_may_not(origin: str, host: str) -> None:
    """Also where the one's name is a part of the other's, where there is no name, and for pages without an origin."""
    assert not origin_is_allowed(origin, host)


def test_an_operator_allows_others() -> None:
    """One by one, with scheme and port as they are, or all; the own host need not be named. Case doesn't count."""
    allowed = ("https://app.example", "http://dev.example:3000", "null")
    assert origin_is_allowed("https://app.example", allowed=allowed)
    assert origin_is_allowed("https://APP.example", allowed=allowed)
    assert origin_is_allowed("http://dev.example:3000", allowed=allowed)
    assert origin_is_allowed("null", allowed=allowed)
    assert origin_is_allowed("https://example.com", allowed=allowed)
    for other in ("http://app.example", "https://app.example:8443", "http://dev.example", "https://a.app.example"):
        assert not origin_is_allowed(other, allowed=allowed)
        assert origin_is_allowed(other, allowed=("*",))


def test_two_origins_are_none() -> None:
    """Not even of the same name, and not where all are allowed."""
    head = parse_head(raw_head(more=b"Origin: http://example.com\r\n" * 2))
    with pytest.raises(RequestRejected, match="more than one Origin"):
        check_origin(head, ("*",))


def test_the_host_may_be_known_better_than_by_the_request() -> None:
    """As behind a proxy that is trusted: then that one counts, and the header doesn't."""
    head = parse_head(raw_head(more=b"Origin: https://public.example\r\n"))
    check_origin(head, (), "public.example")
    with pytest.raises(RequestRejected, match="SOLOWIRE_LISTEN__ALLOWED_ORIGINS") as refused:
        check_origin(head, (), "other.example")
    assert refused.value.status == 403


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_refusal_is_a_whole_answer() -> None:
    """With the length of its body, a hint, what the status asks for beside it, and that the connection ends."""
    head, _, body = render_rejection(make_upgrade_required()).partition(HEAD_END)
    first, *lines = head.split(b"\r\n")
    assert first == b"HTTP/1.1 426 Upgrade Required"
    headers = dict(line.split(b": ", 1) for line in lines)
    assert headers[b"sec-websocket-version"] == b"13"
    assert headers[b"upgrade"] == b"websocket"
    assert headers[b"connection"] == b"upgrade, close"
    assert headers[b"cache-control"] == b"no-store"
    assert int(headers[b"content-length"]) == len(body)
    told = msgspec.json.decode(body)
    assert (told["code"], told["status"]) == ("upgrade_required", 426)
    assert b"\r\nallow: GET\r\n" in render_rejection(RequestRejected(405, "method_not_allowed", "", ""))
    assert b"connection" not in render_rejection(RequestRejected(400, "bad", "", ""), close=False)
    assert b"\r\nretry-after: " in render_rejection(RequestRejected(503, "full", "", "", 1.0)).lower()


def test_a_refusal_is_short_whatever_was_sent() -> None:
    """What a client says is repeated to it, and in the log, in part only."""
    for name in (b"Sec-WebSocket-Protocol", b"Connection", b"Origin"):
        with pytest.raises(RequestRejected) as refused:
            handshake(raw_head(more=name + b": " + b"\xff" * 12_000 + b"\r\n"))
        assert len(render_rejection(refused.value)) < 2_000


# ---------------------------------------------------------------------------------------------------------- any bytes


@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, 220), st.binary(max_size=6), st.integers(0, 4)).map(
        lambda how: raw_head()[: how[0]] + how[1] + raw_head()[how[0] + how[2] :]
    )
)
def test_any_bytes_are_a_head_or_a_refusal(raw: bytes) -> None:
    """Whatever comes, nothing else is raised; and what is accepted has one Host, one key and no body."""
    try:
        answer = handshake(raw)
    except RequestRejected as error:
        render_rejection(error)
        return
    assert answer.startswith(b"HTTP/1.1 101 ")
    names = [line.split(b":")[0].lower() for line in raw.split(b"\r\n")]
    assert names.count(b"host") == names.count(b"sec-websocket-key") == 1


@pytest.mark.parametrize("name", [b"Connection", b"Upgrade", b"Sec-WebSocket-Protocol", b"Origin", b"X"])
@pytest.mark.parametrize("piece", [b" ", b",", b", ", b"a,", b";", b'"', b'\\"', b"a", b"[", b"\t"])
def test_a_hostile_head_costs_no_more_than_its_length(name: bytes, piece: bytes) -> None:
    """The largest head that is read is dealt with in a moment: a cost that grew with the square would be seconds."""
    value = (piece * HEAD_BYTES)[: HEAD_BYTES - 300]
    raw = raw_head(more=name + b": a" + value + b"b\r\n")
    spent = []
    for _ in range(3):
        begin = time.process_time()
        with contextlib.suppress(RequestRejected):
            handshake(raw)
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.02


@pytest.mark.parametrize("name", ["Connection", "Upgrade", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"])
def test_lists_that_nobody_needs_are_refused_unread(name: str) -> None:
    """Whether in one line or in many: thousands of names cost the shard a hundred times what they cost to send."""
    for more in (f"{name}: {'a,' * 600}b\r\n", f"{name}: {'a' * 20}\r\n" * 60):
        assert refusal(raw_head(more=more.encode())) == (431, "header_too_large")


def read_by(reader: Callable[[bytes], Any], raw: bytes) -> Any:
    """What it reads, or with which status and words it refuses."""
    try:
        return reader(raw)
    except RequestRejected as refused:
        return refused.status, refused.message


HEADER_NAMES = st.sampled_from(
    ["Content-Length", "TRANSFER-encoding", "Upgrade", "Host", "X-Upgrade", "Content-Lengths"]
)
HEADER_LINES = st.lists(
    st.one_of(
        st.tuples(HEADER_NAMES, st.text(st.characters(max_codepoint=255), max_size=12)).map(lambda h: f"{h[0]}:{h[1]}"),
        st.sampled_from(["Upgrade : x", " Upgrade: x", "Upgrade", ":x", "A: b\r\nUpgrade: c", "A: upgrade: x"]),
    ),
    max_size=6,
)


@given(HEADER_LINES, st.sampled_from(["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "GET  / HTTP/1.1", "GET / HTTP/11"]))
def test_the_framing_of_a_head_is_what_the_whole_head_says(lines: list[str], first: str) -> None:
    """The quick look refuses what the thorough one refuses, and reads the same of what both take."""
    raw = "\r\n".join((first, *lines, "", "")).encode("latin-1")
    head, framing = read_by(parse_head, raw), read_by(read_framing, raw)
    if not isinstance(head, Head) or not isinstance(framing, Framing):
        assert framing == head  # both refuse it, for the same reason
        return
    assert (framing.method, framing.version) == (head.method, head.version)
    assert [value.decode("latin-1") for value in framing.lengths] == head.headers.get_all("Content-Length")
    assert [value.decode("latin-1") for value in framing.codings] == head.headers.get_all("Transfer-Encoding")
    assert [value.strip(b" \t").decode("latin-1") for value in framing.upgrades] == head.headers.get_all("Upgrade")
