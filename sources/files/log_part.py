"""One of named's logs, as a part of a source.

It has a lane of its own to the gateway, as its place in the log follows from what that lane has had acknowledged. It
drops nothing: while the gateway is away the log itself is the buffer.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from solowire.sdk.event_faults import Problem
from solowire.sources.agent.event_outlet import EventOutlet, log_rejected
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.files.acknowledgements import Acknowledgements
from solowire.sources.files.line_meaning import LineInterpreter
from solowire.sources.files.log_agent import run_log_agent


class LogPart:
    """Publishes what the lines of one log become. name: of the part. The rest as for `run_log_agent`."""

    def __init__(
        self,
        path: Path,
        interpreter: LineInterpreter,
        outlet: EventOutlet,
        *,
        name: str,
        from_start: bool,
        state_dir: Path,
    ) -> None:
        self.name = name
        self._path = path
        self._interpreter = interpreter
        self._outlet = outlet
        self._from_start = from_start
        self._state_dir = state_dir

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set. Raises ConfigError, PublishRefused."""
        acknowledgements = Acknowledgements()

        def refuse(event: dict[str, Any], problem: Problem) -> None:
            log_rejected(event, problem)
            acknowledgements.refuse_event(event["id"])

        async with self._outlet.make_log_lane(refuse) as publisher:
            await run_log_agent(
                self._path,
                self._interpreter,
                publisher,
                server=self._outlet.server,
                from_start=self._from_start,
                stop=stop,
                state_dir=self._state_dir,
                acknowledgements=acknowledgements,
                status=status,
            )
            await publisher.close()  # what it could not send is read again at the next start
