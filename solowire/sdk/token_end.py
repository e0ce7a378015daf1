"""End of a fixed token: when to tell of it, so that there is another one in time.

What it keeps true: of one token a process tells once at a time, however many publishers show it, and for that it
remembers its hash alone. It is read and not verified, which is the server's business; one that doesn't say when it ends
is not told of.
"""

from __future__ import annotations

import asyncio
import math
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from solowire.algorithms.warning_pace import WarningPace

FIRST_NOTICE_S = 10.0
"""After the start, for what ends within SOON_S: whoever is done by then need not know."""
SOON_S = 86400.0
NOTICES_S = (7 * 86400.0, 86400.0, 3600.0, 60.0)
"""Before the end, and each no sooner than in the last fifth of what the token had left at the start."""
LONGEST_SLEEP_S = 3600.0
"""The machine's clock may be set, or stand still with the machine."""
WAY_OUT = (
    "give one that lives longer (solowire token --ttl 365d), or one that is renewed: a function, or the file of "
    "--token-file"
)

MAX_TOKENS = 1000

_pace = WarningPace(most=MAX_TOKENS, parts_numbers=True)


class _Claims(msgspec.Struct):
    exp: float


def read_token_end(token: str) -> float | None:
    """When the token ends by its own word, unix seconds; None if it doesn't say."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        end = msgspec.json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claims).exp
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    return end if math.isfinite(end) else None


def plan_notices(end: float, now: float) -> list[float]:
    """When to tell of it, in order; unix seconds. Empty if it has ended."""
    left = end - now
    if left <= 0:
        return []
    first = [now + min(FIRST_NOTICE_S, left / 5)] if left <= SOON_S else []
    return first + sorted({end - min(notice, left / 5) for notice in NOTICES_S})


def describe_left(seconds: float) -> str:
    """How long that is, in the largest unit of which it is two or more."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


class TokenEndWatch:
    """Tells of the end of a token by and by. report: called with a sentence."""

    def __init__(self, token: str, report: Callable[[str], object]) -> None:
        self._name = blake2b(token.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._report = report
        self._end = read_token_end(token)
        self._notices: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins, on the running loop."""
        if self._end is not None:
            self._notices = plan_notices(self._end, time.time())
            self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        if self._notices:
            delay = min(max(0.0, self._notices[0] - time.time()), LONGEST_SLEEP_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self._check)

    def _check(self) -> None:
        now = time.time()
        is_due = False
        while self._notices and self._notices[0] <= now:
            self._notices.pop(0)
            is_due = True
        left = 0.0 if self._end is None else self._end - now
        if is_due and left > 0 and _pace.is_due(self._name, time.monotonic()):
            self._report(f"the token ends in {describe_left(left)}, and nothing goes on with it then: {WAY_OUT}")
        self._schedule()
