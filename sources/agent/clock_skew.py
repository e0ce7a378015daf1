"""The distance of this machine's clock from the gateway's, so that times of several sources can be compared.

Measured as by SNTP: the gateway's time against the middle of the question's and the answer's; the best of SAMPLES, the
one with the shortest round trip. It can be wrong by half of that.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import httpx
import structlog

from solowire.sdk.trusted_certificates import make_context
from solowire.sources.agent.source_status import StatusReporter
from solowire.sources.agent.stop_wait import wait_for_stop

INTERVAL_S = 60.0
SAMPLES = 4
TOLERATED_MS = 1_000.0
"""Beyond it, it is a warning in the log."""
_TIMEOUT_S = 5.0

logger = structlog.get_logger()


async def watch_clock(url: str, status: StatusReporter, stop: asyncio.Event) -> None:
    """Keeps `status.clock_skew_ms` up to date until `stop` is set: positive where this machine's clock is ahead."""
    warned = False
    async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S, verify=make_context(url)) as http:
        while not stop.is_set():
            skew = await _measure(http, url.rstrip("/") + "/healthz")
            if skew is not None:
                status.clock_skew_ms = round(skew, 1)
                if abs(skew) > TOLERATED_MS and not warned:
                    logger.warning(
                        "clock_skewed",
                        skew_ms=round(skew),
                        hint="synchronise this machine's clock and the gateway's (chrony, systemd-timesyncd)",
                    )
                warned = abs(skew) > TOLERATED_MS
            await wait_for_stop(stop, INTERVAL_S)


async def _measure(http: httpx.AsyncClient, url: str) -> float | None:
    """Milliseconds that this clock is ahead; None if the gateway can't be asked, or says no time."""
    best: tuple[float, float] | None = None
    for _ in range(SAMPLES):
        asked = time.time()
        try:
            answer = await http.get(url)
            gateway_at = datetime.fromisoformat(answer.json()["time"]).timestamp()
        except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
        answered = time.time()
        sample = (answered - asked, ((asked + answered) / 2 - gateway_at) * 1000)
        best = sample if best is None else min(best, sample)
    return None if best is None else best[1]
