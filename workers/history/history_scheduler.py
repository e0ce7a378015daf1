"""Pages of history under way in this shard: who may ask, whose turn it is, and when one is done.

What it keeps true: a user has at most `per_user` questions under way and asks no faster than `rate`; a shard asks the
router for at most `concurrent` of them at a time, and the others wait. The memory of a page is bounded by its bytes
and one part of the router's. The work is done in turns of TURN_SECONDS with a rest after each, so that a live event
waits for one turn at the most; rests are longer while live events come. A page is done when it is full, when nothing
more is there, or when its time is over, which begins with its place: then with what it has, and says where to go on.
One that gets no place in time is refused, and so is one whose asker's token is revoked meanwhile. What nobody waits for
any more is not asked for, here or at the router.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from math import inf

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.algorithms.work_pace import WorkPace
from solowire.auth.revocations import RevocationTable
from solowire.backplane import messages as backplane
from solowire.backplane.messages import HistoryCancel, HistoryRequest, HistoryResponse
from solowire.errors import InvalidHistoryQuery, RequestError, RequestRejected, TokenRevoked
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity, Role, make_view
from solowire.model.subscriptions import parse_wanted
from solowire.protocol.dialect_codec import AnyCodec
from solowire.protocol.history_query import HistoryCursor, HistoryPosition, HistoryQuery
from solowire.runtime.settings.history_settings import HistorySettings
from solowire.workers.clock import Clock
from solowire.workers.history.history_page import HistoryJudge, HistoryPage, HistoryTask

RECORDS_A_STEP = 25
TURN_SECONDS = 0.0005
REST_FACTOR = 3.0
LIVE_REST_FACTOR = 16.0
LIVE_SECONDS = 1.0
"""So long after a live event others are taken to come."""
BURST_SECONDS = 0.02
"""So much work may be done before the rest for it: a page or two of somebody who asks alone."""
MAX_WAITING = 256
"""Questions of all users that wait for their turn; any more are refused."""
MAX_USERS = 10_000
"""Of so many it is known how fast they asked."""
SPARE_EVENTS = 20
"""More than the page has room for: some of what the router finds is not the asker's."""

Done = Callable[[HistoryPage | RequestError, float], None]
"""Called with the page, or why there is none, and the time."""


_AGAIN = "ask again when Retry-After says; an operator raises SOLOWIRE_HISTORY__"


