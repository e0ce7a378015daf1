"""The rules at work: queries, policy hits and refusals in, findings out.

Pure: times are arguments or of the clock that is given. What it keeps true:

* One cause gives one finding at its beginning and one at its end. An episode is of one rule and one client; it goes on
  as long as the client is above the threshold, and `quiet_s` longer.
* A rule with more than RULE_EPISODES clients at once has one episode more, for all further clients together: a flood
  of invented addresses is one cause.
* Memory is bounded by that, and by `client_counts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.security.client_counts import SAMPLES, ClientCount, ClientCounts
from solowire.sources.bind9.security.client_group import group_client, is_within
from solowire.sources.bind9.security.refusal_message import Refusal
from solowire.sources.bind9.security.rpz_message import PolicyHit
from solowire.sources.bind9.security.security_rule import SecurityRule

RULE_EPISODES = 20
_CLIENTS_COUNTED = 1_000  # of those that are told of together


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be told.

    first_at, last_at: unix seconds. client_ip: None for many clients together, then `client_count` of them. count: what
    was seen in the window, or at the end in all. samples: names that were asked.
    """

    rule: SecurityRule
    phase: Literal["began", "ended"]
    number: int
    client_ip: str | None
    count: int
    first_at: float
    last_at: float
    samples: Sequence[str]
    query_type: str | None = None
    view: str | None = None
    ratio: float | None = None
    client_count: int = 1


class _Episode:
    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.client_ip: str | None = None
        self.count = 0
        self.clients: set[str] = set()
        self.first_at = self.last_at = 0.0
        self.touched_at = now
        self.samples: list[str] = []
        self.view: str | None = None


class _WatchedRule:
    """One rule with its counts."""

    def __init__(self, rule: SecurityRule) -> None:
        self.rule = rule
        self.threshold = rule.threshold
        self.sample_from = min(2, rule.threshold)  # most clients of a flood of invented ones are seen once
        self.networks = rule.exempt_networks
        self.counts = ClientCounts(rule.window_s)
        self.episodes: dict[str | None, _Episode] = {}


