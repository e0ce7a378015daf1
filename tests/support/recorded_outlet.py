"""An outlet that keeps what a source's parts publish, in place of a gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from solowire.sources.agent.event_outlet import EventOutlet


class RecordedOutlet(EventOutlet):
    """Keeps events as they would be sent, `lane` beside them: `changes` or `telemetry`.

    room: of the telemetry lane, in events.
    """

    def __init__(self, server: str = "ns1", *, room: int = 10**9) -> None:
        super().__init__("http://127.0.0.1:9", "no-token", server=server)
        self.events: list[dict[str, Any]] = []
        self.room = room

    async def __aenter__(self) -> RecordedOutlet:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def publish(self, type: str, data: Mapping[str, Any], **given: Any) -> None:
        self._keep("changes", type, data, given)

    async def offer(self, type: str, data: Mapping[str, Any], **given: Any) -> bool:
        if sum(event["lane"] == "telemetry" for event in self.events) >= self.room:
            self.dropped_count += 1
            return False
        self._keep("telemetry", type, data, given)
        return True

    def offer_many(self, events: Sequence[bytes]) -> int:
        offered = sum(event["lane"] == "telemetry" for event in self.events)
        accepted = events[: max(0, self.room - offered)]
        self.events += [{"lane": "telemetry", **msgspec.json.decode(event)} for event in accepted]
        self.dropped_count += len(events) - len(accepted)
        return len(accepted)

    async def read_newest(
        self, types: Sequence[str], filter: Mapping[str, Sequence[str]], limit: int
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        for event in self.events[: -limit - 1 : -1]:
            if event["type"] in types and all(event["data"].get(name) in filter[name] for name in filter):
                yield event["type"], event["data"]

    async def drain(self) -> None:
        return

    async def drain_changes(self) -> None:
        return

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """The data of all events of one type, in order."""
        return [event["data"] for event in self.events if event["type"] == type]

    def _keep(self, lane: str, type: str, data: Mapping[str, Any], given: dict[str, Any]) -> None:
        named = {name: value for name, value in given.items() if value is not None}
        self.events.append({"lane": lane, "type": type, "data": dict(self._name_server(data)), **named})
