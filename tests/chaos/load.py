"""The load: numbered events of several types, for several eyes, at a constant rate; and what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from solowire.sdk.publisher import Accepted, Publisher
from solowire.sdk.retry_policy import Fault
from tests.chaos.checker import ALTERED, REFUSED, Ack, Violation
from tests.chaos.oracle import Made

ZONES = ("a.example", "sub.a.example", "b.example", "xa.example", "c.example", None)
BEAT_SECONDS = 0.05
REQUEST_SECONDS = 3.0


class Ledger:
    """Every event that was made, and where each that was acknowledged stands."""

    def __init__(self) -> None:
        self.made: dict[str, Made] = {}
        self.acks: dict[str, Ack] = {}
        self.violations: list[Violation] = []

    def acknowledged(self, ids: Sequence[str], answer: Accepted, at: float) -> None:
        """One request is one piece of the log: so its ends tell where each event of it stands."""
        first, last = answer.first_offset, answer.last_offset
        if last - first + 1 != len(ids):
            detail = f"{len(ids)} events were given the offsets {first} to {last}"
            self.violations.append(Violation(ALTERED, "publisher", at, first, ids[0], detail=detail))
            return
        for place, id in enumerate(ids):
            self.acks[id] = Ack(first + place, answer.epoch, at)


class Maker:
    """One publisher's events, numbered. Which type and for whom, a seeded chance says."""

    def __init__(self, seed: int, name: str, users: Sequence[str]) -> None:
        self._random = Random(f"{seed} {name}")
        self._name = name
        self._users = users
        self._count = 0
        self._kinds: tuple[Callable[[str, str | None], Made], ...] = (
            self._custom,
            self._custom,
            self._record,
            self._record,
            self._query,
            self._query,
            self._alert,
            self._login,
            self._audit,
            self._personal,
        )

    def next(self) -> Made:
        self._count += 1
        make = self._random.choice(self._kinds)
        return make(f"{self._name}-{self._count}", self._random.choice(ZONES))

    def closing(self) -> list[Made]:
        """One event of each zone that everybody with that zone and custom events gets."""
        self._count += len(ZONES)
        return [self._custom(f"{self._name}-end-{n}", zone) for n, zone in enumerate(ZONES)]

    def _custom(self, id: str, zone: str | None) -> Made:
        topic = self._random.choice(("t1", "t2"))
        data = {"n": id, "topic": topic} | ({"zone": zone} if zone else {})
        return Made(id, "custom.chaos", data, data, _attributes(zone, topic=topic))

    def _personal(self, id: str, zone: str | None) -> Made:
        data = {"n": id, "topic": "t1", "secret": "for one alone"} | ({"zone": zone} if zone else {})
        attributes = _attributes(zone, topic="t1")
        return Made(id, "custom.chaos", data, data, attributes, self._random.choice(self._users))

    def _record(self, id: str, zone: str | None) -> Made:
        zone = zone or "a.example"
        kind = self._random.choice(("A", "TXT"))
        public = {"zone": zone, "name": f"www.{zone}", "type": kind, "value": id, "ttl": 300}
        hidden = {"client": "192.0.2.7", "tsig_key": "update-key", "undeclared": "nobody has said what this is"}
        return Made(id, "record_updated", public | hidden, public, _attributes(zone, record_type=kind))

    def _query(self, id: str, zone: str | None) -> Made:
        # Without a zone of its own, the query's domain is what zones are matched with.
        public = {"query_domain": zone or "elsewhere.test", "query_type": "AAAA", "flags": id}
        if zone and self._random.random() < 0.5:
            public = {**public, "query_domain": f"www.{zone}", "zone": zone}
        attributes = _attributes(public.get("zone") or public["query_domain"])
        return Made(id, "dns_query_log", {**public, "client_ip": "198.51.100.9"}, public, attributes)

    def _alert(self, id: str, zone: str | None) -> Made:
        severity = self._random.choice(("info", "high", "critical"))
        public = {"severity": severity, "message": id} | ({"zone": zone} if zone else {})
        hidden = {"client_ip": "198.51.100.9", "details": {"seen": 3}}
        return Made(id, "security_alert", public | hidden, public, _attributes(zone, severity=severity))

    def _login(self, id: str, zone: str | None) -> Made:
        data = {"user": "someone", "session_id": id, "client_ip": "198.51.100.9", "success": True}
        return Made(id, "user_login", data, {"user": "someone", "success": True}, {"user": "someone"})

    def _audit(self, id: str, zone: str | None) -> Made:
        data = {"action": "changed", "message": id} | ({"zone": zone} if zone else {})
        return Made(id, "audit_event", data, data, _attributes(zone))


def _attributes(zone: str | None, **others: str) -> dict[str, str]:
    return others if zone is None else {"zone": zone, **others}


class WatchedPublisher(Publisher):
    """Writes down what is made and acknowledged; the SDK itself only counts it. clock: seconds of the run."""

    def __init__(self, url: str, token: str, ledger: Ledger, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(url, token, **options)
        self._ledger = ledger
        self._clock = clock

    async def put(self, event: Made) -> None:
        self._ledger.made[event.id] = event
        await self.publish(event.type, event.data, id=event.id, user=event.user)

    async def _post_until_settled(
        self, items: list[bytes], retry_for: float | None, *, is_whole: bool = False
    ) -> Accepted | Fault:
        answer = await super()._post_until_settled(items, retry_for, is_whole=is_whole)
        ids = [msgspec.json.decode(item, type=_Identified).id for item in items]
        if isinstance(answer, Accepted):
            self._ledger.acknowledged(ids, answer, self._clock())
        else:
            self._ledger.violations.append(
                Violation(REFUSED, "publisher", self._clock(), id=ids[0], detail=str(answer))
            )
        return answer


class _Identified(msgspec.Struct):
    id: str


async def publish(
    publisher: WatchedPublisher, maker: Maker, rate: float, stop: asyncio.Event, clock: Callable[[], float]
) -> None:
    """Publishes `rate` events a second until `stop`, then the closing ones, and waits until all are acknowledged.

    Cancelled, it leaves some without an acknowledgement: they may arrive, once at most.
    """
    began = clock()
    count = 0
    while not stop.is_set():
        while count < (clock() - began) * rate:
            await publisher.put(maker.next())
            count += 1
        await asyncio.sleep(BEAT_SECONDS)
    for event in maker.closing():
        await publisher.put(event)
    await publisher.drain()
