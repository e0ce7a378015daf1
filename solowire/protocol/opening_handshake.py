"""The WebSocket's opening handshake (RFC 6455, section 4), as bytes in and bytes out. No socket, no clock.

What it keeps true: a request head is taken apart whole or refused, strictly (RFC 9112): what two readers could read in
two ways is refused. What a handshake must have is judged by `websockets`; what it must not have (a second Host, a body,
HTTP/1.0, an origin that is not allowed), here. Each refusal is a whole HTTP answer that says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from string import ascii_letters
from typing import NamedTuple
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidHeader, InvalidMethod, InvalidUpgrade
from websockets.headers import parse_subprotocol
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from solowire.errors import RequestError, RequestRejected
from solowire.protocol.problem_details import to_http_response

HEAD_BYTES = 16 * 1024
"""What a request head may have: tokens and tickets of 8 KB find room."""
HEAD_END = b"\r\n\r\n"
_ACCEPTED = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
_HEADERS = 100
_LISTS = ("Connection", "Upgrade", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Sec-WebSocket-Version")
_LIST_CHARACTERS = 1024
_SAID = 200
"""How much of what a client says it hears back, and the log has."""
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\x20-\x7e\x80-\xff\t]*)")
_WHOLE_HEAD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [\x21-\x7e]+ HTTP/(\d)\.(\d)\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\x20-\x7e\x80-\xff\t]*\r\n){0,100})\r\n"
)
_FRAMING_HEADER = re.compile(rb"(?im)^(content-length|transfer-encoding|upgrade|expect):([^\r\n]*)")
_PROXY_HINT = (
    "a proxy in between must pass the upgrade on: in nginx proxy_http_version 1.1, Upgrade and Connection headers"
)
MORE_HEADERS: Mapping[int, list[tuple[bytes, bytes]]] = {
    405: [(b"allow", b"GET")],
    426: [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")],
}
"""What an answer with such a status has to say beside the refusal's own headers."""


class Framing(NamedTuple):
    """What of a request head says where its body ends, and whether the protocol is to change.

    expects: whether the client waits for a word before it sends its body.
    """

    method: str
    version: tuple[int, int]
    lengths: list[bytes]
    codings: list[bytes]
    upgrades: list[bytes]
    expects: bool = False


def read_framing(raw: bytes) -> Framing:
    """Checks a whole request head as `parse_head` does, in a fifth of the time; reads its framing.

    Raises RequestRejected.
    """
    found = _WHOLE_HEAD.fullmatch(raw)
    if found is None or found[2] != b"1":
        parse_head(raw)  # which says what is wrong
        raise _make_bad_head(raw, "the request head is none")
    lengths: list[bytes] = []
    codings: list[bytes] = []
    upgrades: list[bytes] = []
    expects = False
    for name, value in _FRAMING_HEADER.findall(found[4]):
        match name[0] | 0x20:
            case 0x63:  # content-length
                lengths.append(value.strip(b" \t"))
            case 0x74:  # transfer-encoding
                codings.append(value.strip(b" \t"))
            case 0x75:  # upgrade
                upgrades.append(value)
            case _:
                expects = True
    return Framing(found[1].decode("ascii"), (int(found[2]), int(found[3])), lengths, codings, upgrades, expects)


class Head:
    """A request head. target: as it was sent; path and query: its parts. version: such as (1, 1)."""

    __slots__ = ("headers", "method", "path", "query", "target", "version")

    def __init__(self, method: str, target: str, version: tuple[int, int], headers: Headers) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.path, _, self.query = target.partition("?")

    @property
    def is_websocket_request(self) -> bool:
        """Whether it asks for the protocol to be changed to WebSocket, rightly or not."""
        return any("websocket" in value.lower() for value in self.headers.get_all("Upgrade"))


