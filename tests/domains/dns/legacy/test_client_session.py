"""What old clients say, in all its spellings, and the answers that they parse."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.event_types import CATALOG
from solowire.domains.dns.legacy.client_messages import MESSAGE_TYPES
from solowire.domains.dns.legacy.client_session import LegacySession
from solowire.domains.dns.legacy.event_names import DEFAULTS
from solowire.domains.dns.legacy.frontend_dialect import LegacyDialect
from solowire.model.dialect import GUIDE_PATH, DialectPath, Outcome
from solowire.model.type_declarations import parse_types
from tests.domains.dns.legacy.page import read_frame
from tests.support.factories import event

NOW = "2026-12-01T00:00:00.000Z"
PATH = DialectPath("admin", "/ws/{type}")
DIALECT = LegacyDialect(CATALOG, datetime(2027, 12, 31, tzinfo=UTC), "/guide")


def opened(kind: str = "health", *, is_admin: bool = False, denied: tuple[str, ...] = ()) -> LegacySession:
    session = DIALECT.open_session(DialectPath(kind, "/ws/{type}"), is_admin=is_admin)
    session.open([p for p in session.patterns if p not in denied], NOW)
    return session


def say(session: LegacySession, message: Any, denied: tuple[str, ...] = ()) -> tuple[Outcome, list[dict[str, Any]]]:
    """What comes of a message, and what is answered, with all allowed that is not denied."""
    outcome = session.receive(message if isinstance(message, (str, bytes)) else json.dumps(message), NOW)
    frames = list(outcome.frames)
    if outcome.is_change:
        frames += session.confirm([p for p in session.patterns if p not in denied], NOW)
    return outcome, [read_frame(frame) for frame in frames]


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_the_first_frame_says_what_is_subscribed_and_until_when(kind: str) -> None:
    """`connection_established` with the type's defaults, and our word that this ends."""
    session = DIALECT.open_session(DialectPath(kind, "/ws/{type}"), is_admin=False)
    [frame] = map(read_frame, session.open(session.patterns, NOW))
    assert (frame["type"], frame["timestamp"]) == ("connection_established", NOW)
    assert frame["data"]["connection_type"] == kind
    assert frame["data"]["subscribed_events"] == list(DEFAULTS[kind])
    assert frame["data"]["deprecation"].keys() == {"message", "sunset", "migration_guide"}
    assert frame["data"]["deprecation"]["sunset"] == "2027-12-31T00:00:00Z"


def test_what_a_user_may_not_see_is_not_subscribed() -> None:
    """The page opens `admin` for everybody, and gets what its user may see."""
    session = DIALECT.open_session(DialectPath("admin", "/ws/{type}"), is_admin=False)
    granted = [p for p in session.patterns if p not in ("user_login", "user_logout", "session_expired")]
    [frame] = map(read_frame, session.open(granted, NOW))
    assert set(DEFAULTS["admin"]) - set(frame["data"]["subscribed_events"]) == {
        "user_login",
        "user_logout",
        "session_expired",
    }


@pytest.mark.parametrize("message", [{"type": "ping"}, {"type": "ping", "data": {}}, {"type": "ping", "data": None}])
def test_ping_is_answered(message: dict[str, Any]) -> None:
    _, [frame] = say(opened(), message)
    assert frame == {"type": "pong", "data": {"timestamp": NOW}, "timestamp": NOW}


@pytest.mark.parametrize("type", ["subscribe", "subscribe_events"])
@pytest.mark.parametrize(
    "spelt",
    [
        {"event_types": ["rpz_update"]},
        {"data": {"event_types": ["rpz_update"]}},
        {"eventTypes": ["rpz_update"]},
        {"data": {"eventTypes": ["rpz_update"]}},
        {"events": ["rpz_update"]},
        {"data": {"events": ["rpz_update"]}},
    ],
)
def test_subscribe_in_all_spellings(type: str, spelt: dict[str, Any]) -> None:
    """The answer says what is subscribed now, and the wish has changed."""
    session = opened()
    outcome, [frame] = say(session, {"type": type, **spelt})
    assert outcome.is_change
    assert frame["type"] == "subscription_updated"
    data = frame["data"]
    assert data["subscribed_events"] == data["subscriptions"] == [*DEFAULTS["health"], "rpz_update"]
    assert (data["updated_at"], data["errors"]) == (NOW, [])
    assert "rpz_update" in session.patterns