class HistoryScheduler:
    """Asks the router for past events, in turns.

    questions: what is to be sent to the router. By the clock's stopwatch it learns how long a turn takes.

    answered_count, event_count, rejected_count: pages made, events in them, and questions refused.
    """

    def __init__(
        self,
        log: RecentLog,
        settings: HistorySettings,
        clock: Clock,
        *,
        roles: Mapping[str, Role],
    ) -> None:
        self._log = log
        self._settings = settings
        self._clock = clock
        self._roles = roles
        self.questions: list[HistoryRequest | HistoryCancel] = []
        self._requests = count(1)
        self._rates = BucketTable(Rate(settings.rate, settings.burst), MAX_USERS)
        self._under_way: Counter[str] = Counter()
        self._tasks: dict[HistoryTask, Done] = {}  # all of them, who came first first
        self._active: set[HistoryTask] = set()
        self._asked: dict[int, HistoryTask] = {}
        self._ready: dict[HistoryTask, None] = {}  # with a part to look at, whose turn is next first
        self._pace = WorkPace(BURST_SECONDS)
        self._turn_at = self._rested_at = 0.0
        self._live_at = -inf
        self._has_free_place = False
        self.answered_count = self.event_count = self.rejected_count = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def due_at(self) -> float:
        """When `run` has something to do; infinity if never."""
        if self._has_free_place:
            return 0.0
        deadline = min((task.ends_at for task in self._tasks), default=inf)
        return min(deadline, self._turn_at if self._ready else inf)

    def start_task(
        self,
        identity: Identity,
        query: HistoryQuery,
        codec: AnyCodec,
        done: Done,
        *,
        max_bytes: int,
        now: float,
        key: object = None,
    ) -> HistoryTask:
        """Begins a page; `done` is called with it, or with why there is none. key: as in `cancel_all`.

        Raises RequestRejected: 403, 429 or 503.
        """
        try:
            task = self._make_task(identity, query, codec, max_bytes=max_bytes, now=now, key=key)
        except RequestRejected:
            self.rejected_count += 1
            raise
        self._rates.charge_tokens(identity.user, now)
        self._under_way[identity.user] += 1
        self._tasks[task] = done
        self._give_places(now)
        return task

    def _make_task(
        self,
        identity: Identity,
        query: HistoryQuery,
        codec: AnyCodec,
        *,
        max_bytes: int,
        now: float,
        key: object,
    ) -> HistoryTask:
        user, settings = identity.user, self._settings
        role = self._roles.get(identity.role)
        if role is not None and not role.may_connect:
            raise RequestRejected(
                403,
                "forbidden",
                f"the role {identity.role!r} may not open a connection, so nothing was sent to you",
                "use a token of another role; a roles file says so by may_connect",
            )
        self.check_rate(user, now)
        if self._under_way[user] >= settings.max_per_user:
            fault = f"one user may have {settings.max_per_user} questions about history under way"
            raise RequestRejected(429, "history_rate_limited", fault, _AGAIN + "MAX_PER_USER", retry_after=1.0)
        if len(self._tasks) >= MAX_WAITING:
            fault = "too many questions about history wait for their turn"
            raise RequestRejected(503, "history_busy", fault, "ask again in a moment", retry_after=2.0)
        wanted = query.wanted
        if wanted is None:
            wanted = parse_wanted(role.defaults if role is not None else (), query.filter, None, self._log.catalog)
        judge = HistoryJudge(wanted, make_view(identity), codec, self._log)
        task = HistoryTask(identity, query, judge, key=key, max_bytes=max_bytes, now=self._clock.to_unix(now))
        task.ends_at = now + settings.max_wait_s
        return task

    def check_rate(self, user: str, now: float) -> None:
        """Raises RequestRejected (429) if the user has asked too much lately."""
        wait = self._rates.wait_seconds(user, now)
        if wait:
            fault = f"one user may ask for {self._settings.rate:g} pages of history a second"
            raise RequestRejected(429, "history_rate_limited", fault, _AGAIN + "RATE", retry_after=wait)

    def charge_rejected(self, user: str, now: float) -> None:
        """A question that is none costs as much as one that is answered."""
        self._rates.charge_tokens(user, now)
        self.rejected_count += 1

    def record_live_events(self, now: float) -> None:
        """Some have come: whoever asks about others gives way."""
        self._live_at = now

    def cancel_task(self, task: HistoryTask) -> None:
        """Nobody waits for it any more. Who comes next has its place with the next `run`."""
        if task in self._tasks:
            self._end_task(task)
            self._has_free_place = True

    def cancel_tasks(self, key: object) -> None:
        """The same for all with this key."""
        for task in [task for task in self._tasks if task.key is key]:
            self.cancel_task(task)

    def apply_revocations(self, table: RevocationTable, now: float) -> None:
        """Ends the pages of those whose tokens are revoked; they are told so."""
        for task in [task for task in self._tasks if table.covers(task.identity)]:
            if task in self._tasks:  # as in `run`
                self._finish_task(task, TokenRevoked(), now)

    def repeat_requests(self) -> None:
        """The router may have begun anew, and forgotten what it was asked."""
        for task in list(self._asked.values()):
            self._request_part(task)

    def on_response(self, message: HistoryResponse, now: float) -> None:
        """What the router says; an answer for what nobody waits for is nothing."""
        task = self._asked.pop(message.request, None)
        if task is None:
            return
        task.request = None
        if message.refusal is not None:
            self._finish_task(task, explain_refusal(message, task.query), now)
            return
        task.begin_part(message.epoch, message.start, message.end, message.events)
        task.cursor = message.reached
        self._ready[task] = None

    def run(self, now: float) -> None:
        """One turn, in which those who are at work come one after the other; and ends whose time is over."""
        for task in [task for task in self._tasks if task.ends_at <= now]:
            if task in self._tasks:  # else whoever was told of one before has given it up
                self._expire_task(task, now)
        self._give_places(now)
        if now < self._turn_at or not self._ready:
            return
        factor = LIVE_REST_FACTOR if now - self._live_at < LIVE_SECONDS else REST_FACTOR
        self._pace.record_rest(now - self._rested_at, factor)
        clock = self._clock.stopwatch
        began = clock() if clock is not None else 0.0
        took = 0.0
        while self._ready and took < TURN_SECONDS:
            task = next(iter(self._ready))
            del self._ready[task]
            self._judge_part(task, now)
            if clock is None:
                return
            took = clock() - began
        self._pace.record_work(took)
        self._rested_at = now + took
        self._turn_at = self._rested_at + self._pace.rest_s(factor)

    def _judge_part(self, task: HistoryTask, now: float) -> None:
        """Judges some of the part; puts the task last, asks for more, or finishes it."""
        end = min(task.part_index + RECORDS_A_STEP, len(task.part))
        while task.part_index < end:
            offset, body = task.part[task.part_index]
            if not task.take_event(offset, body):  # the next page begins with it
                self._fill_page(task, offset + 1 if task.query.is_descending else offset - 1, now)
                return
            task.part_index += 1
            if task.is_full:
                self._fill_page(task, offset, now)
                return
        if task.part_index < len(task.part):
            self._ready[task] = None
            return
        self._pass_part(task)
        if task.is_complete:
            self._finish_task(task, task.make_page(), now)
        else:
            self._request_part(task)

    def _fill_page(self, task: HistoryTask, offset: int, now: float) -> None:
        task.part = ()
        task.advance_to(offset)
        task.is_complete = task.is_passed
        self._finish_task(task, task.make_page(), now)

    def _pass_part(self, task: HistoryTask) -> None:
        """All of the part has been looked at."""
        task.part = ()
        task.advance_to(task.cursor + 1 if task.query.is_descending else task.cursor)
        task.is_complete = task.is_passed

    def _expire_task(self, task: HistoryTask, now: float) -> None:
        if task.part:  # what of it was not looked at is asked for again
            if task.part_index:
                task.advance_to(task.part[task.part_index - 1][0])
            task.part = ()
        if task.has_answer:
            self._finish_task(task, task.make_page(), now)
            return
        if task in self._active:
            fault = "the router has not answered in time"
            refusal = RequestRejected(503, "router_unavailable", fault, "ask again in a moment", retry_after=1.0)
        else:
            fault = f"for {self._settings.max_wait_s:g} s others' questions about history have had all places"
            refusal = RequestRejected(503, "history_busy", fault, "ask again in a moment", retry_after=2.0)
        self._finish_task(task, refusal, now)

    # ------------------------------------------------------------------------------------------------ places

    def _give_places(self, now: float) -> None:
        """Those of users who have no place come first: whatever others ask, nobody waits for all of it."""
        self._has_free_place = False
        served = {task.user for task in self._active}
        for is_first in (True, False):
            for task in self._tasks:
                if len(self._active) >= self._settings.max_concurrent:
                    return
                if task not in self._active and not (is_first and task.user in served):
                    served.add(task.user)
                    self._active.add(task)
                    task.ends_at = now + self._settings.timeout_s
                    self._request_part(task)

    def _request_part(self, task: HistoryTask) -> None:
        request = task.request if task.request is not None else next(self._requests)
        task.request = request
        self._asked[request] = task
        since, until = task.bounds
        room = task.query.limit - len(task.events) + SPARE_EVENTS
        self.questions.append(
            HistoryRequest(
                request,
                task.user,
                since,
                until,
                task.query.is_descending,
                task.judge.clauses,
                min(room, backplane.REPLAY_RECORDS),
            )
        )

    def _end_task(self, task: HistoryTask) -> Done:
        done = self._tasks.pop(task)
        self._active.discard(task)
        self._ready.pop(task, None)
        if task.request is not None:
            del self._asked[task.request]
            self.questions.append(HistoryCancel(task.request))
            task.request = None
        self._under_way[task.user] -= 1
        if not self._under_way[task.user]:
            del self._under_way[task.user]
        return done

    def _finish_task(self, task: HistoryTask, outcome: HistoryPage | RequestError, now: float) -> None:
        done = self._end_task(task)
        if isinstance(outcome, HistoryPage):
            self.answered_count += 1
            self.event_count += len(outcome.events)
        else:
            self.rejected_count += 1
        done(outcome, now)
        self._give_places(now)


def explain_refusal(message: HistoryResponse, query: HistoryQuery) -> RequestError:
    """Why the router has no answer, as the asker is told."""
    if message.refusal == "unreadable":
        fault = "the journal can't be read"
        return RequestRejected(503, "journal_unavailable", fault, "ask again in a moment", retry_after=2.0)
    if message.refusal == "future":
        given = (("since", query.since), ("until", query.until), ("after", query.after))
        return InvalidHistoryQuery(
            {
                name: f"the log has no such offset yet: it ends at {message.epoch}:{message.end}"
                for name, bound in given
                if isinstance(bound, (HistoryPosition, HistoryCursor)) and bound.offset > message.end
            }
            or {"until": "the log has no such offset yet"}
        )
    lost = message.refusal == "epoch"
    fault = "the log that it speaks of was lost" if lost else "some of what is asked for is older than the log keeps"
    refusal = RequestRejected(
        410,
        "history_gone",
        fault,
        "leave `since` out to begin with the oldest that there is, or ask from a later time on",
    )
    taken = format_unix_time(message.oldest_at) if message.oldest_at else None
    oldest = {"position": f"{message.epoch}:{message.start}", "timestamp": taken}
    refusal.members = {"oldest": oldest}
    return refusal
