"""The SDK's answer to `token_expiring`: a new token from the token function, shown on the connection.

What it keeps true: whatever the server and the token function do, the connection is not burdened with refreshes, let
alone ended by them. There is one task at most; between two refreshes lies a second, and up to MAX_SPACING_S if each is
answered by another notice; a token that was shown already is not shown again, but the function is asked once more in a
moment, since many keep a token until shortly before its end; and one that the server refused is followed by another
four times a minute at most, as ten refusals in a minute end a connection. Users whose tokens end together don't refresh
together: jitter takes up to a quarter of the time that is left.

When the token has ended the server closes with 4401, and the client comes back with the token of that moment.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from solowire.algorithms.backoff import Backoff
from solowire.errors import MessageRefused
from solowire.sdk.token_source import TokenSource, TokenUnavailable

MIN_SPACING_S = 1.0
MAX_SPACING_S = 8.0
MAX_JITTER_S = 5.0
REFUSED_PACE_S = 15.0
CALL_TIMEOUT_S = 10.0
"""How long the token function may take."""

logger = logging.getLogger("solowire.client")


class TokenRenewal:
    """Of one client. show: says `refresh` with a token, and raises MessageRefused."""

    def __init__(self, source: TokenSource, show: Callable[[str], Awaitable[object]]) -> None:
        self._source = source
        self._show = show
        self._task: asyncio.Task[None] | None = None
        self._shown = ""
        self._is_due = False
        self._not_before = 0.0  # on the loop's clock
        self._spacing = MIN_SPACING_S

    def start(self, token: str) -> None:
        """A connection began with this token: what was under way for the one before is void."""
        self.stop()
        self._shown = token

    def stop(self) -> None:
        """The connection is over."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._is_due = False

    async def close(self) -> None:
        """The client is closed: nothing is left running."""
        task = self._task
        self.stop()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def on_notice(self, left: float | None) -> None:
        """The server says that the token ends in `left` seconds; None: it doesn't say when."""
        self._is_due = True
        if self._source.is_renewable and self._task is None:
            self._task = asyncio.create_task(self._run(left), name="solowire token")

    async def _run(self, left: float | None) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._is_due:
                wait = random.uniform(0, min(MAX_JITTER_S, 1.0 if left is None else max(0.0, left) / 4))  # noqa: S311
                late = self._not_before - clock()
                self._spacing = min(2 * self._spacing, MAX_SPACING_S) if late > 0 else MIN_SPACING_S
                await asyncio.sleep(max(wait, late))
                self._is_due = False
                await self._renew()
                self._not_before = clock() + self._spacing
                left = None
        except Exception as end:  # the client's own, too: whatever ended it is raised where it is used
            logger.warning("the token is not refreshed: %s", end)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _renew(self) -> None:
        """Shows another token than the one that was shown last, however long it takes to get one."""
        backoff = Backoff(2 * MIN_SPACING_S, MAX_SPACING_S, floor=MIN_SPACING_S)
        while True:
            try:
                token = await self._source.get(CALL_TIMEOUT_S)
            except TokenUnavailable as unavailable:
                logger.warning("the token is not refreshed yet: the connection %s", unavailable.fault.reason)
            else:
                if token != self._shown:
                    self._shown = token
                    try:
                        await self._show(token)
                        return
                    except MessageRefused as refused:
                        logger.warning("the server did not take the new token: %s", refused)
                        await asyncio.sleep(REFUSED_PACE_S)
            await asyncio.sleep(backoff.next_delay())