@pytest.mark.parametrize("type", ["unsubscribe", "unsubscribe_events"])
def test_unsubscribe(type: str) -> None:
    """What stands for several of our types goes with all of them."""
    session = opened()
    _, [frame] = say(session, {"type": type, "data": {"event_types": ["system_status", "health_update"]}})
    assert frame["data"]["subscribed_events"] == ["health_alert", "forwarder_status_change"]
    assert set(session.patterns) == {"health_alert", "forwarder_status_change", "forwarder_health"}


def test_a_category() -> None:
    session = opened("security")
    _, [frame] = say(session, {"type": "subscribe_category", "data": {"categories": ["dns", "bulk", "nothing"]}})
    assert frame["type"] == "category_subscription_updated"
    assert frame["data"]["categories"] == ["dns", "bulk"]
    assert frame["data"]["errors"] == ["unknown category: nothing"]
    assert {"zone_created", "bulk_progress"} <= set(session.patterns)


def test_what_is_unknown_or_denied_is_told() -> None:
    """By name, in the answer; it is not subscribed."""
    session = opened()
    message = {"type": "subscribe", "event_types": ["nothing", "audit_log", "rpz_update"]}
    _, [frame] = say(session, message, denied=("audit_log",))
    assert frame["data"]["errors"] == ["unknown event type: nothing", "not allowed: audit_log"]
    assert "audit_log" not in session.patterns
    assert "rpz_update" in session.patterns


def test_a_change_that_is_refused_is_not_in_force() -> None:
    session = opened()
    before = session.patterns
    session.receive('{"type":"subscribe","event_types":["rpz_update"]}', NOW)
    [frame] = map(read_frame, session.reject("rate_limited", "too fast", "wait", NOW))
    assert (frame["type"], frame["data"]["error_code"]) == ("error", "rate_limited")
    assert session.patterns == before


@pytest.mark.parametrize(
    ("message", "about", "answer"),
    [
        ({"type": "get_stats"}, "stats", "stats"),
        ({"type": "get_connection_stats"}, "stats", "connection_stats"),
        ({"type": "get_recent_events", "data": {"limit": 3}}, "recent_events", "recent_events"),
        ({"type": "start_replay", "data": {"start_time": NOW}}, "start_replay", "replay_started"),
        ({"type": "stop_replay"}, "stop_replay", "replay_stopped"),
        ({"type": "get_replay_status", "data": {"replay_id": "x"}}, "replay_status", "replay_status"),
    ],
)
def test_questions_are_the_core_s_to_answer(message: dict[str, Any], about: str, answer: str) -> None:
    session = opened(is_admin=True)
    outcome, _ = say(session, message)
    assert outcome.question is not None
    assert outcome.question.about == about
    [frame] = map(read_frame, session.answer(outcome.question, {}, NOW))
    assert frame["type"] == answer


@pytest.mark.parametrize("asked", [["record_created"], []])
def test_a_replay_writes_what_it_is_of(asked: list[str]) -> None:
    """Also what the socket has not subscribed; what it has, where the client names nothing."""
    session = opened("health")
    data = {"start_time": NOW, "filter_config": {"event_types": asked}}
    outcome, _ = say(session, {"type": "start_replay", "data": data})
    assert outcome.question is not None
    translator = session.make_past_translator(outcome.question.details["names"], ("replay", "r1"))
    record = event("record_created", {"zone": "example.com", "name": "www", "type": "A"})
    alert = event("health_alert", {"message": "m", "level": "warning"})
    written = [translator.translate_event(e, json.loads(e.data), 1) is not None for e in (record, alert)]
    assert written == ([True, False] if asked else [False, True])


