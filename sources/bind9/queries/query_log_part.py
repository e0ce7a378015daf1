"""The query log as a part of the BIND 9 source.

It has a lane of its own to the gateway, as its place in the log follows from what that lane has had acknowledged. It
drops nothing: while the gateway is away the log itself is the buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from solowire.sdk.arguments import Token
from solowire.sdk.publisher import Publisher
from solowire.sources.agent.event_outlet import log_rejected
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.queries.query_log_agent import run_bind9
from solowire.sources.files.acknowledgements import Acknowledgements


class QueryLogPart:
    """Publishes every query of one query log. The arguments are those of `run_bind9`, and the gateway's."""

    name = "query_log"

    def __init__(
        self,
        query_log: Path,
        *,
        url: str,
        token: Token,
        server: str,
        zones: Iterable[str],
        from_start: bool,
        state_dir: Path,
    ) -> None:
        self.query_log = query_log
        self.url = url
        self.token = token
        self.server = server
        self.zones = frozenset(zones)
        self.from_start = from_start
        self.state_dir = state_dir

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises ConfigError, PublishRefused."""
        acknowledgements = Acknowledgements()

        def refuse(event: dict[str, Any], problem: dict[str, object]) -> None:
            log_rejected(event, problem)
            acknowledgements.refuse_event(event["id"])

        async with Publisher(self.url, self.token, on_refused=refuse) as publisher:
            await run_bind9(
                self.query_log,
                publisher,
                server=self.server,
                from_start=self.from_start,
                zones=self.zones,
                stop=stop,
                state_dir=self.state_dir,
                acknowledgements=acknowledgements,
                begun=status.set_running,
            )
            await publisher.close()  # what it could not send is read again at the next start
