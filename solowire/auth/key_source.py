"""The source of a provider's public keys: a JWK set at a URL or in a file, read again and again.

What it keeps true: nothing of it is waited for by the loop: DNS, TLS and sockets are asynchronous, files and the
taking apart of a set are a thread's. A fetch takes FETCH_SECONDS and MAX_BYTES at most and follows no redirect. There
is one at a time; a key that nobody knows asks for one at most every UNKNOWN_KEY_SECONDS, however many come with such.
Where it fails, or what comes is no set, the keys of before stay in use for `stale_s`, and then nobody is believed.

A key is unknown for good by a set alone that was asked for after its token had come: as long as none can be had, or
none is fetched for it yet, the key may be a new one, and nobody's token is wrong (`judge_by_fresh_keys`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import structlog

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.warning_pace import WarningPace
from solowire.auth.key_places import is_local_url, is_url
from solowire.auth.keys import PublicKeys, parse_key_set
from solowire.errors import RequestRejected, UnknownKey
from solowire.model.access import Identity

FETCH_SECONDS = 5.0
MAX_BYTES = 512 * 1024
UNKNOWN_KEY_SECONDS = 10.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
FILE_SECONDS = 2.0
"""How often a file is looked at, at least: it changes when somebody wants it to."""
MAX_WAITING = 256
"""So many may wait for a fetch that is under way; any more are told at once to come again."""
SHORTEST_WAIT_SECONDS = 1.0
"""Sooner nobody is told to come again."""
KEYS_UNAVAILABLE = ("keys_unavailable", "try again in a moment: the provider's keys have to be read again first")
"""The code and the hint for a token that can't be judged now."""

_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}

logger = structlog.get_logger("solowire.keys")


