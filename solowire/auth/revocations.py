"""Revocations: tokens that are void although their signature is good, by user, by id, or by time of issue.

What it keeps true: a token that a revocation covers is void from when the revocation is here until all that it covers
have expired. A token that doesn't say when it was issued counts as issued before any time, and one whose id or time
can't be compared is covered. Finding out takes three look-ups, however many revocations there are, and of them there
are MAX_REVOCATIONS at most: one more is refused, not another forgotten.

Pure: the router keeps them in its journal (`solowire.router.access.revocation_keeper`), and tells all others
(`solowire.backplane.messages`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from solowire.backplane.messages import KnownRevocations, Revocation, RevocationUpdate
from solowire.model.access import Identity, Proof

MAX_REVOCATIONS = 10_000


class RevocationTable:
    """By id. epoch: of the journal that they are in. version: as the router counts changes, -1 before there are any."""

    def __init__(self) -> None:
        self.epoch = ""
        self.version = -1
        self._by_id: dict[str, Revocation] = {}
        self._index: _Index = _Index()
        self._next_end = float("inf")

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(list(self._by_id.values()))

    def get(self, id: str) -> Revocation | None:
        return self._by_id.get(id)

    def find_equal(self, revocation: Revocation) -> Revocation | None:
        """One that is here already and covers just the same tokens."""
        wanted = _target(revocation)
        return next((known for known in self._by_id.values() if _target(known) == wanted), None)

    def covers(self, identity: Identity) -> bool:
        """Whether the token that proved this identity is void."""
        return bool(self._by_id) and self._index.covers(identity.user, identity.proof)

    def add(self, revocations: Iterable[Revocation]) -> None:
        for revocation in revocations:
            if revocation.id in self._by_id:
                self.remove([revocation.id])
            self._by_id[revocation.id] = revocation
            self._index.add(revocation)
            self._next_end = min(self._next_end, revocation.until)

    def remove(self, ids: Iterable[str]) -> None:
        gone = [self._by_id.pop(id) for id in ids if id in self._by_id]
        if gone:
            self._index = _Index()
            self._next_end = float("inf")
            for revocation in self._by_id.values():
                self._index.add(revocation)
                self._next_end = min(self._next_end, revocation.until)

    def apply_update(self, message: RevocationUpdate) -> tuple[list[Revocation], KnownRevocations | None]:
        """What the router tells: those that are new here, and what the router is to be told in its turn, if anything.

        A change to another version than the one that is here is not taken: the next HeartbeatResponse has all told.
        """
        known = None
        if message.prev_version is None:
            fresh = [revocation for revocation in message.added if revocation.id not in self._by_id]
            if self._by_id and self.epoch != message.epoch:
                known = KnownRevocations(
                    list(self)
                )  # the router has lost its journal: nobody is let in because of that
                self.add(fresh)
            else:
                self.replace(message.added)
        elif message.prev_version == self.version and (self.version < 0 or message.epoch == self.epoch):
            fresh = message.added
            self.remove(message.removed)
            self.add(fresh)
        else:
            return [], None
        self.epoch, self.version = message.epoch, message.version
        return fresh, known

    def make_snapshot(self) -> RevocationUpdate:
        """All that are here, as a message."""
        return RevocationUpdate(self.epoch, self.version, None, list(self))

    def replace(self, revocations: Iterable[Revocation]) -> None:
        """These are all that there are."""
        self._by_id, self._index, self._next_end = {}, _Index(), float("inf")
        self.add(revocations)

    def expire(self, unix: float) -> list[str]:
        """Forgets those that cover nothing any more; their ids. unix: the time, in seconds."""
        if unix < self._next_end:
            return []
        gone = [revocation.id for revocation in self._by_id.values() if revocation.until <= unix]
        self.remove(gone)
        return gone


class _Index:
    """What the revocations of a table say together."""

    def __init__(self) -> None:
        self._users: set[str] = set()
        self._token_ids: set[str] = set()
        self._users_before: dict[str, float] = {}
        self._all_before = float("-inf")

    def add(self, revocation: Revocation) -> None:
        before = revocation.issued_before
        if revocation.token_id is not None:
            self._token_ids.add(revocation.token_id)
        elif revocation.user is None:
            self._all_before = max(self._all_before, before or 0.0)
        elif before is None:
            self._users.add(revocation.user)
        else:
            self._users_before[revocation.user] = max(before, self._users_before.get(revocation.user, before))

    def covers(self, user: str, proof: Proof) -> bool:
        if user in self._users or (proof.token_id and proof.token_id in self._token_ids):
            return True
        before = self._users_before.get(user, self._all_before)
        before = max(before, self._all_before)
        return before > float("-inf") and not (proof.issued_at is not None and proof.issued_at >= before)


def index_revocations(revocations: Iterable[Revocation]) -> RevocationTable:
    """A table of these alone, to look through connections for whom they have just cut off."""
    table = RevocationTable()
    table.add(revocations)
    return table


def _target(revocation: Revocation) -> tuple[object, ...]:
    return revocation.user, revocation.token_id, revocation.issued_before
