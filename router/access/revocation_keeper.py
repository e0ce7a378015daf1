"""Revocations at the router: what is void, since when, and who is to hear of it.

What it keeps true: each change has a version of its own, which grows also over restarts and over a journal that was
lost: it is never below the time, in milliseconds. A revocation is in the journal before it is answered for, and told to
all others in any case: what could not be kept is in force as well. A router that has lost its journal learns from those
who are still there what they know.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from solowire.auth.revocations import MAX_REVOCATIONS, RevocationTable
from solowire.backplane.messages import KnownRevocations, Revocation, RevocationUpdate
from solowire.router.log.journal import Journal

VERSION_KEY = "revocations"
KEY_PREFIX = "revocation."

logger = structlog.get_logger("solowire.router")


class RevocationKeeper:
    """Keeps revocations in the journal. unix: the time, in seconds."""

    def __init__(self, journal: Journal, unix: float) -> None:
        self._journal = journal
        self.table = RevocationTable()
        self.table.epoch = journal.epoch
        kept = journal.get_metadata(KEY_PREFIX)
        self.table.replace(msgspec.msgpack.decode(value, type=Revocation) for value in kept.values())
        noted = journal.get_metadata_item(VERSION_KEY)
        self.table.version = msgspec.msgpack.decode(noted, type=int) if noted is not None else -1
        self.expire(unix)

    @property
    def version(self) -> int:
        return self.table.version

    def make_snapshot(self) -> RevocationUpdate:
        """All that are in force, for who knows none of them, or others."""
        return self.table.make_snapshot()

    def add(self, revocation: Revocation, unix: float) -> tuple[Revocation | None, bool, RevocationUpdate | None]:
        """The one that is in force now, whether that is kept, and what others are to be told.

        One that says the same as another takes its place, and keeps its id. None if there is no room for one more.
        """
        same = self.table.find_equal(revocation)
        if same is None and len(self.table) >= MAX_REVOCATIONS:
            return None, True, None
        if same is not None:
            until = max(same.until, revocation.until)
            revocation = msgspec.structs.replace(revocation, id=same.id, until=until)
        update = self._change([revocation], [], unix)
        return revocation, self._persist_change([revocation], []), update

    def remove(self, id: str, unix: float) -> tuple[Revocation | None, bool, RevocationUpdate | None]:
        """The one that was in force, if there was one; the rest as of `add`."""
        known = self.table.get(id)
        if known is None:
            return None, True, None
        update = self._change([], [id], unix)
        return known, self._persist_change([], [id]), update

    def merge_known(self, message: KnownRevocations, unix: float) -> RevocationUpdate | None:
        """What a peer knows; what others are to be told, if that is more than is known here."""
        fresh = [r for r in message.revocations if r.until > unix and self.table.get(r.id) is None]
        fresh = fresh[: MAX_REVOCATIONS - len(self.table)]
        if not fresh:
            return None
        logger.warning(
            "revocations_recovered",
            revocations=len(fresh),
            hint="peers had them, and the journal did not; they are in force again",
        )
        self._change(fresh, [], unix)
        self._persist_change(fresh, [])
        return self.make_snapshot()

    def expire(self, unix: float) -> None:
        """Forgets those that cover nothing any more. The others do so by themselves, so they are not told."""
        gone = self.table.expire(unix)
        if gone:
            self._journal.put_metadata({KEY_PREFIX + id: None for id in gone})

    def _change(self, added: list[Revocation], removed: list[str], unix: float) -> RevocationUpdate:
        before = self.version
        self.table.version = max(before + 1, int(unix * 1000))
        self.table.remove(removed)
        self.table.add(added)
        return RevocationUpdate(self.table.epoch, self.version, before, added, removed)

    def _persist_change(self, added: Iterable[Revocation], removed: Iterable[str]) -> bool:
        values: dict[str, bytes | None] = {KEY_PREFIX + r.id: msgspec.msgpack.encode(r) for r in added}
        values |= {KEY_PREFIX + id: None for id in removed}
        return self._journal.put_metadata({**values, VERSION_KEY: msgspec.msgpack.encode(self.version)})
