"""The epochs that a log goes on from: it was restored from a backup of them, whole up to an offset of each.

What it keeps true: a cursor of an earlier epoch means the same place in this log as it did there, or it is not known
here. Offsets behind the backup's end are given anew to other events, so that a cursor there must not be believed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from solowire.router.log.journal import Journal

KEY = "earlier_epochs"
MOST_EPOCHS = 16
"""Of a log that was restored more often than that, the oldest are forgotten: their cursors are behind any retention."""

logger = structlog.get_logger("solowire.router")


def load_earlier_epochs(journal: Journal) -> dict[str, int]:
    """Up to which offset this log is that of an earlier epoch, by epoch; none for a log that was not restored."""
    kept = journal.get_metadata_item(KEY)
    try:
        return decode_epochs(kept)
    except msgspec.MsgspecError as error:
        hint = "clients of the log before the restore are told that they have missed something"
        logger.error("metadata_unreadable", key=KEY, reason=str(error), hint=hint)
        return {}


def decode_epochs(kept: bytes | None) -> dict[str, int]:
    """What `encode_epochs` has made; none of None. Raises MsgspecError."""
    return msgspec.msgpack.decode(kept, type=dict[str, int]) if kept is not None else {}


def encode_epochs(earlier: Mapping[str, int], epoch: str, last_offset: int) -> bytes:
    """What a log is to remember that is restored from `epoch`, which ended at `last_offset` and had these `earlier`."""
    kept = [*earlier.items()][-(MOST_EPOCHS - 1) :]
    return msgspec.msgpack.encode(dict([*kept, (epoch, last_offset)]))
