"""One change of a record as other parts of the source are told of it, such as the one that looks for drift."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from solowire.sources.bind9.zones.update_authors import UpdateAuthor


class ObservedChange(msgspec.Struct, frozen=True, kw_only=True):
    """A changed RRset. before, after: its records as text, empty where there was or is none.

    event_id: of the event that tells of it; it is the same when the change is told again after a kill. view: as the
    settings name it. author: None if the update log has not told it within the time that events may wait.
    """

    event_id: str
    zone: str
    view: str | None
    serial_before: int
    serial: int
    name: str
    type: str
    before: Sequence[str]
    after: Sequence[str]
    author: UpdateAuthor | None


ChangeObserver = Callable[[ObservedChange], Awaitable[None]]
"""Called for each change, in order, before its serial is kept: so at least once, also after a kill. May not raise."""
