"""The rules as a part of the BIND 9 source: findings are published at once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.security.finding_payload import make_finding_payload
from solowire.sources.bind9.security.refusal_message import Refusal
from solowire.sources.bind9.security.rpz_message import PolicyHit
from solowire.sources.bind9.security.rule_engine import Finding, RuleEngine
from solowire.sources.bind9.security.security_rule import SecurityRule

END_CHECK_S = 1.0
"""How often it is looked whether a finding is over."""


class SecurityPart:
    """Watches queries, policy hits and refusals by rules. It is one of the observers of those who tell of them."""

    name = "security"

    def __init__(self, rules: Sequence[SecurityRule], outlet: EventOutlet) -> None:
        self._outlet = outlet
        self._found = asyncio.Event()
        self._engine = RuleEngine(rules, time.monotonic, self._found.set)
        self._salt = uuid.uuid4().hex
        self._seen_count = 0

    def observe_query(self, query: ObservedQuery) -> None:
        """Takes in one query."""
        self._seen_count += 1
        self._engine.observe_query(query)

    def observe_hit(self, hit: PolicyHit, at: float) -> None:
        """Takes in one policy hit. at: unix seconds."""
        self._seen_count += 1
        self._engine.observe_hit(hit, at)

    def observe_refusal(self, refusal: Refusal, at: float) -> None:
        """Takes in one refused request. at: unix seconds."""
        self._seen_count += 1
        self._engine.observe_refusal(refusal, at)

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes findings until `stop` is set. Raises PublishRefused."""
        status.set_running()
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while True:
                found = asyncio.ensure_future(self._found.wait())
                await asyncio.wait({found, stopping}, timeout=END_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                found.cancel()
                self._found.clear()
                for finding in self._engine.take_findings():
                    await self._publish(finding)
                    status.published_count += 1
                status.read_count = self._seen_count
                if stopping.done():
                    return
        finally:
            stopping.cancel()

    async def _publish(self, finding: Finding) -> None:
        episode = f"{self._salt}-{finding.number}"
        await self._outlet.publish(
            finding.rule.event,
            make_finding_payload(finding),
            id=f"{episode}-{finding.phase}",
            priority="critical" if finding.phase == "began" else "normal",
            correlation_id=episode,
        )
