"""Whether an overloaded system kept its promises, from what its clients saw and what was sampled. Pure.

What the clients can't see exactly is judged in the system's favour by SLACK_S at most: a connection was certainly there
from its welcome until the last word that came over it, less the time that this word may have waited to be read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from bench.overload_clients import Client, Visit
from bench.report import Target

SLACK_S = 1.0
ADMIN_AWAY_S = 10.0
JAIN = 0.99
FULL = 0.85
GROWTH = 1.25
TOO_SLOW = 4413


def jain_index(shares: Iterable[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything (Jain, Chiu, Hawe, DEC-TR-301, 1984)."""
    found = list(shares)
    squares = sum(share * share for share in found)
    return sum(found) ** 2 / (len(found) * squares) if squares else 1.0


def most_at_once(visits: Iterable[Visit]) -> int:
    """The largest number of connections that were certainly there at the same moment."""
    turns = []
    for visit in visits:
        until = visit.heard_at - SLACK_S
        if until > visit.began_at:
            turns += [(visit.began_at, 1), (until, -1)]
    most = now = 0
    for _, change in sorted(turns):
        now += change
        most = max(most, now)
    return most


def longest_absence(client: Client, since: float, until: float) -> float:
    """Seconds for which a client had no connection, at a stretch."""
    ends = [(v.began_at, until if v.ended_at is None else v.ended_at) for v in client.visits]
    edges = [since, *(moment for visit in ends if visit[1] > since for moment in visit), until]
    return max(0.0, *(later - earlier for earlier, later in list(pairwise(edges))[::2]))


def judge_limit(most: int, sampled: Sequence[int], seen: int) -> Target:
    found = f"{max(sampled, default=0)} by its own count, {seen} by the clients'"
    return Target("never more connections than the limit", f"≤ {most}", found, max(*sampled, seen, 0) <= most)


def judge_use(most: int, sampled: Sequence[int]) -> Target:
    share = sum(sampled) / max(len(sampled), 1) / most
    return Target("slots are used while somebody wants them", f"≥ {FULL:.0%}", f"{share:.0%}", share >= FULL)


def judge_fairness(samples: Sequence[Mapping[str, int]], weights: Mapping[str, float]) -> Target:
    """weights: of the groups in contention. samples: connections by group, over time."""
    means = {group: sum(sample[group] for sample in samples) / max(len(samples), 1) for group in weights}
    index = jain_index(means[group] / weights[group] for group in weights)
    shares = ", ".join(f"{group} {mean:.0f} (weight {weights[group]:g})" for group, mean in means.items())
    return Target("shares are fair by weight (Jain)", f"≥ {JAIN}", f"{index:.4f}: {shares}", index >= JAIN)


def judge_admins(clients: Iterable[Client], since: float, until: float) -> Target:
    longest = max(longest_absence(client, since, until) for client in clients)
    wanted = f"away ≤ {ADMIN_AWAY_S:g} s"
    return Target("administrators always get in", wanted, f"{longest:.1f} s", longest <= ADMIN_AWAY_S)


def faults_of(visit: Visit, acknowledged: Sequence[int]) -> tuple[int, int, int]:
    """Of one visit of a reader: durable events lost, got twice, out of order. acknowledged: offsets, ascending."""
    got = list(visit.durable)
    distinct = set(got)
    due = acknowledged[bisect_right(acknowledged, visit.start) : bisect_right(acknowledged, visit.cursor)]
    again = len(got) - len(distinct) + sum(offset <= visit.start for offset in distinct)
    return len(set(due) - distinct), again, sum(later < earlier for earlier, later in pairwise(got))


def sum_faults(visits: Iterable[Visit], acknowledged: Sequence[int]) -> tuple[int, int, int]:
    """Of all of them together; see `faults_of`."""
    found = [faults_of(visit, acknowledged) for visit in visits]
    return sum(f[0] for f in found), sum(f[1] for f in found), sum(f[2] for f in found)


def judge_durable(clients: Iterable[Client], acknowledged: Sequence[int]) -> Target:
    visits = [visit for client in clients for visit in client.visits]
    lost, twice, disorder = sum_faults(visits, acknowledged)
    events = sum(len(visit.durable) for visit in visits)
    of = f"of {events:,} deliveries in {len(visits):,} connections"
    found = f"{lost} lost, {twice} twice, {disorder} out of order, {of}"
    return Target("who reads gets every durable event, in order, once", "0", found, not (lost or twice or disorder))


def judge_kept(who: str, clients: Iterable[Client]) -> Target:
    """None of them was cut off for being slow."""
    cut = sum(visit.code == TOO_SLOW for client in clients for visit in client.visits)
    return Target(f"{who} is never closed as too slow", "0", str(cut), cut == 0)


def judge_cut(clients: Iterable[Client]) -> Target:
    """Those that sleep for longer than a socket may take nothing."""
    looked = [visit for client in clients for visit in client.visits if visit.was_cut is not None]
    stayed = sum(not visit.was_cut for visit in looked)
    codes = sum(visit.code == TOO_SLOW for visit in looked)
    found = f"{stayed} of {len(looked)} stayed; {codes} could still read {TOO_SLOW}"
    return Target("who never reads is cut", "0 stay", found, bool(looked) and not stayed)


def judge_notices(clients: Iterable[Client]) -> Target:
    told = sum(visit.told.count("slow_consumer") for client in clients for visit in client.visits)
    return Target("who is slow is told so", "≥ 1 notice", f"{told} notices, `slow_consumer`", told > 0)


def judge_type(what: str, name: str, types: Iterable[str]) -> Target:
    """An event of that type came."""
    has_come = name in types
    return Target(what, name, "came" if has_come else "never came", has_come)


def judge_memory(name: str, second: float, last: float, most: float) -> Target:
    found = f"{last / second:.2f}; highest {most:.0f} MiB"
    return Target(f"memory of {name} stays", f"last to second fifth ≤ {GROWTH}", found, last <= GROWTH * second)
