"""The events of a publish request, as the gateway takes them, all at once."""

from __future__ import annotations

from datetime import datetime

from solowire.gateway.publish.event_parser import EventParser
from solowire.model.events import Event


def parse_events(
    parser: EventParser, body: bytes, content_type: str, now: datetime, publisher: str | None = None
) -> list[Event]:
    """All that `EventParser.iter_events` yields; raises what it raises."""
    return [event for event in parser.iter_events(body, content_type, now, publisher) if event is not None]
