"""One of named's logs, as a part of a source.

It has a lane of its own to the gateway, as its place in the log follows from what that lane has had acknowledged. It
drops nothing: while the gateway is away the log itself is the buffer.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from solowire.sdk.arguments import Token
from solowire.sdk.gateway_contact import GatewayContact
from solowire.sdk.publisher import Publisher
from solowire.sources.agent.event_outlet import log_rejected
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.line_meaning import LineInterpreter
from solowire.sources.files.log_agent import run_log_agent

BATCH = 1_000
"""Events in one request. One waits for the last's answer, so that a small one would hold a busy log's agent back."""


class LogPart:
    """Publishes what the lines of one log become. url, token: the gateway's. The rest as for `run_log_agent`."""

    def __init__(
        self,
        path: Path,
        interpreter: LineInterpreter,
        *,
        name: str,
        url: str,
        token: Token,
        server: str,
        from_start: bool,
        state_dir: Path,
        contact: GatewayContact,
    ) -> None:
        self.name = name
        self._contact = contact
        self._path = path
        self._interpreter = interpreter
        self._url = url
        self._token = token
        self._server = server
        self._from_start = from_start
        self._state_dir = state_dir

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises ConfigError, PublishRefused."""
        acknowledgements = Acknowledgements()

        def refuse(event: dict[str, Any], problem: dict[str, object]) -> None:
            log_rejected(event, problem)
            acknowledgements.refuse_event(event["id"])

        async with Publisher(
            self._url, self._token, batch=BATCH, on_refused=refuse, contact=self._contact
        ) as publisher:
            await run_log_agent(
                self._path,
                self._interpreter,
                publisher,
                server=self._server,
                from_start=self._from_start,
                stop=stop,
                state_dir=self._state_dir,
                acknowledgements=acknowledgements,
                status=status,
            )
            await publisher.close()  # what it could not send is read again at the next start
