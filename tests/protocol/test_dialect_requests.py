"""Which requests are of old clients, and which are not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.errors import RequestRejected
from solowire.protocol.dialect_codec import DialectCodec, TextBatch, make_batch
from solowire.protocol.dialect_requests import MARK, DialectRequests, find_agent_family
from solowire.protocol.messages import Ping
from solowire.protocol.opening_handshake import Head, parse_head
from solowire.workers.net.frames import encode_message

DIALECT = LegacyDialect(DNS.catalog, datetime(2027, 12, 31, tzinfo=UTC), "/guide")
PAGE = "Origin: http://a.example"
OFFER = "Sec-WebSocket-Protocol: solowire.v1.json"


def head(target: str, *headers: str) -> Head:
    return parse_head("\r\n".join((f"GET {target} HTTP/1.1", "Host: a.example", *headers, "", "")).encode())


@pytest.mark.parametrize(
    ("target", "headers", "is_old"),
    [
        ("/api/websocket/ws/admin?token=x", (), True),
        ("/api/websocket/ws/admin", (OFFER,), True),
        ("/ws?token=x", (PAGE,), True),
        ("/ws?token=x", (), False),  # no browser
        ("/ws?token=x", (PAGE, OFFER), False),
        ("/ws?ticket=x", (PAGE,), False),
        ("/ws", (f"{MARK}: admin",), True),
        ("/v1/connect", (PAGE,), False),
    ],
)
def test_what_an_old_client_is(target: str, headers: tuple[str, ...], is_old: bool) -> None:
    """By its path alone, or at the path of both protocols by what a browser shows."""
    request, requests = head(target, *headers), DialectRequests(DIALECT)
    found = requests.find_path(request)
    assert (found is not None) == is_old
    assert requests.is_old_client(request.path) == (found is not None and found.is_certain)
    assert DialectRequests().find_path(request) is None


def test_where_they_are_off() -> None:
    """410 with the guide, but for the path that others use, too."""
    requests = DialectRequests(DIALECT, is_on=False)
    with pytest.raises(RequestRejected) as refused:
        requests.find_path(head("/ws/health?token=x"))
    assert (refused.value.status, refused.value.code) == (410, "legacy_off")
    assert "/guide" in refused.value.hint
    assert ("sunset", "Fri, 31 Dec 2027 00:00:00 GMT") in refused.value.headers
    assert requests.find_path(head("/ws?token=x", PAGE)) is None
    assert not requests.is_old_client("/ws/health")


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "firefox"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36", "chrome"),
        ("Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36 Edg/140.0", "edge"),
        ("Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15", "safari"),
        ("Python/3.11 websockets/15.0", "python"),
        ("something of somebody", "other"),
    ],
)
def test_families_of_user_agents(agent: str, family: str) -> None:
    """Few, so that what is counted by them has a bound."""
    assert find_agent_family(head("/ws", f"User-Agent: {agent}")) == family
    assert find_agent_family(head("/ws")) == "none"


def test_a_batch_is_a_text_frame_for_each_line() -> None:
    """Whole WebSocket frames, one after the other; nothing where there is nothing."""
    assert encode_message(make_batch(["{}", '{"a":1}'])) == b'\x81\x02{}\x81\x07{"a":1}'
    assert encode_message(TextBatch()) == b""


def test_nothing_of_solowire_is_written_to_one_that_does_not_speak_it() -> None:
    session = DIALECT.open_session(DIALECT.find_path("/ws/health"), is_admin=False)  # type: ignore[arg-type]
    codec = DialectCodec(session.make_translator("view"), DIALECT.name)
    assert codec.encode(Ping()) == b""
    assert codec.encode_events(7, []) == b""
