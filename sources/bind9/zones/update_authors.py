"""The authors of dynamic updates, as the log category `update` tells them, and the search for a change's author.

The log says who sent an update, but not to which serial it led; a zone transfer says what changed, but not by whom.
Both tell the changes of a zone in one order, so they are joined by what was changed: the oldest line that fits.

What it keeps true: memory is bounded, by NOTES_PER_ZONE and NOTES, and a line is forgotten after KEEP_S; where there
is no room, the oldest is forgotten, of the zone that was updated least recently. A line is the author of one step at
most, and so are all lines before it. A step that added records is joined by these alone, as the log doesn't tell which
records an update deleted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Literal

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import msgspec

NOTES_PER_ZONE = 5_000
NOTES = 50_000
"""Of all zones; some 30 MB."""
KEEP_S = 3_600.0
"""While the gateway is away, steps wait to be told."""

RecordKey = tuple[str, str]
"""The owner's name as `normalize_name` gives it, and the type."""


class UpdateAuthor(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent an update. client: the address. actor: what the settings call them, None if they don't."""

    client: str | None = None
    tsig_key: str | None = None
    actor: str | None = None


class _UpdateNote(msgspec.Struct, kw_only=True):
    name: str
    action: Literal["add", "delete"]
    type: str | None
    digest: bytes | None
    author: UpdateAuthor
    port: int | None
    view: str | None
    noted_at: float


class UpdateAuthors:
    """Lines of the update log, waiting for the changes that they tell the author of.

    actors: names for TSIG keys and client addresses. has_feed: whether somebody reads the log; nobody waits otherwise.
    """

    def __init__(self, actors: Mapping[str, str] | None = None) -> None:
        self.has_feed = False
        self._actors = dict(actors or {})
        self._notes: OrderedDict[str, deque[_UpdateNote]] = OrderedDict()  # the zone that was updated last is last
        self._count = 0
        self.revision = 0  # it grows with each change of what is held
        self._noted = asyncio.Event()

    def note(
        self,
        *,
        zone: str,
        name: str,
        action: Literal["add", "delete"],
        type: str | None,
        value: str | None,
        client: str | None,
        port: int | None = None,
        tsig_key: str | None = None,
        view: str | None = None,
        now: float,
    ) -> None:
        """Takes one line of the update log. Names and values are as they stand there.

        type: None where all types of a name are deleted. value: the RDATA, None where the line tells none. client: the
        address, without the port. view: None where the line names none. now: monotonic seconds.
        """
        actor = self._actors.get(tsig_key or "") or self._actors.get(client or "")
        notes = self._notes.setdefault(normalize_name(zone), deque())
        self._notes.move_to_end(normalize_name(zone))
        while notes and (notes[0].noted_at < now - KEEP_S or len(notes) >= NOTES_PER_ZONE):
            notes.popleft()
            self._count -= 1
        if self._count >= NOTES:
            self._forget_oldest()
        self._count += 1
        self.revision += 1
        notes.append(
            _UpdateNote(
                name=normalize_name(name),
                action=action,
                type=type,
                digest=None if type is None or value is None else digest_value(type, value),
                author=UpdateAuthor(client=client, tsig_key=tsig_key, actor=actor),
                port=port,
                view=view,
                noted_at=now,
            )
        )
        self._noted.set()

    async def find_author(
        self, zone: str, view: str | None, changed: Mapping[RecordKey, frozenset[bytes]], *, until: float
    ) -> UpdateAuthor | None:
        """Who made one step of a zone; waits for their line if it has not been read yet.

        changed: for each RRset that the step changed, the digests of the records that were added (`digest_value`).
        until: monotonic seconds, as the running loop's clock tells them. view: as the log names it, None for any.
        """
        clock = asyncio.get_running_loop().time
        while True:
            found = self.take_author(zone, view, changed)
            wait = until - clock()
            if found is not None or not self.has_feed or wait <= 0:
                return found
            self._noted.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._noted.wait()
            except TimeoutError:
                return self.take_author(zone, view, changed)

    def take_author(
        self, zone: str, view: str | None, changed: Mapping[RecordKey, frozenset[bytes]]
    ) -> UpdateAuthor | None:
        """The same without waiting. The lines that tell of this step, and those before them, are forgotten."""
        notes = self._notes.get(normalize_name(zone))
        if not notes:
            return None
        names = {name for name, _ in changed}
        seen_notes = [(index, note) for index, note in enumerate(notes) if _has_view(note, view)]
        if any(changed.values()):
            certain = (i for i, note in seen_notes if note.digest is not None and _has_added(note, changed))
            cut = (i for i, note in seen_notes if note.digest is None and _has_added(note, changed))
            index = next(certain, None)
            index = next(cut, None) if index is None else index
        else:
            index = next((i for i, note in seen_notes if _has_deleted(note, changed, names)), None)
        if index is None:
            return None
        found = notes[index]
        before = len(notes)
        kept = [note for note in list(notes)[:index] if not _has_view(note, view)]
        for _ in range(index + 1):
            notes.popleft()
        used = {(found.name, found.type, found.digest)}
        while notes:
            note = notes[0]
            key = (note.name, note.type, note.digest)
            is_its = _has_added(note, changed) or _has_deleted(note, changed, names)
            if (note.author, note.port) != (found.author, found.port) or not is_its:
                break
            if note.action == "add" and key in used:  # the same record again: of a later update
                break
            used.add(key)
            notes.popleft()
        notes.extendleft(reversed(kept))
        self._count -= before - len(notes)
        self.revision += 1
        return found.author

    def dump_notes(self) -> bytes:
        """All lines that are held, to be kept on disk: the log itself is not read again."""
        return msgspec.msgpack.encode([(zone, list(notes)) for zone, notes in self._notes.items() if notes])

    def load_notes(self, dumped: bytes, now: float) -> None:
        """Takes lines that were held before this process began; they are older than those that are held."""
        for zone, notes in msgspec.msgpack.decode(dumped, type=list[tuple[str, list[_UpdateNote]]]):
            room = min(NOTES_PER_ZONE, NOTES - self._count)
            kept = notes[-room:] if room > 0 else []
            for note in kept:
                note.noted_at = now
            self._notes.setdefault(zone, deque()).extendleft(reversed(kept))
            self._count += len(kept)

    def _forget_oldest(self) -> None:
        """Forgets a line of the zone that was updated least recently."""
        while self._notes:
            zone, notes = next(iter(self._notes.items()))
            if notes:
                notes.popleft()
                self._count -= 1
                return
            del self._notes[zone]


def normalize_name(name: str) -> str:
    """A name in the one form in which names are compared: lower case, without the last dot; the root is `.`."""
    try:
        return dns.name.from_text(name).canonicalize().to_text(omit_final_dot=True)
    except (dns.exception.DNSException, ValueError):
        return name.lower()


def digest_value(type: str, value: str) -> bytes | None:
    """A record's RDATA in the one form in which it is compared; None if the text can't be read, as of a cut line."""
    try:
        rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(type), value, dns.name.root)
        return bytes(rdata.to_digestable())
    except (dns.exception.DNSException, ValueError, ArithmeticError):
        return None


def _has_view(note: _UpdateNote, view: str | None) -> bool:
    return view is None or note.view is None or note.view == view


def _has_added(note: _UpdateNote, changed: Mapping[RecordKey, frozenset[bytes]]) -> bool:
    if note.action != "add" or note.type is None:
        return False
    added = changed.get((note.name, note.type))
    return bool(added) and added is not None and (note.digest is None or note.digest in added)


def _has_deleted(note: _UpdateNote, changed: Mapping[RecordKey, frozenset[bytes]], names: set[str]) -> bool:
    if note.action != "delete":
        return False
    return note.name in names if note.type is None else (note.name, note.type) in changed
