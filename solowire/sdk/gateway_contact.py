"""The contact that the publishers of one process have had with their gateway, where they share it.

Before the first success a fault may mean that something is set up wrongly; after it, a deployment. What one of several
publishers has seen holds for all of them: none takes for final what another knows to pass.
"""

from __future__ import annotations


class GatewayContact:
    """Whether the gateway has answered one of those who share this."""

    def __init__(self) -> None:
        self.has_succeeded = False