def parse_head(raw: bytes) -> Head:
    """Takes a whole request head apart, its end included. Raises RequestRejected."""
    lines = raw.removesuffix(HEAD_END).split(b"\r\n")
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is None:
        raise _make_bad_head(raw, "the first line is no request line, such as GET /ws HTTP/1.1")
    if first[3] != b"1":
        version = f"HTTP/{first[3].decode()}.{first[4].decode()}"
        raise RequestRejected(505, "http_version_not_supported", f"{version} is not spoken here", "use HTTP/1.1")
    if len(lines) - 1 > _HEADERS:
        raise RequestRejected(431, "too_many_headers", f"a request may have {_HEADERS} headers", "send fewer")
    headers = Headers()
    for line in lines[1:]:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _make_bad_head(raw, "a line is no header, such as Name: value")
        headers[header[1].decode("ascii")] = header[2].strip(b" \t").decode("latin-1")
    return Head(first[1].decode("ascii"), first[2].decode("ascii"), (int(first[3]), int(first[4])), headers)


def check_origin(head: Head, allowed: Collection[str], host: str | None = None) -> None:
    """Refuses pages of other sites (RFC 6455, section 10.2). Raises RequestRejected.

    allowed: origins such as `https://app.example.com`, `*` for all; the request's own host is always allowed, whatever
    the port, and so is who sends no origin, which browsers always do. host: the request's own, if not its Host header.
    """
    origins = head.headers.get_all("Origin")
    if not origins:
        return
    if len(origins) > 1:
        raise _make_bad_request("there is more than one Origin")
    origin = origins[0].lower()
    if "*" in allowed or origin in allowed:
        return
    if host is None:
        hosts = head.headers.get_all("Host")
        if len(hosts) != 1:
            raise _make_bad_request("there must be one Host")
        host = hosts[0]
    if (name := _host_name(origin)) and name == _host_name(f"//{host.lower()}"):
        return
    raise RequestRejected(
        403,
        "origin_not_allowed",
        f"pages of {origin[:_SAID]!r} may not connect here",
        "an operator allows others by SOLOWIRE_LISTEN__ALLOWED_ORIGINS",
    )


def check_lists(head: Head) -> None:
    """Refuses a handshake whose lists nobody needs so long. Raises RequestRejected.

    To take them apart costs many times what it costs to send them, and each handshake is judged in one go.
    """
    for name in _LISTS:
        if sum(map(len, head.headers.get_all(name))) > _LIST_CHARACTERS:
            fault = f"{name} may have {_LIST_CHARACTERS} characters in a handshake"
            raise RequestRejected(431, "header_too_large", fault, "offer fewer")


def parse_subprotocols(head: Head) -> list[str]:
    """What the client offers, in its order. Raises RequestRejected."""
    check_lists(head)
    try:
        return [name for value in head.headers.get_all("Sec-WebSocket-Protocol") for name in parse_subprotocol(value)]
    except InvalidHeader as error:
        raise _make_bad_request(str(error)) from None


