"""Events, as the gateway makes them of what is published."""

from __future__ import annotations

import json
from typing import Any

from solowire.domains.dns.event_types import CATALOG
from solowire.model.events import Event, Priority


def event(name: str = "custom.a", data: dict[str, Any] | None = None, **more: Any) -> Event:
    event_type = CATALOG[name]
    data = data if data is not None else {}
    return Event(
        id=more.pop("id", "id"),
        type=name,
        data=json.dumps(data).encode(),
        priority=more.pop("priority", Priority.normal),
        delivery=event_type.delivery,
        timestamp="2026-01-01T00:00:00Z",
        attributes=CATALOG.validate_data(event_type, data),
        **more,
    )