class KeySource:
    """Reads keys and gives them to `use`, also None when they are too old. Begins with `start`.

    place: URL or path. refresh_s, stale_s: how often, and for how long keys may not be had. is_failing: its last
    attempt failed. fetch_count, failed_count: since its start.
    """

    def __init__(
        self, place: str, use: Callable[[PublicKeys | None], None], *, refresh_s: float, stale_s: float
    ) -> None:
        self._place = place
        self._is_url = is_url(place)
        self._set_keys = use
        self._refresh_s = refresh_s if self._is_url else min(refresh_s, FILE_SECONDS)
        self._stale_s = stale_s
        self._fetch_seconds = FETCH_SECONDS
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, floor=FIRST_RETRY_SECONDS / 2)
        self._raw = b""
        self._keys: PublicKeys | None = None
        self._read_at = float("-inf")  # when keys were read last with success
        self._begun_at = float("-inf")  # when that was begun
        self._next_at = float("-inf")  # when they are read again
        self._asked_at = float("-inf")  # when a key that is not known asked last
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._round: asyncio.Future[None] | None = None  # of the fetch that is under way
        self._client: httpx.AsyncClient | None = None
        self._waiting_count = 0
        self.fetch_count = self.failed_count = 0
        self.is_failing = False
        self._warnings = WarningPace()

    @property
    def age_s(self) -> float:
        """How old the keys are that are in use; infinite if there are none."""
        return self._loop.time() - self._read_at

    @property
    def key_count(self) -> int:
        """How many are in use."""
        return 0 if self._keys is None else len(self._keys)

    def start(self) -> None:
        self._round = self._loop.create_future()
        self._running = self._loop.create_task(self._run())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def request_refresh(self) -> asyncio.Future[None] | None:
        """Somebody shows a key that is not known. The fetch to wait for, or None if there is none for it now."""
        now = self._loop.time()
        if self._round is None and now - self._asked_at >= UNKNOWN_KEY_SECONDS:
            self._round = self._loop.create_future()
            self._asked_at = now
            self._wake.set()
        return self._round

    async def wait_for_refresh(self) -> float | None:
        """Waits for the fetch that a key that is not known is worth.

        None if the keys have been read since the call, so that they say it all; else in how many seconds to come again.
        """
        came_at = self._loop.time()
        fetch = self.request_refresh()
        if fetch is None or self._waiting_count >= MAX_WAITING:
            return self._find_wait()
        self._waiting_count += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FETCH_SECONDS + 1):
                    await asyncio.shield(fetch)
        finally:
            self._waiting_count -= 1
        return None if self._begun_at >= came_at else self._find_wait()

    def _find_wait(self) -> float:
        """In how many seconds a key that is not known is worth a fetch, or there is one anyway."""
        return max(SHORTEST_WAIT_SECONDS, min(self._next_at, self._asked_at + UNKNOWN_KEY_SECONDS) - self._loop.time())

    async def _run(self) -> None:
        while True:
            if self._round is None:
                self._round = self._loop.create_future()
            pause = await self._fetch_once()
            self._next_at = self._loop.time() + pause
            done, self._round = self._round, None
            done.set_result(None)
            self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _fetch_once(self) -> float:
        """How long to wait until the next, in seconds."""
        self.fetch_count += 1
        begun_at = self._loop.time()
        try:
            async with asyncio.timeout(self._fetch_seconds):
                raw = await (self._get() if self._is_url else asyncio.to_thread(_read, Path(self._place)))
                if raw != self._raw or self._keys is None:
                    keys = await asyncio.to_thread(parse_key_set, raw)
                    self._raw, self._keys = raw, keys
                    self._set_keys(keys)
                    logger.info(
                        "keys_loaded", keys=len(keys), unused=keys.unused, ids=keys.ids[:20], source=self._place
                    )
        except Exception as error:  # whatever it is, the next one is tried
            return self._note_failure(_reason(error))
        self._read_at, self._begun_at = self._loop.time(), begun_at
        self._backoff.reset()
        if self.is_failing:
            self.is_failing = False
            self._warnings.reset()
            logger.warning("keys_available", source=self._place, hint="tokens of the provider are accepted again")
        return self._refresh_s * random.uniform(0.9, 1.0)  # noqa: S311

    def _note_failure(self, reason: str) -> float:
        self.failed_count += 1
        now = self._loop.time()
        left = self._read_at + self._stale_s - now
        if self._warnings.is_due(reason, now):
            hint = "the keys of before stay in use" if self._keys is not None else "tokens of the provider are refused"
            logger.error("keys_unavailable", source=self._place, reason=reason, hint=hint)
        self.is_failing = True
        if self._keys is not None and left <= 0:
            logger.critical(
                "keys_stale",
                source=self._place,
                stale_s=self._stale_s,
                hint="tokens of the provider are rejected until they can be read",
            )
            self._keys, self._raw = None, b""
            self._set_keys(None)
        pause = min(self._backoff.next_delay(), self._refresh_s)
        return max(0.1, min(pause, left)) if self._keys is not None else pause

    async def _get(self) -> bytes:
        """Fetches the JWK set from its URL. Raises httpx.HTTPError, ValueError."""
        if self._client is None:
            # In a thread: it reads the machine's certificates, which takes 20 ms.
            self._client = await asyncio.to_thread(
                httpx.AsyncClient,
                timeout=FETCH_SECONDS,
                trust_env=not is_local_url(self._place),
                follow_redirects=False,
            )
        pieces, size = [], 0
        async with self._client.stream("GET", self._place, headers=_HEADERS) as answer:
            if answer.status_code != 200:
                raise ValueError(f"it answers {answer.status_code}")
            async for piece in answer.aiter_raw():  # as it comes: what it inflates to would have no bound
                size += len(piece)
                if size > MAX_BYTES:
                    raise ValueError(f"it is larger than {MAX_BYTES} bytes")
                pieces.append(piece)
        return b"".join(pieces)


async def judge_by_fresh_keys(
    identify: Callable[[], Identity], refresh_keys: Callable[[], Awaitable[float | None]] | None
) -> Identity:
    """What `identify` gives, after reading the keys again if need be.

    refresh_keys: as `KeySource.wait_for_refresh`. Raises InvalidToken; RequestRejected if it can't be judged now.
    """
    try:
        return identify()
    except UnknownKey:
        if refresh_keys is None:
            raise
    wait = await refresh_keys()
    try:
        return identify()
    except UnknownKey as error:
        if wait is None:
            raise
        code, hint = KEYS_UNAVAILABLE
        raise RequestRejected(503, code, error.message, hint, retry_after=wait) from None


def _read(path: Path) -> bytes:
    """Reads the JWK set from its file. Raises OSError, ValueError."""
    if not path.is_file():
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    return raw


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it took longer than {FETCH_SECONDS:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__
