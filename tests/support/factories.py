"""Events, as the gateway makes them of what is published; and settings."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel

from solowire.domains.dns.event_types import CATALOG
from solowire.model.events import Event, Priority

S = TypeVar("S", bound=BaseModel)


def change(settings: S, **values: Any) -> S:
    """The settings with other values, by their paths such as `shard__flush__high_ms`; also out of range."""
    update: dict[str, Any] = {}
    for path, value in values.items():
        name, _, rest = path.partition("__")
        update[name] = change(update.get(name, getattr(settings, name)), **{rest: value}) if rest else value
    return settings.model_copy(update=update)


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
