"""Reports of the shards: what each has said of itself, with what the router knows of its place in the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from solowire.backplane.messages import ShardReport
from solowire.router.log.journal import Journal
from solowire.router.log.shard_cursor import ShardCursor
from solowire.router.membership import Membership


class ShardReports:
    """Reports of all shards. cursors: of the shards, by peer."""

    def __init__(self, journal: Journal, members: Membership, cursors: Mapping[bytes, ShardCursor]) -> None:
        self._journal = journal
        self._members = members
        self._cursors = cursors

    def __iter__(self) -> Iterator[tuple[bytes, ShardReport]]:
        """The name and the report of each shard that has a place in the log, also of one that is only presumed."""
        for member in self._members:
            shard_cursor = self._cursors.get(member.name)
            if member.address is not None and shard_cursor is not None:
                lag = self._journal.last_offset - shard_cursor.acked
                in_flight, is_draining = shard_cursor.in_flight, member.is_draining
                yield member.name, ShardReport(member.address, member.stats, in_flight, lag, is_draining)

    def list_present(self) -> list[ShardReport]:
        """Those of the shards that have joined, in the order of their indexes."""
        present = {member.name for member in self._members if not member.is_presumed}
        return sorted((report for name, report in self if name in present), key=lambda report: report.address.index)
