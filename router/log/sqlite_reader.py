"""A journal on disk, read by a thread of its own, over a connection of its own.

What it keeps true: it changes nothing, and the thread that writes the journal never waits for it. What it reads is
committed, and the same records with the same content as the journal itself reads: a row of which a part is not what it
should be has an empty body, and what lies before a hole is not there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solowire.router.log.journal import Bounds, JournalUnavailable, Record
from solowire.router.log.journal_file import connect, explain_error

LONGEST_BODY = 256 * 1024
"""Gateways make none of half of that, whatever they are allowed to take."""

# What is no record of ours is one that nobody can read, and that is nobody's own.
COLUMNS = f"""offset, CASE WHEN user IS NULL OR typeof(user) = 'text' THEN user ELSE '' END,
CASE WHEN typeof(body) = 'blob' AND length(body) <= {LONGEST_BODY} THEN body ELSE x'' END"""

# Its pages are the journal's, which the kernel has in memory where they are new: a large cache would hold them twice.
TUNING = """
PRAGMA query_only = ON;
PRAGMA cache_size = -8192;
"""

_FORWARDS = f"SELECT {COLUMNS} FROM events WHERE offset > ? AND offset <= ? ORDER BY offset LIMIT ?"  # noqa: S608
_BACKWARDS = f"SELECT {COLUMNS} FROM events WHERE offset > ? AND offset <= ? ORDER BY offset DESC LIMIT ?"  # noqa: S608
_ONE = f"SELECT {COLUMNS} FROM events WHERE offset = ?"  # noqa: S608
_BOUNDS = "SELECT (SELECT min(offset) FROM events), (SELECT max(offset) FROM events)"


class SqliteReader:
    """Reads the journal's file beside the router that writes it.

    path: of the journal's file. read_floor: where the journal says that it begins: above what is before a hole.

    read_tail(after, upto): the records of that range if the journal has all of them in memory, else none.
    """

    def __init__(
        self, path: Path, read_floor: Callable[[], int], read_tail: Callable[[int, int], Sequence[Record]]
    ) -> None:
        self._read_floor = read_floor
        self._read_tail = read_tail
        try:
            self._db = connect(path, "rw")
            self._db.text_factory = decode_any  # a user of another name is nobody, and all others are as they were
            self._db.executescript(TUNING)
        except sqlite3.Error as error:
            raise JournalUnavailable(explain_error(error)) from None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A read transaction: short, since the journal's WAL can't begin anew while it lasts."""
        self._ask("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._ask("COMMIT")

    def bounds(self) -> Bounds:
        [(first, last)] = self._ask(_BOUNDS)
        if first is None:
            return Bounds(0, 0)
        return Bounds(max(first - 1, self._read_floor()), last)

    def read(self, after: int, upto: int, limit: int, *, is_descending: bool = False) -> Sequence[Record]:
        after = max(after, self._read_floor())
        if not is_descending and (found := self._read_tail(after, min(upto, after + limit))):
            return found
        query = _BACKWARDS if is_descending else _FORWARDS
        return [Record(*row) for row in self._ask(query, after, upto, limit)]

    def read_at(self, offsets: Iterable[int]) -> Sequence[Record]:
        floor = self._read_floor()
        return [Record(*row) for offset in offsets if offset > floor for row in self._ask(_ONE, offset)]

    def read_time(self, offset: int) -> float | None:
        for [at] in self._ask("SELECT at FROM events WHERE offset = ?", offset):
            return float(at) if isinstance(at, (int, float)) else 0.0
        return None

    def _ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalUnavailable(explain_error(error)) from None

    def close(self) -> None:
        """Whatever becomes of it: nothing was written."""
        try:
            self._db.close()
        except sqlite3.Error as error:
            raise JournalUnavailable(explain_error(error)) from None


def decode_any(text: bytes) -> str:
    """A text column, also one that is no UTF-8."""
    return text.decode(errors="replace")
