"""The changes that a step makes to a zone's RRsets, found from the records that it removed and added.

Pure. An RRset is all records of one owner and type. What it keeps true: `before` and `after` are whole RRsets; a step
that doesn't fit what is held changes nothing that is told, and the whole zone is asked for instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from solowire.errors import TransferError
from solowire.sources.bind9.zones.transfer_reader import SerialStep
from solowire.sources.bind9.zones.zone_record import RRsetKey, ZoneRecord, format_type, sort_records

Action = Literal["created", "updated", "deleted"]
HeldRRsets = dict[RRsetKey, dict[bytes, ZoneRecord]]
"""RRsets as they are held, each record under its data."""


class RRsetChange(NamedTuple):
    """One RRset before and after, in canonical order; empty where there was or is none."""

    key: RRsetKey
    before: tuple[ZoneRecord, ...]
    after: tuple[ZoneRecord, ...]

    @property
    def action(self) -> Action:
        """What became of the RRset."""
        if not self.before:
            return "created"
        return "updated" if self.after else "deleted"


class ChangeTally(msgspec.Struct):
    """Counts of changed RRsets by type. left_out: of the types that are not told one by one."""

    created: Counter[str] = msgspec.field(default_factory=Counter)
    updated: Counter[str] = msgspec.field(default_factory=Counter)
    deleted: Counter[str] = msgspec.field(default_factory=Counter)
    left_out: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Changes that are told."""
        return sum(self.created.values()) + sum(self.updated.values()) + sum(self.deleted.values())

    def count_change(self, action: Action, type: int, left_out: frozenset[str], count: int = 1) -> None:
        """Counts `count` changes of RRsets of one type."""
        name = format_type(type)
        (self.left_out if name in left_out else getattr(self, action))[name] += count


def list_keys(step: SerialStep) -> set[RRsetKey]:
    """The RRsets that a step changes."""
    return {record.key for records in (step.removed, step.added) for record in records}


def apply_step(step: SerialStep, held: HeldRRsets) -> list[RRsetChange]:
    """The changes of a step, in canonical order of owners and types; `held` is as after it then.

    held: with all of `list_keys(step)`, empty where there are no records. Raises TransferError, kind
    `not_incremental`, if the step doesn't fit: then `held` is as before.
    """
    changed = {key: dict(held[key]) for key in sorted(list_keys(step))}
    for record in step.removed:
        found = changed[record.key].pop(record.data, None)
        if found is None or found.ttl != record.ttl:
            raise _make_misfit("removes a record that is not held")
    for record in step.added:
        if record.data in changed[record.key]:
            raise _make_misfit("adds a record that is held already")
        changed[record.key][record.data] = record
    changes = [
        RRsetChange(key, before, after)
        for key, records in changed.items()
        if not is_same(before := sort_records(held[key].values()), after := sort_records(records.values()))
    ]
    held.update(changed)
    return changes


def is_same(before: Iterable[ZoneRecord], after: Iterable[ZoneRecord]) -> bool:
    """Whether two RRsets are the same for DNS: letters' case in names is no change."""
    return [(r.data, r.ttl) for r in before] == [(r.data, r.ttl) for r in after]


def tally_changes(changes: Iterable[RRsetChange], left_out: frozenset[str]) -> ChangeTally:
    """The counts of changes. left_out: names of types."""
    tally = ChangeTally()
    for change in changes:
        tally.count_change(change.action, change.key.type, left_out)
    return tally


def list_added(changes: Iterable[RRsetChange]) -> Mapping[RRsetKey, frozenset[bytes]]:
    """For each changed RRset the data of the records that are new in it, or have another TTL."""
    added = {}
    for change in changes:
        known = {(record.data, record.ttl) for record in change.before}
        added[change.key] = frozenset(r.data for r in change.after if (r.data, r.ttl) not in known)
    return added


def _make_misfit(what: str) -> TransferError:
    return TransferError("not_incremental", f"a step {what}")
