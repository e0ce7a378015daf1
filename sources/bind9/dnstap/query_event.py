"""The `dns_query_log` event of an exchange that dnstap told of, as JSON that is ready to be published.

Pure, and made for speed: the JSON is what `solowire.sdk` would make of it, without the checks that these fields, all
ASCII text and numbers of our own making, can't fail.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from typing import Any

import msgspec

from solowire.sources.bind9.dnstap.dns_message import (
    QuestionReader,
    format_query_flags,
    format_response_flags,
    read_rcode,
)
from solowire.sources.bind9.dnstap.exchange_table import Exchange
from solowire.sources.bind9.queries.query_log import EVENT_TYPE, find_zone
from solowire.sources.bind9.queries.query_observer import ObservedQuery

_CACHED = 8_192
_UNKNOWN = "unknown"
"""The client of a message that names none, which `named` does not send."""


class _Data(msgspec.Struct, omit_defaults=True):
    """The fields of `solowire.domains.dns.payloads.DnsQueryLog` that dnstap tells."""

    server: str
    client_ip: str
    client_port: int
    query_domain: str
    query_type: str
    query_class: str
    flags: str | None = None
    response_flags: str | None = None
    protocol: str = ""
    server_ip: str | None = None
    zone: str | None = None
    rcode: str | None = None
    duration_ms: float | None = None
    size_bytes: int | None = None


class _Event(msgspec.Struct):
    type: str
    id: str
    timestamp: str
    source: str
    data: _Data


class QueryEventMaker:
    """Makes events of exchanges.

    server: the name server's name. zones: those that events are labelled with, as `normalize_zones` makes them.
    run_id: begins the ids of all events; another one for each instance.
    """

    def __init__(self, server: str, zones: frozenset[str], run_id: str) -> None:
        self._server = server
        self._zones = zones
        self._run_id = run_id
        self._made_count = 0
        self._questions = QuestionReader()
        self._addresses: dict[bytes, str] = {}
        self._zone_of: dict[str, str | None] = {}
        self._second = 0
        self._second_text = ""
        self._encode = msgspec.json.Encoder().encode

    def make_event(self, exchange: Exchange, now: float) -> tuple[bytes, ObservedQuery] | None:
        """The event's JSON, and what observers are told; None for an exchange without a question.

        now: unix seconds, for messages without a time. Raises DnstapError for a damaged DNS message.
        """
        query, response = exchange.query, exchange.response
        known = query or response
        assert known is not None  # noqa: S101 - an exchange has one of both
        question = self._questions.read_question(known.wire)
        if question is None:
            return None
        name, type, class_, end = question
        asked_at = known.asked_at or (response.asked_at or response.answered_at if response is not None else 0.0) or now
        client_ip = self._format_address(known.asker) or _UNKNOWN
        data = _Data(
            self._server,
            client_ip,
            known.asker_port & 0xFFFF,
            name,
            type,
            class_,
            protocol=known.protocol,
            server_ip=self._format_address(known.asked),
        )
        if query is not None:
            data.flags = format_query_flags(query.wire, end, is_tcp=query.protocol != "UDP")
        if response is not None:
            wire = response.wire
            data.response_flags = format_response_flags(wire)
            data.size_bytes = len(wire)
            data.rcode = read_rcode(wire, end if wire[4:6] == known.wire[4:6] else None)
            if response.answered_at and (begun_at := known.asked_at or response.asked_at):
                duration = response.answered_at - begun_at
                if duration >= 0:
                    data.duration_ms = round(duration * 1e3, 3)
        if self._zones:
            data.zone = self._find_zone(name)
        self._made_count += 1
        event = _Event(
            EVENT_TYPE, f"{self._run_id}-{self._made_count}", self._format_time(asked_at), self._server, data
        )
        return self._encode(event), ObservedQuery(asked_at, client_ip, name, type, data.rcode)

    def _format_address(self, address: bytes) -> str | None:
        text = self._addresses.get(address)
        if text is None:
            if len(address) not in (4, 16):
                return None
            text = str(ipaddress.ip_address(address))
            _keep(self._addresses, address, text)
        return text

    def _find_zone(self, name: str) -> str | None:
        if name in self._zone_of:
            return self._zone_of[name]
        zone = find_zone(name, self._zones)
        _keep(self._zone_of, name, zone)
        return zone

    def _format_time(self, at: float) -> str:
        """RFC 3339 with milliseconds."""
        milliseconds = int(at * 1e3)
        second = milliseconds // 1000
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
        return f"{self._second_text}.{milliseconds % 1000:03}Z"


def _keep(cache: dict[Any, Any], key: object, value: object) -> None:
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = value