def render_accept(head: Head, subprotocol: str | None, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The answer that accepts the handshake, with more headers. Raises RequestRejected."""
    headers = head.headers
    check_lists(head)
    if head.version < (1, 1):
        raise RequestRejected(505, "http_version_not_supported", "a WebSocket needs HTTP/1.1", _PROXY_HINT)
    if len(headers.get_all("Host")) != 1:
        raise _make_bad_request("there must be one Host")
    if "Transfer-Encoding" in headers or not set(headers.get_all("Content-Length")) <= {"0"}:
        raise _make_bad_request("a handshake has no body")
    versions = headers.get_all("Sec-WebSocket-Version")
    if len(versions) == 1 and versions[0] != "13":
        raise RequestRejected(
            426,
            "websocket_version_not_supported",
            "the only WebSocket version that is spoken is 13",
            "send Sec-WebSocket-Version: 13",
        )
    try:
        key, _, chosen = _judge(subprotocol).process_request(Request(head.target, headers, head.method))
    except InvalidMethod:
        raise RequestRejected(405, "method_not_allowed", "a WebSocket handshake is a GET", "send GET") from None
    except InvalidUpgrade:
        raise make_upgrade_required() from None
    except InvalidHandshake as error:
        raise _make_bad_request(str(error)) from None
    lines = [f"{_ACCEPTED}{key}"]
    if chosen is not None:
        lines.append(f"Sec-WebSocket-Protocol: {chosen}")
    lines += [f"{name}: {value}" for name, value in more]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def make_upgrade_required() -> RequestRejected:
    """For a plain request where a WebSocket is served."""
    return RequestRejected(
        426, "upgrade_required", "this is a WebSocket: the request must ask for an upgrade", _PROXY_HINT
    )


def check_beginning(data: bytes) -> None:
    """Raises RequestRejected where no HTTP request begins like that.

    Whoever speaks TLS, or a proxy's own protocol, to a plain port would hear nothing until it is cut, and take that for
    a slow network.

    data: what has come until now, not empty.
    """
    if data[0] in _METHOD_BEGINNINGS:
        if data.startswith(b"PROXY "):
            raise RequestRejected(400, "not_http", "the PROXY protocol is not spoken here", _PROXY_PROTOCOL_HINT)
        if data.startswith(b"PRI * HTTP/2"):
            raise RequestRejected(
                400, "not_http", "HTTP/2 is not spoken here", "let clients, or the proxy, use HTTP/1.1"
            )
        line, end, _ = data[:_FIRST_LINE_BYTES].lstrip(b"\r\n").partition(b"\n")
        if not end or b" HTTP/" in line:
            return
    if data[0] == _TLS_HANDSHAKE:
        raise RequestRejected(
            400, "not_http", "TLS is not spoken here", "use http:// and ws://, or a proxy that ends TLS"
        )
    raise RequestRejected(400, "not_http", "that is no HTTP request", "HTTP/1.1 is spoken here, and WebSockets")


_FIRST_LINE_BYTES = 512
"""Of a first line so much is looked at before the whole head has come: others' greetings are shorter."""
_METHOD_BEGINNINGS = frozenset(b"!#$%&'*+-.^_`|~0123456789" + ascii_letters.encode() + b"\r\n")
"""The characters of a token (RFC 9110, section 5.6.2), and an empty line that may come before."""
_TLS_HANDSHAKE = 0x16
_PROXY_PROTOCOL_HINT = "let the proxy write X-Forwarded-For and name it in SOLOWIRE_LISTEN__TRUSTED_PROXIES"


def render_full(message: str, raised: str) -> bytes:
    """What a connection beyond a listener's limit is told. raised: what an operator raises for more of them."""
    hint = f"try again in a moment; an operator raises {raised}"
    return render_rejection(RequestRejected(503, "too_many_connections", message, hint, 1.0))


def render_rejection(error: RequestError, *, close: bool = True) -> bytes:
    """A refusal as a whole HTTP/1.1 answer, after which the connection is closed unless `close` is False."""
    status, headers, body = to_http_response(error)
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % header for header in (*headers, *MORE_HEADERS.get(status, ()))]
    connection = b"connection: upgrade, close" if status == 426 else b"connection: close"
    lines += [
        b"content-length: %d" % len(body),
        b"cache-control: no-store",
        b"x-content-type-options: nosniff",
        *([connection] if close else []),
    ]
    return b"\r\n".join(lines) + HEAD_END + body


@lru_cache(maxsize=16)
def _judge(subprotocol: str | None) -> ServerProtocol:
    """One for all handshakes that choose the same: what it keeps of each is never asked for."""
    return ServerProtocol(subprotocols=[Subprotocol(subprotocol)] if subprotocol else None)


def _make_bad_request(message: str) -> RequestRejected:
    message = message[:_SAID]  # a client's own words may be in it
    return RequestRejected(400, "bad_handshake", message, "RFC 6455, section 4.1, says what a handshake is to have")


def _make_bad_head(raw: bytes, message: str) -> RequestRejected:
    """For a head that can't be taken apart: of a handshake, or of any other request."""
    if b"\nupgrade:" in raw.lower():
        return _make_bad_request(message)
    return RequestRejected(
        400, "bad_request", message, "RFC 9112, sections 2 to 5, says what a request is to look like"
    )


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