def test_statistics_are_for_administrators() -> None:
    outcome, [frame] = say(opened(), {"type": "get_stats"})
    assert outcome.question is None
    assert frame["data"]["error_code"] == "forbidden"
    assert "GET /v1/stats" in frame["data"]["migration"]


def test_statistics_have_the_old_shape() -> None:
    session = opened(is_admin=True)
    outcome, _ = say(session, {"type": "get_stats"})
    assert outcome.question is not None
    found = {"users": 2, "connections": 3, "frames": 4, "queued": 5, "dialect_kinds": {"admin": 1}}
    [frame] = map(read_frame, session.answer(outcome.question, found, NOW))
    data = frame["data"]
    assert (data["total_users"], data["total_connections"], data["total_messages_sent"]) == (2, 3, 4)
    assert data["connection_types"] == {"health": 0, "dns_management": 0, "security": 0, "system": 0, "admin": 1}
    assert data["broadcasting"] is True
    assert {"queue_size", "active_tasks", "supported_events", "supported_connection_types"} <= data.keys()


def test_subscription_info() -> None:
    _, [frame] = say(opened("security"), {"type": "get_subscription_info"})
    assert frame["data"]["subscribed_events"] == list(DEFAULTS["security"])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        ("[" * 10_000, "invalid_json"),
        ("[]", "invalid_message"),
        ("{}", "invalid_message"),
        (b"\x00", "invalid_message"),
        ({"type": 1}, "invalid_message"),
        ({"type": "hello_there"}, "unknown_message_type"),
        ({"type": "subscribe"}, "invalid_message"),
        ({"type": "subscribe", "event_types": [1]}, "invalid_message"),
        ({"type": "subscribe", "event_types": ["a"] * 201}, "too_many"),
        ({"type": "get_recent_events", "data": {"limit": "x"}}, "invalid_message"),
        ({"type": "start_replay", "data": {}}, "invalid_message"),
        (
            {"type": "start_replay", "data": {"start_time": NOW, "filter_config": {"types": ["bind_reload"] * 201}}},
            "too_many",
        ),
        ({"type": "start_replay", "data": {"start_time": NOW, "replay_speed": 0}}, "invalid_message"),
        (
            {"type": "start_replay", "data": {"start_time": NOW, "filter_config": {"event_types": ["nothing"]}}},
            "invalid_message",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(message: Any, code: str) -> None:
    """An error frame, which says what to use instead; the socket is not touched."""
    outcome, [frame] = say(opened(), message)
    assert outcome.is_fault
    data = frame["data"]
    assert (frame["type"], data["error_code"], data["recoverable"]) == ("error", code, True)
    assert "/guide" in data["migration"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.fixed_dictionaries(
        {"type": st.sampled_from(sorted(MESSAGE_TYPES)) | st.text(max_size=5)},
        optional=dict.fromkeys(("data", "event_types", "events", "categories", "id"), json_values),
    )
    | json_values
    | st.text()
    | st.binary()
)
def test_whatever_is_said_is_answered(message: Any) -> None:
    """No message of a client is an exception, and each answer is one that it can read."""
    if isinstance(message, dict) and "data" in message and isinstance(message["data"], dict):
        message["data"] = {**message["data"], "event_types": ["rpz_update"], "limit": 1}
    outcome, frames = say(opened(is_admin=True), message)
    assert frames or outcome.question is not None
    assert outcome.label in MESSAGE_TYPES | {"other"}


@pytest.mark.parametrize(
    ("path", "kind", "pattern"),
    [
        ("/api/websocket/ws/admin", "admin", "/api/websocket/ws/{type}"),
        ("/api/websocket/ws/dns_management", "dns_management", "/api/websocket/ws/{type}"),
        ("/api/websocket/ws", "admin", "/api/websocket/ws"),
        ("/api/unified/ws", "admin", "/api/unified/ws"),
        ("/ws/security", "security", "/ws/{type}"),
        ("/ws/health/17", "health", "/ws/{type}/{user_id}"),
    ],
)
def test_paths(path: str, kind: str, pattern: str) -> None:
    assert DIALECT.find_path(path) == DialectPath(kind, pattern)


@pytest.mark.parametrize(
    "path", ["/", "/ws/", "/ws/nothing", "/ws/health/1/2", "/ws/health/", "/api/websocket/ws/stats", "/api/websocket"]
)
def test_other_paths_are_nobody_s(path: str) -> None:
    assert DIALECT.find_path(path) is None


def test_the_path_of_both_protocols_is_not_certain() -> None:
    """What the client says first decides."""
    assert DIALECT.find_path("/ws") == DialectPath("admin", "/ws", is_certain=False)


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (1012, "", 1000),
        (1012, "draining", 1000),
        (4421, "ring_changed", 1000),
        (1001, "", 1000),
        (4401, "token_expired", 1000),
        (4401, "token_revoked", 1008),
        (4410, "disconnected", 1008),
        (4403, "", 1008),
        (1013, "over_limit", 1013),
        (4409, "", 1013),
        (4413, "", 1013),
        (1009, "", 1009),
        (1002, "", 1002),
    ],
)
def test_close_codes(code: int, reason: str, told: int) -> None:
    """1000 where the page is to come back at once, and nowhere else."""
    assert DIALECT.convert_close_code(code, reason) == told


