"""Round trips and losses of real queries to forwarders, in bounded memory."""

from __future__ import annotations

import msgspec
import pytest

from bench.dnstap_frames import make_frame, make_query, make_response
from solowire.domains.dns.payloads import ForwarderHealth
from solowire.sources.bind9.dnstap import forwarder_traffic
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage, make_message_decoder
from solowire.sources.bind9.dnstap.forwarder_traffic import LOST_S, ForwarderTraffic, make_traffic_payload

AT = 1_700_000_000.0
ROOT = "192.0.2.9"
"""No forwarder: it is not asked for recursion."""
decode = make_message_decoder()


def make_message(kind: str, id: int, forwarder: str, rcode: int = 0, took: float = 0.0) -> TappedMessage:
    query = make_query("a.example", id=id, flags=0x0100 if forwarder != ROOT else 0)
    wire = make_response(query, rcode) if kind.endswith("RESPONSE") else query
    answered_at = AT + took if kind.endswith("RESPONSE") else 0.0
    message = decode(make_frame(kind, wire, server=forwarder, at=AT, answered_at=answered_at))
    assert message is not None
    return message


def test_round_trips_losses_and_failures_are_told_of_each_forwarder() -> None:
    traffic = ForwarderTraffic()
    for id in range(20):
        traffic.observe_message(make_message("FORWARDER_QUERY", id, "192.0.2.1"), 0.0)
        if id % 4:
            rcode = 2 if id == 1 else 0
            traffic.observe_message(make_message("FORWARDER_RESPONSE", id, "192.0.2.1", rcode, 0.02), 0.1)
        traffic.observe_message(make_message("RESOLVER_QUERY", id, "2001:db8::1"), 0.0)
        traffic.observe_message(make_message("RESOLVER_QUERY", id, ROOT), 0.0)
    figures = {str(address): make_traffic_payload(address, one) for address, one in traffic.take_figures(LOST_S)}
    assert set(figures) == {"192.0.2.1#53", "2001:db8::1#53"}
    first = figures["192.0.2.1#53"]
    msgspec.convert(first, ForwarderHealth)
    assert (first["status"], first["loss"], first["servfail_ratio"], first["queries"]) == ("degraded", 25.0, 6.67, 20)
    assert first["rtt_ms"] == pytest.approx(20.0)
    assert 15 < first["rtt_p50_ms"] < 25
    assert (figures["2001:db8::1#53"]["status"], figures["2001:db8::1#53"]["loss"]) == ("unhealthy", 100.0)
    assert traffic.take_figures(LOST_S) == [], "the next window begins empty"


def test_what_is_under_way_is_not_lost_yet() -> None:
    traffic = ForwarderTraffic()
    traffic.observe_message(make_message("FORWARDER_QUERY", 1, "192.0.2.1"), 0.0)
    assert traffic.take_figures(LOST_S - 0.1) == []
    traffic.observe_message(make_message("FORWARDER_RESPONSE", 1, "192.0.2.1", took=9.95), LOST_S - 0.05)
    [(address, figures)] = traffic.take_figures(3 * LOST_S)
    data = make_traffic_payload(address, figures)
    assert (data["status"], data["loss"], data["queries"]) == ("healthy", 0.0, 1)


def test_more_forwarders_than_are_counted_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_traffic, "MAX_FORWARDERS", 2)
    monkeypatch.setattr(forwarder_traffic, "MAX_WAITING", 3)
    traffic = ForwarderTraffic()
    for number in range(9):
        traffic.observe_message(make_message("FORWARDER_QUERY", number, f"192.0.2.{number}"), 0.0)
        traffic.observe_message(make_message("FORWARDER_RESPONSE", 99, f"192.0.2.{number}"), 0.0)
    assert len(traffic._waiting) == 3
    assert len(traffic.take_figures(LOST_S)) == 2
