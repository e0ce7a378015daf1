"""What a shard is given of the log beside what comes next: what a client has missed, and the present states.

What it keeps true: a replay is of this epoch and of what the journal still has, from behind the cursor on and without a
hole, or it is refused with the reason. Nobody is given another user's own events. Each answer has a bound.
"""

from __future__ import annotations

from itertools import accumulate

import structlog

from router.dispatch import BYTES_A_MESSAGE
from router.journal import Journal, JournalUnavailable
from solowire.backplane import Replay, Replayed

log = structlog.get_logger("solowire.router")

STATES, STATES_BYTES = 10_000, 16 * 2**20
REPLAY_RECORDS = 2_000


def replayed(journal: Journal, message: Replay) -> Replayed:
    """The answer to a shard's question: events for one user and for all, or of that user alone; or why there are none.

    At most REPLAY_RECORDS are read and BYTES_A_MESSAGE given: the shard asks on from where the answer ends. Raises
    JournalUnavailable.
    """
    after = message.after
    if message.epoch != journal.epoch:
        return Replayed(message.request, after, [], "epoch")
    if after > journal.last:
        return Replayed(message.request, after, [], "future")
    if after < journal.floor:
        return Replayed(message.request, after, [], "retention")
    upto = max(after, min(message.upto, journal.last))
    events: list[tuple[int, bytes]] = []
    size = 0
    if message.personal:
        records = journal.read_personal(message.user, after, upto, REPLAY_RECORDS)
    else:
        records = journal.read(after, min(REPLAY_RECORDS, upto - after))
    for offset, user, body in records:
        after = offset
        if user is None or user == message.user:
            events.append((offset, body))
            size += len(body)
            if size >= BYTES_A_MESSAGE:
                return Replayed(message.request, after, events)
    whole = message.personal and len(records) < REPLAY_RECORDS
    return Replayed(message.request, upto if whole else after, events)


def present_states(journal: Journal, upto: int) -> list[tuple[int, bytes]]:
    """The newest value of each state up to an offset, with the offset of each; of too many the newest."""
    try:
        records = journal.states(upto, STATES)
    except JournalUnavailable as error:
        log.error(
            "journal_unreadable", states=upto, reason=str(error), hint="new shards begin without states; see the disk"
        )
        return []
    sizes = accumulate(len(record.body) for record in reversed(records))
    room = sum(size <= STATES_BYTES for size in sizes)
    return [(offset, body) for offset, _, body in records[len(records) - room :]]