class RuleEngine:
    """Applies rules. clock: seconds that never go back, by which episodes end. notify: called when there are findings.

    The methods that observe take microseconds and raise nothing.
    """

    def __init__(
        self, rules: Sequence[SecurityRule], clock: Callable[[], float], notify: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._notify = notify
        self._findings: list[Finding] = []
        self._number = 0
        self._rules = [_WatchedRule(rule) for rule in rules]
        self._floods = self._of_kind("query_flood")
        self._ratios = self._of_kind("nxdomain_ratio")
        self._hits = self._of_kind("policy_hits")
        self._long = [(watched, watched.rule.length or 0) for watched in self._of_kind("long_names")]
        self._shortest = min((length for _, length in self._long), default=10**9)
        self._types: dict[str, list[_WatchedRule]] = {}
        for watched in self._of_kind("query_types"):
            for type in watched.rule.types or ():
                self._types.setdefault(type.upper(), []).append(watched)
        self._refusals: dict[str, list[_WatchedRule]] = {}
        for watched in self._of_kind("refusals"):
            for what in watched.rule.refused or ():
                self._refusals.setdefault(what, []).append(watched)

    def observe_query(self, query: ObservedQuery) -> None:
        """Takes in one query."""
        client = query.client_ip
        if ":" in client:
            client = group_client(client)
        for watched in self._floods:
            self._count(watched, client, query, query.asked_at)
        if query.rcode is not None:
            for watched in self._ratios:
                self._count_answer(watched, client, query)
        if query.query_type in self._types:
            for watched in self._types[query.query_type]:
                self._count(watched, client, query, query.asked_at)
        if len(query.query_domain) >= self._shortest:
            for watched, length in self._long:
                if len(query.query_domain) >= length:
                    self._count(watched, client, query, query.asked_at)

    def observe_hit(self, hit: PolicyHit, at: float) -> None:
        """Takes in one policy hit; what is let through on purpose is none."""
        if hit.action != "PASSTHRU":
            for watched in self._hits:
                self._count(watched, group_client(hit.client_ip), hit, at)

    def observe_refusal(self, refusal: Refusal, at: float) -> None:
        """Takes in one refused request."""
        for watched in self._refusals.get(refusal.what, ()):
            self._count(watched, group_client(refusal.client_ip), refusal, at)

    def take_findings(self) -> list[Finding]:
        """What there is to be told since the last call; ends the episodes that are over."""
        now = self._clock()
        for watched in self._rules:
            over = [key for key, one in watched.episodes.items() if now - one.touched_at >= watched.rule.quiet_s]
            for key in over:
                self._end(watched, watched.episodes.pop(key))
        found, self._findings = self._findings, []
        return found

    # ------------------------------------------------------------------------------------------ counting

    def _count(self, watched: _WatchedRule, client: str, seen: ObservedQuery | PolicyHit | Refusal, at: float) -> None:
        count = watched.counts.find_count(client, at)
        count.count += 1
        count.last_at = at
        if watched.sample_from <= count.count <= SAMPLES:
            _add_sample(count, seen)
        if count.count + count.before >= watched.threshold:
            total, _ = count.estimate(at, watched.counts.window_s)
            if total >= watched.threshold:
                self._exceed(watched, count, seen, at, round(total), None)

    def _count_answer(self, watched: _WatchedRule, client: str, query: ObservedQuery) -> None:
        at = query.asked_at
        count = watched.counts.find_count(client, at)
        count.count += 1
        count.last_at = at
        if query.rcode != "NXDOMAIN":
            return
        count.matched += 1
        if watched.sample_from <= count.matched <= SAMPLES:
            _add_sample(count, query)
        if count.count + count.before >= watched.threshold:
            total, matched = count.estimate(at, watched.counts.window_s)
            if total >= watched.threshold and matched >= total * (watched.rule.ratio or 1.0):
                self._exceed(watched, count, query, at, round(matched), round(matched / total, 3))

    # ------------------------------------------------------------------------------------------ episodes

    def _exceed(
        self,
        watched: _WatchedRule,
        count: ClientCount,
        seen: ObservedQuery | PolicyHit | Refusal,
        at: float,
        total: int,
        ratio: float | None,
    ) -> None:
        """A client is above the threshold. total: within the window."""
        episode = watched.episodes.get(count.client)
        if episode is not None:
            episode.count += 1
            episode.last_at = max(episode.last_at, at)
            episode.touched_at = self._clock()
            return
        if count.is_exempt is None:
            count.is_exempt = is_within(seen.client_ip, watched.networks)
        if count.is_exempt:
            return
        if len(watched.episodes) >= RULE_EPISODES:
            self._exceed_together(watched, count, at, total)
            return
        episode = self._begin(watched, count.client, count, at, total)
        episode.client_ip = seen.client_ip
        episode.view = seen.view
        self._add_finding(
            watched, episode, "began", seen if isinstance(seen, (ObservedQuery, PolicyHit)) else None, ratio
        )

    def _exceed_together(self, watched: _WatchedRule, count: ClientCount, at: float, total: int) -> None:
        """The same for the clients for whom there are too many episodes."""
        episode = watched.episodes.get(None)
        if episode is None:
            episode = self._begin(watched, None, count, at, total)
            episode.clients.add(count.client)
            self._add_finding(watched, episode, "began", None, None)
            return
        episode.count += 1 if count.client in episode.clients else total
        if len(episode.clients) < _CLIENTS_COUNTED:
            episode.clients.add(count.client)
        episode.last_at = max(episode.last_at, at)
        episode.touched_at = self._clock()

    def _begin(self, watched: _WatchedRule, client: str | None, count: ClientCount, at: float, total: int) -> _Episode:
        self._number += 1
        episode = watched.episodes[client] = _Episode(self._number, self._clock())
        episode.count = total
        episode.first_at = max(count.first_at, at - watched.rule.window_s)
        episode.last_at = at
        episode.samples = list(count.samples or ())
        return episode

    def _end(self, watched: _WatchedRule, episode: _Episode) -> None:
        self._add_finding(watched, episode, "ended", None, None)

    def _add_finding(
        self,
        watched: _WatchedRule,
        episode: _Episode,
        phase: Literal["began", "ended"],
        seen: ObservedQuery | PolicyHit | None,
        ratio: float | None,
    ) -> None:
        self._findings.append(
            Finding(
                rule=watched.rule,
                phase=phase,
                number=episode.number,
                client_ip=episode.client_ip,
                count=episode.count,
                first_at=episode.first_at,
                last_at=episode.last_at,
                samples=episode.samples,
                query_type=None if seen is None else seen.query_type,
                view=episode.view,
                ratio=ratio,
                client_count=max(1, len(episode.clients)),
            )
        )
        self._notify()

    def _of_kind(self, kind: str) -> list[_WatchedRule]:
        return [watched for watched in self._rules if watched.rule.kind == kind]


def _add_sample(count: ClientCount, seen: ObservedQuery | PolicyHit | Refusal) -> None:
    name = seen.name if isinstance(seen, Refusal) else seen.query_domain
    if count.samples is None:
        count.samples = []
    if name is not None and name not in count.samples:
        count.samples.append(name)
