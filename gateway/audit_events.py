"""The gateway's audit records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from solowire.backplane.messages import PublishAck
from solowire.errors import RequestError
from solowire.model.access import Identity
from solowire.model.events import Event

MOST_TYPES = 20


def count_types(events: Iterable[Event]) -> dict[str, int]:
    """How many there are of each type; of the MOST_TYPES commonest."""
    return dict(Counter(event.type for event in events).most_common(MOST_TYPES))


class GatewayAudit:
    """Writes the gateway's audit records.

    audit: the audit log, as `solowire.observability.audit.AuditWriter`. address: whence a request came.
    """

    def __init__(self, audit: Callable[..., None] = lambda event, **fields: None) -> None:
        self._audit = audit

    def record_rejection(
        self, action: str, error: RequestError, address: str, identity: Identity | None = None, **about: Any
    ) -> None:
        """Records a rejected request. action: what was refused. identity: who it was, if that is known."""
        if identity is not None:
            about = {"user": identity.user, "role": identity.role, **about}
        self._audit("refused", code=error.code, action=action, address=address, **about)

    def record_administration(self, identity: Identity, action: str, address: str, **about: Any) -> None:
        self._audit("administered", user=identity.user, role=identity.role, address=address, action=action, **about)

    def record_publish(self, identity: Identity, types: dict[str, int], done: PublishAck, address: str) -> None:
        """Records accepted events.

        types: of the request's events, which themselves are not kept until the log has them.
        """
        self._audit(
            "published",
            user=identity.user,
            role=identity.role,
            address=address,
            events=len(done.offsets),
            types=types,
            first=min(done.offsets),
            last=max(done.offsets),
            duplicates=len(done.duplicates),
        )
