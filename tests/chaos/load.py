"""The load: numbered events of several types, for several eyes, at a constant rate; and what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from solowire.errors import PublishRefused
from solowire.publisher import Publisher
from tests.chaos.checker import LOST, Ack, Violation
from tests.chaos.oracle import Made

ZONES = ("a.example", "sub.a.example", "b.example", "xa.example", "c.example", None)
BEAT_SECONDS = 0.1
MAX_BATCH = 50
REQUEST_SECONDS = 3.0


class Ledger:
    """Every event that was made, and where each that was acknowledged stands."""

    def __init__(self) -> None:
        self.made: dict[str, Made] = {}
        self.acks: dict[str, Ack] = {}
        self.violations: list[Violation] = []

    def acknowledged(self, batch: Sequence[Made], epoch: str, first: int, last: int, at: float) -> None:
        """One request is one piece of the log: so its ends tell where each event of it stands."""
        if last - first + 1 != len(batch):
            detail = f"{len(batch)} events were given the offsets {first} to {last}"
            self.violations.append(Violation(LOST, "publisher", at, first, batch[0].id, detail=detail))
            return
        for place, event in enumerate(batch):
            self.acks[event.id] = Ack(first + place, epoch, at)


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


async def publish(
    publisher: Publisher, maker: Maker, ledger: Ledger, rate: float, stop: asyncio.Event, clock: Callable[[], float]
) -> None:
    """Publishes `rate` events a second until `stop`, then the closing ones; what a fault held up is made good.

    Cancelled, it leaves what is under way without an acknowledgement: that may arrive, once at most.
    """
    began = clock()
    count = 0
    while not stop.is_set():
        owed = min(int((clock() - began) * rate) - count, MAX_BATCH)
        if owed > 0:
            await _settle(publisher, [maker.next() for _ in range(owed)], ledger, clock)
            count += owed
        if int((clock() - began) * rate) - count < MAX_BATCH:
            await asyncio.sleep(BEAT_SECONDS)
    await _settle(publisher, maker.closing(), ledger, clock)


async def _settle(publisher: Publisher, batch: list[Made], ledger: Ledger, clock: Callable[[], float]) -> None:
    ledger.made.update((event.id, event) for event in batch)
    try:
        done = await publisher.publish_now([event.as_published() for event in batch])
    except PublishRefused as refused:
        ledger.violations.append(Violation(LOST, "publisher", clock(), id=batch[0].id, detail=str(refused)))
        raise
    ledger.acknowledged(batch, done.epoch, done.first_offset, done.last_offset, clock())
