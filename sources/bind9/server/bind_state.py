"""The state of one BIND server: by its log, and by its statistics channel.

A `bind_status` is the newest state, so each one tells all that is known, whoever found it out. While the server is
stopped, what was measured of it is not told.
"""

from __future__ import annotations

from typing import Any, Literal


class BindState:
    """The state of one server. measured: fields of `bind_status` that its statistics tell; empty if nobody asks."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.status: Literal["running", "stopped", "unknown"] | None = None  # nobody has looked yet
        self.reason: str | None = None
        self.version: str | None = None
        self.measured: dict[str, Any] = {}

    def set_status(self, status: Literal["running", "stopped", "unknown"], reason: str | None) -> bool:
        """Takes a status. reason: why, where there is something to say. Returns whether it is another one."""
        is_change = status != self.status
        self.status, self.reason = status, reason
        if status != "running":
            self.measured = {}
        return is_change

    def make_payload(self) -> dict[str, Any]:
        """The data of a `bind_status`."""
        data = {
            "server": self.server,
            "status": self.status or "unknown",
            "reason": self.reason,
            "version": self.version,
        }
        return {name: value for name, value in (data | self.measured).items() if value is not None}
