"""The configuration on disk, the one that named has loaded, and what is to be told of the two.

Pure: looks at the disk and outcomes of reloads in, changes out. What it keeps true:

* A change is told when named says what became of it: `loaded` or `rejected`. One that named isn't told of is `edited`
  after EDITED_S, and `reverted` if it is taken back; each once.
* Where nobody tells outcomes, an edit is told after QUICK_S, and compared with what was told before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

EDITED_S = 30.0
QUICK_S = 2.0

Action = Literal["loaded", "rejected", "edited", "reverted"]
ChangeStatus = Literal["loaded", "rejected", "not loaded", "invalid", "unknown"]


class ConfigSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration as it is on disk. text: canonical, without secrets; None if it is invalid, as `errors` say.

    digest: of the text; of the errors if there is none.
    """

    digest: str
    text: str | None = None
    errors: tuple[str, ...] = ()


class ConfigNews(msgspec.Struct, frozen=True, kw_only=True):
    """A change that is to be told. before: what was in force."""

    action: Action
    status: ChangeStatus
    before: ConfigSnapshot
    after: ConfigSnapshot
    errors: tuple[str, ...] = ()


class ConfigHistory:
    """One server's. loaded: what named has, as far as is known. has_outcomes: somebody tells how reloads end."""

    def __init__(self, loaded: ConfigSnapshot, *, has_outcomes: bool) -> None:
        self.loaded = loaded
        self.disk = loaded
        self._has_outcomes = has_outcomes
        self._changed_at: float | None = None
        self._told_digest: str | None = None  # the digest that was told as edited

    def look(self, disk: ConfigSnapshot, now: float) -> list[ConfigNews]:
        """The disk has this. now: seconds that never go back."""
        if disk.digest == self.disk.digest:
            return []
        before, self.disk = self.disk, disk
        if disk.digest != self.loaded.digest:
            self._changed_at = now
            return []
        self._changed_at = None
        was_told, self._told_digest = self._told_digest, None
        if was_told is None:
            return []
        return [ConfigNews(action="reverted", status="loaded", before=before, after=disk)]

    def end_reload(self, success: bool, errors: Sequence[str]) -> list[ConfigNews]:
        """A reload has ended. The disk must have been looked at since."""
        before, after = self.loaded, self.disk
        if not success:
            self._changed_at, self._told_digest = None, after.digest
            return [
                ConfigNews(
                    action="rejected",
                    status="rejected",
                    before=before,
                    after=after,
                    errors=tuple(errors) or after.errors,
                )
            ]
        if after.text is None or after.digest == before.digest:  # invalid since it was read: it is told as such
            return []
        self.loaded, self._changed_at, self._told_digest = after, None, None
        return [ConfigNews(action="loaded", status="loaded", before=before, after=after)]

    def tick(self, now: float) -> list[ConfigNews]:
        """What time has made of it."""
        wait_s = EDITED_S if self._has_outcomes else QUICK_S
        if self._changed_at is None or now - self._changed_at < wait_s:
            return []
        self._changed_at = None
        before, after = self.loaded, self.disk
        if self._told_digest == after.digest:
            return []
        self._told_digest = after.digest
        status: ChangeStatus = "invalid" if after.text is None else "not loaded" if self._has_outcomes else "unknown"
        if not self._has_outcomes and after.text is not None:
            self.loaded, self._told_digest = after, None
        return [ConfigNews(action="edited", status=status, before=before, after=after, errors=after.errors)]
