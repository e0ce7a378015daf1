"""Whether a run kept the promise: each client, each event, once, in order, and nothing else. Pure.

acknowledgements + what each client is  ─►  what had to arrive
what each client wrote down             ─►  what did
                                            the difference: violations
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tests.chaos.oracle import Made, Who, due

LOST = "lost"
DUPLICATED = "duplicated"
DISORDERED = "out of order"
LEAKED = "leaked"
ALTERED = "altered"
GAP = "gap"
ENDED = "ended"
UNKNOWN = "unknown"
REFUSED = "refused"
TELEMETRY = frozenset({"dns_query_log"})
"""What a client that reads too slowly may get as a count."""

KINDS = (LOST, DUPLICATED, DISORDERED, LEAKED, ALTERED, GAP, ENDED, UNKNOWN, REFUSED)


class Ack(msgspec.Struct, frozen=True):
    """The publisher's: the event is in the log. at: seconds of the run."""

    offset: int
    epoch: str
    at: float = 0.0


class Arrival(msgspec.Struct, frozen=True):
    """One event as a client got it."""

    offset: int
    epoch: str
    id: str
    type: str
    data: dict[str, Any]
    at: float = 0.0
    shard: int | None = None


class Story(msgspec.Struct):
    """All that one client wrote down. epoch, cursor: of its first welcome. gaps: (time, reason) as the SDK told them.

    ended: why it gave up, if it did. left_out: by type, what the server has counted and not sent.
    """

    who: Who
    epoch: str
    cursor: int
    arrivals: list[Arrival] = []
    gaps: list[tuple[float, str]] = []
    ended: str = ""
    left_out: dict[str, int] = {}


class Violation(msgspec.Struct, frozen=True):
    """A promise that was not kept. at: seconds of the run at which it showed, as far as that is known."""

    kind: str
    user: str
    at: float
    offset: int | None = None
    id: str = ""
    type: str = ""
    shard: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        place = "" if self.offset is None else f" offset {self.offset} {self.id} ({self.type})"
        shard = "" if self.shard is None else f" on shard {self.shard}"
        return f"{self.kind}: {self.user}{place}{shard} at {self.at:.2f} s{': ' if self.detail else ''}{self.detail}"


def expected(who: Who, epoch: str, cursor: int, made: Mapping[str, Made], acks: Mapping[str, Ack]) -> dict[str, Ack]:
    """What had to arrive at a client that was welcomed at `cursor`: id → where it stands.

    Events of a later epoch are due as well: an epoch that changes has lost a log, and that is told as a gap.
    """
    return {
        id: ack
        for id, ack in acks.items()
        if (ack.epoch != epoch or ack.offset > cursor) and due(who, made[id]) is not None
    }


def check(story: Story, made: Mapping[str, Made], acks: Mapping[str, Ack]) -> list[Violation]:
    """Everything that is wrong with one client's story, in the order of time."""
    found = [Violation(GAP, story.who.user, at, detail=reason) for at, reason in story.gaps]
    if story.ended:
        last = story.arrivals[-1].at if story.arrivals else 0.0
        found.append(Violation(ENDED, story.who.user, last, detail=story.ended))
    found += _arrivals(story, made, acks)
    found += _losses(story, made, acks)
    return sorted(found, key=lambda violation: violation.at)


def check_acks(made: Mapping[str, Made], acks: Mapping[str, Ack]) -> list[Violation]:
    """No two events may stand at the same place, and each publisher's stand in the order in which it made them.

    made: in that order. A publisher's name is the first part of its events' ids.
    """
    found = []
    taken: dict[tuple[str, int], str] = {}
    last: dict[tuple[str, str], int] = {}
    for id in made:
        ack = acks.get(id)
        if ack is None:
            continue
        publisher = id.partition("-")[0]
        other = taken.setdefault((ack.epoch, ack.offset), id)
        if other != id:
            detail = f"{other} was given the same offset"
            found.append(Violation(DUPLICATED, publisher, ack.at, ack.offset, id, detail=detail))
        elif ack.offset < last.get((publisher, ack.epoch), -1):
            detail = f"an earlier event of this publisher has {last[publisher, ack.epoch]}"
            found.append(Violation(DISORDERED, publisher, ack.at, ack.offset, id, detail=detail))
        last[publisher, ack.epoch] = ack.offset
    return found


def _arrivals(story: Story, made: Mapping[str, Made], acks: Mapping[str, Ack]) -> Iterable[Violation]:
    seen: dict[str, Arrival] = {}
    epoch, last = story.epoch, story.cursor
    for arrival in story.arrivals:

        def wrong(kind: str, detail: str = "", arrival: Arrival = arrival) -> Violation:
            place = (arrival.offset, arrival.id, arrival.type, arrival.shard)
            return Violation(kind, story.who.user, arrival.at, *place, detail)

        if arrival.epoch != epoch:
            epoch, last = arrival.epoch, -1
        if arrival.id in seen:
            first = seen[arrival.id]
            yield wrong(DUPLICATED, f"first as offset {first.offset} at {first.at:.2f} s from shard {first.shard}")
        elif arrival.offset <= last:
            yield wrong(DISORDERED, f"after offset {last}")
        seen.setdefault(arrival.id, arrival)
        last = max(last, arrival.offset)

        event = made.get(arrival.id)
        if event is None:
            yield wrong(UNKNOWN, "nobody published it here")
            continue
        may_see = due(story.who, event)
        if may_see is None:
            yield wrong(LEAKED, f"it is not for {story.who}")
        elif arrival.data != may_see:
            more = sorted(set(arrival.data) - set(may_see))
            kind = LEAKED if more else ALTERED
            yield wrong(kind, f"fields {more}" if more else f"{arrival.data!r} instead of {may_see!r}")
        ack = acks.get(arrival.id)
        if ack is not None and (ack.offset, ack.epoch) != (arrival.offset, arrival.epoch):
            yield wrong(ALTERED, f"its publisher was told offset {ack.offset} of epoch {ack.epoch}")


def _losses(story: Story, made: Mapping[str, Made], acks: Mapping[str, Ack]) -> Iterable[Violation]:
    arrived = {arrival.id for arrival in story.arrivals}
    due_here = expected(story.who, story.epoch, story.cursor, made, acks)
    missing = [(id, ack) for id, ack in due_here.items() if id not in arrived]
    absent = Counter(made[id].type for id, _ in missing)
    counted = {name for name in TELEMETRY if absent[name] <= story.left_out.get(name, 0)}
    for id, ack in missing:
        if made[id].type not in counted:
            before, after = _around(story, ack)
            detail = f"acknowledged at {ack.at:.2f} s; the client got {before} before and {after} after it"
            at = after.at if after is not None else ack.at
            shard = after.shard if after is not None else None
            yield Violation(LOST, story.who.user, at, ack.offset, id, made[id].type, shard, detail)


class _Neighbour(msgspec.Struct, frozen=True):
    offset: int
    at: float
    shard: int | None

    def __str__(self) -> str:
        return f"{self.offset} (at {self.at:.2f} s from shard {self.shard})"


def _around(story: Story, ack: Ack) -> tuple[_Neighbour | None, _Neighbour | None]:
    """The nearest that arrived before and after a place in the log."""
    near = [_Neighbour(a.offset, a.at, a.shard) for a in story.arrivals if a.epoch == ack.epoch]
    before = max((n for n in near if n.offset < ack.offset), key=lambda n: n.offset, default=None)
    after = min((n for n in near if n.offset > ack.offset), key=lambda n: n.offset, default=None)
    return before, after
