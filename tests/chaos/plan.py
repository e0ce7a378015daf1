"""Which disturbances a run makes, and when: a pure function of the seed, so that a failing run can be made again.

What it keeps true: nothing lasts longer than the run; a process is not disturbed while it is stopped or comes back
from being killed; no process is killed more than `KILLS_A_MINUTE` times within a minute, since a supervisor rightly
gives up on one that keeps dying; an extra shard is disturbed only while it is meant to be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import msgspec

KILLS_A_MINUTE = 3
BACK_AFTER_SECONDS = 5.0  # what a process that was killed or started gets to be there
MEAN_PAUSE_SECONDS = 1.5
EXTRA_SHARDS = 2
GATEWAYS = 2

FAMILIES: dict[str, tuple[str, ...]] = {
    "kill": ("router", "shard", "gateway"),
    "stop": ("router", "shard", "gateway"),
    "cut": ("shard", "gateway"),
    "stall": ("shard", "gateway"),
    "scale": ("shard",),
    "drain": ("shard",),
}
"""What `--kinds` may name, each with the roles that it strikes; `kill:router` is one of them alone."""

ALL_KINDS = tuple(FAMILIES)


class Disturbance(msgspec.Struct, frozen=True, omit_defaults=True):
    """at, seconds: of the run. target: a process, such as `shard 1`, whose links are meant by `cut` and `stall`.

    kind: kill, stop, cut, stall; start, end (SIGTERM) and drain of an extra shard. share: of the links' connections.
    direction: what a stall stops: `up` (to the server), `down` or `both`.
    """

    at: float
    kind: str
    target: str
    seconds: float = 0.0
    share: float = 1.0
    direction: str = "both"

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        part = "" if self.share == 1.0 else f" ({self.share:.0%} of its connections)"
        way = "" if self.direction == "both" else f" {self.direction}"
        return f"{self.kind}{way} {self.target}{part}{lasting}"


def parse_kinds(text: str) -> tuple[tuple[str, str], ...]:
    """`kill,stop:shard` as (family, role) pairs. Raises ValueError for what is unknown."""
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        family, _, role = item.partition(":")
        if family not in FAMILIES or (role and role not in FAMILIES[family]):
            known = ", ".join(f"{name}:{{{'|'.join(roles)}}}" for name, roles in FAMILIES.items())
            raise ValueError(f"--kinds: {item!r} is none of {known}")
        pairs += [(family, each) for each in ([role] if role else FAMILIES[family])]
    return tuple(dict.fromkeys(pairs))


def make(seed: int, seconds: float, shards: int, kinds: Sequence[tuple[str, str]]) -> tuple[Disturbance, ...]:
    """The disturbances of a run, in the order of their times. shards: those that are always there."""
    return tuple(_Maker(seed, seconds, shards, kinds))


class _Maker:
    def __init__(self, seed: int, seconds: float, shards: int, kinds: Sequence[tuple[str, str]]) -> None:
        self._random = Random(f"{seed} plan")
        self._seconds = seconds
        self._shards = [f"shard {i}" for i in range(shards)]
        self._extra = {f"shard {i}": False for i in range(shards, shards + EXTRA_SHARDS)}
        self._kinds = kinds
        self._busy: dict[str, float] = {}
        self._kills: dict[str, list[float]] = {}

    def __iter__(self) -> Iterator[Disturbance]:
        if not self._kinds:
            return
        at = 0.5
        while True:
            # Dealt, not drawn: even a short run has some of each.
            deck = list(self._kinds)
            self._random.shuffle(deck)
            for family, role in deck:
                at += min(self._random.expovariate(1 / MEAN_PAUSE_SECONDS), 4 * MEAN_PAUSE_SECONDS)
                if at >= self._seconds:
                    return
                made = self._one(round(at, 3), family, role)
                if made is not None:
                    yield made

    def _one(self, at: float, family: str, role: str) -> Disturbance | None:
        left = self._seconds - at
        match family:
            case "kill":
                target = self._free(at, role, killing=True)
                if target is None:
                    return None
                self._kills.setdefault(target, []).append(at)
                self._busy[target] = at + BACK_AFTER_SECONDS
                return Disturbance(at, "kill", target)
            case "stop":
                target = self._free(at, role)
                lasts = min(round(self._random.uniform(0.2, 6.0), 2), left)
                if target is None:
                    return None
                self._busy[target] = at + lasts + 1
                return Disturbance(at, "stop", target, lasts)
            case "cut":
                return Disturbance(at, "cut", self._any(role), share=self._random.choice((0.5, 1.0)))
            case "stall":
                lasts = min(round(self._random.uniform(1.0, 5.0), 2), left)
                way = self._random.choice(("both", "up", "down"))
                return Disturbance(at, "stall", self._any(role), lasts, self._random.choice((0.5, 1.0)), way)
            case _:
                return self._scale(at, "end" if family == "scale" else "drain")

    def _scale(self, at: float, leaving: str) -> Disturbance | None:
        idle = [name for name in self._extra if self._busy.get(name, 0.0) <= at]
        if not idle:
            return None
        target = self._random.choice(idle)
        there = self._extra[target]
        self._extra[target] = not there
        self._busy[target] = at + BACK_AFTER_SECONDS
        return Disturbance(at, leaving if there else "start", target)

    def _any(self, role: str) -> str:
        return self._random.choice(self._of(role))

    def _free(self, at: float, role: str, *, killing: bool = False) -> str | None:
        free = [name for name in self._of(role) if self._busy.get(name, 0.0) <= at]
        if killing:
            free = [n for n in free if sum(at - k < 60 for k in self._kills.get(n, ())) < KILLS_A_MINUTE]
        return self._random.choice(free) if free else None

    def _of(self, role: str) -> list[str]:
        if role == "router":
            return ["router"]
        if role == "gateway":
            return [f"gateway {i}" for i in range(GATEWAYS)]
        return self._shards + [name for name, there in self._extra.items() if there]
