"""Solowire: one live WebSocket per user, whatever the number of tabs, panels and event types.

The names here are the Python SDK. They are imported when they are asked for: the servers need none of them.

    algorithms, errors ◄─ model ◄─ domains ◄─ protocol, auth, backplane, runtime
        ◄─ observability, fanout, sdk ◄─ gateway, router, workers, sources ◄─ cli
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solowire.errors import (
        BufferFull,
        ClientError,
        ConnectionEnded,
        HistoryRefused,
        MessageRefused,
        PublishRefused,
        SolowireError,
        SubscriptionDenied,
    )
    from solowire.protocol.close_codes import CloseCode
    from solowire.protocol.messages import Notice
    from solowire.protocol.messages import ReceivedEvent as Event
    from solowire.sdk.client import Client, ConnectionState
    from solowire.sdk.history import History
    from solowire.sdk.publisher import Accepted, Publisher, PublisherStats
    from solowire.sdk.sync_publisher import SyncPublisher

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "BufferFull",
    "Client",
    "ClientError",
    "CloseCode",
    "ConnectionEnded",
    "ConnectionState",
    "Event",
    "History",
    "HistoryRefused",
    "MessageRefused",
    "Notice",
    "PublishRefused",
    "Publisher",
    "PublisherStats",
    "SolowireError",
    "SubscriptionDenied",
    "SyncPublisher",
]

_PLACES = {
    "errors": "BufferFull ClientError ConnectionEnded HistoryRefused MessageRefused PublishRefused SolowireError "
    "SubscriptionDenied",
    "protocol.close_codes": "CloseCode",
    "protocol.messages": "Notice ReceivedEvent",
    "sdk.client": "Client ConnectionState",
    "sdk.history": "History",
    "sdk.publisher": "Accepted Publisher PublisherStats",
    "sdk.sync_publisher": "SyncPublisher",
}
_MODULES = {name: f"solowire.{module}" for module, names in _PLACES.items() for name in names.split()}
_OTHER_NAMES = {"Event": "ReceivedEvent"}  # of what a client gets, which is the only event that its user sees


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'solowire' has no attribute {name!r}")
    real = _OTHER_NAMES.get(name, name)
    value = globals()[name] = getattr(import_module(_MODULES[real]), real)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