def test_the_headers_are_those_of_the_standards() -> None:
    """RFC 9745, RFC 8594 and RFC 8288."""
    headers = dict(DIALECT.make_headers("/ws/health"))
    assert headers["Deprecation"] == "@1796083200"
    assert headers["Sunset"] == "Fri, 31 Dec 2027 00:00:00 GMT"
    assert headers["Link"].startswith('</guide>; rel="deprecation"')


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("/ws", "docs/migration"),
        ("/ws/health", "../docs/migration"),
        ("/api/websocket/ws/admin", "../../../docs/migration"),
    ],
)
def test_the_gateway_s_own_guide_is_found_behind_a_prefix(path: str, link: str) -> None:
    """A proxy that serves gateways beneath a path of its own cuts that off what we see."""
    dialect = LegacyDialect(CATALOG, datetime(2027, 12, 31, tzinfo=UTC), GUIDE_PATH)
    found = dict(dialect.make_headers(path))["Link"]
    assert found.startswith(f"<{link}>;")
    for prefix in ("", "/gateways/live"):
        assert urljoin(f"https://dns.example{prefix}{path}", link) == f"https://dns.example{prefix}{GUIDE_PATH}"


def test_no_event_is_taken_for_an_answer() -> None:
    """Whatever the server says by itself has a name that no event type can have."""
    session = opened("admin", is_admin=True)
    said = {read_frame(frame)["type"] for frame in DIALECT.open_session(PATH, is_admin=True).open([], NOW)}
    for name in MESSAGE_TYPES:
        message = {"type": name, "data": {"event_types": ["bind_reload"], "categories": ["dns"], "start_time": NOW}}
        outcome, frames = say(session, message)
        said |= {frame["type"] for frame in frames}
        if outcome.question is not None:
            said |= {read_frame(frame)["type"] for frame in session.answer(outcome.question, {}, NOW)}
    said |= {read_frame(frame)["type"] for frame in session.reject("over_rate", "too many", "", NOW)}
    assert said == DNS.reserved_types - {"ping"}
    assert not DNS.reserved_types & set(CATALOG.names)


def test_a_deployment_s_types_in_a_category_of_the_domain() -> None:
    """Who subscribes to the category gets those, too."""
    [made] = parse_types(
        {"types": {"badge_used": {"category": "users", "schema": {"type": "object"}}}}, "types.toml", CATALOG
    )
    dialect = LegacyDialect(CATALOG.extend([made]), datetime(2027, 12, 31, tzinfo=UTC), "/guide")
    session = dialect.open_session(DialectPath("health", "/ws/{type}"), is_admin=False)
    _, [frame] = say(session, {"type": "subscribe_category", "data": {"categories": ["users"]}})
    assert {"badge_used", "user_login"} <= set(frame["data"]["subscribed_events"])
