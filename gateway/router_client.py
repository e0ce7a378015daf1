"""The gateway's client of the router: the ring as it was told last, tickets, and requests to the router.

It keeps no state that another gateway would miss. While the router is away it goes on admitting users by the ring
that it knows; publishing is refused, with a word when to try again, because only the router can say that an event is
kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.log_sampler import LogSampler
from solowire.auth.key_source import judge_by_fresh_keys
from solowire.auth.leniency import Leniency
from solowire.auth.revocations import MAX_REVOCATIONS
from solowire.auth.tokens import Tokens
from solowire.backplane.curve_keys import MemberKeys
from solowire.backplane.messages import (
    DEAD_AFTER_SECONDS,
    VERSION,
    AdmissionState,
    DisconnectRequest,
    DisconnectResponse,
    DrainRequest,
    DrainResponse,
    EventTrace,
    Join,
    PeerMessage,
    PublishAck,
    PublishedEvent,
    PublishNack,
    PublishRequest,
    Revocation,
    RevocationUpdate,
    RevokeRequest,
    RevokeResponse,
    RingState,
    RouterMessage,
    ShardAddress,
    ShardStats,
    StatsRequest,
    StatsResponse,
    UndrainRequest,
    UnrevokeRequest,
)
from solowire.backplane.router_link import RouterLink
from solowire.errors import InvalidToken, RequestError, RequestRejected
from solowire.gateway.admission.client_address import ClientAddressResolver
from solowire.gateway.admission.connect_limiter import ConnectLimiter
from solowire.gateway.admission.jitter import jitter_fraction
from solowire.gateway.admission.reconnect_ramp import ReconnectRamp
from solowire.gateway.asker import yield_turn
from solowire.gateway.audit_events import GatewayAudit
from solowire.gateway.publish.publish_limiter import AGAIN, BYTES_HINT, PublishLimiter, Reservation
from solowire.model.access import ADMINISTER, PUBLISH, Identity, Role
from solowire.model.events import Delivery, Event, encode_event, name_state
from solowire.observability.rejection_log import RejectionLog
from solowire.runtime import process

logger = structlog.get_logger("solowire.gateway")

_UNAVAILABLE = ("router_unavailable", "the router can't be reached", "try again in a moment; events with the same ids")
_LAST_ANSWERS_SECONDS = 0.5
_NOTICED_SECONDS = DEAD_AFTER_SECONDS + 1.0
"""Within this the ring says that a shard has gone, with the router's tick and some time for the word to come."""
_DROPPED_SECONDS = 1.5
"""The users whom a shard drops that is still there come back within this, and not all at once."""
_HELD_SECONDS = 1.0
_MOST_HELD = 256
"""Answers to wrong tokens that are held back at a time; any more are given at once."""


class RouterClient:
    """The gateway's client of the router; it also issues tickets by the ring that it was told last.

    timeout: seconds to wait for the router's answer. pace: users per second that come back from a lost shard.

    stats: what the router is told of this process. audit: the gateway's audit records. refresh_keys: waits for the keys
    of a provider to be read again (`KeySource.wait_for_refresh`). delayed_responses: to failed tokens, now;
    delayed_responses_total: ever. keys: needed where the address is tcp.
    """

    def __init__(
        self,
        address: str,
        tokens: Tokens,
        roles: Mapping[str, Role],
        publish_limiter: PublishLimiter,
        *,
        timeout: float,
        pace: float = 500.0,
        connect_limiter: ConnectLimiter | None = None,
        addresses: ClientAddressResolver | None = None,
        stats: Callable[[], ShardStats | None] = lambda: None,
        audit: GatewayAudit | None = None,
        refresh_keys: Callable[[], Awaitable[float | None]] | None = None,
        leniency: Leniency | None = None,
        keys: MemberKeys | None = None,
    ) -> None:
        self.tokens = tokens
        self.leniency = leniency or Leniency()
        self.publish_limiter = publish_limiter
        self.addresses = addresses or ClientAddressResolver()
        self.auth_failures = self.delayed_responses = self.delayed_responses_total = 0
        self._connect_limiter = connect_limiter or ConnectLimiter()
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._rejection_log = RejectionLog(logger, loop.call_later)
        self._sampler = LogSampler(logger, loop.time, loop.call_later)
        self._audit = audit or GatewayAudit()
        self._refresh_keys = refresh_keys
        self.epoch = ""
        self.is_journal_gone = False  # as the router said last
        self._roles = roles
        self._timeout = timeout
        self._incarnation = process.new_id()
        self._ring = Ring()
        self._ring_version = -1  # of the ring, within the epoch
        self._reconnect_ramp = ReconnectRamp(pace)
        self._shards: dict[int, ShardAddress] = {}
        self._requests = count(1)
        self._pending_requests: dict[int, asyncio.Future[Any]] = {}
        self._link = RouterLink(
            address,
            self.name,
            self._make_join,
            self._on_message,
            stats,
            revocations=self._revocations_version,
            keys=keys,
        )

    @property
    def name(self) -> str:
        """This process's, as the router's log has it."""
        return f"gateway-{self._incarnation}"

    @property
    def is_ready(self) -> bool:
        """Whether it can admit users: it knows the ring, be the router away or not."""
        return bool(self._shards)

    @property
    def shards(self) -> dict[int, ShardAddress]:
        """Those that take users, by their indexes."""
        return self._shards

    @property
    def is_router_alive(self) -> bool:
        return self._link.is_router_alive

    @property
    def can_publish(self) -> bool:
        """Whether there is a router, which has its journal."""
        return self._link.is_router_alive and not self.is_journal_gone

    @property
    def dropped_count(self) -> int:
        """How many of the router's messages could not be decoded."""
        return self._link.dropped_count

    def owner(self, user: str) -> int | None:
        """The shard that owns the user."""
        return self._ring.owner(user)

    def find_shard(self, user: str) -> ShardAddress:
        """The shard that owns the user. Raises RequestRejected."""
        index = self._ring.owner(user)
        shard = self._shards.get(index) if index is not None else None
        if shard is None:
            hint = "try again in a moment; /readyz says when"
            raise RequestRejected(503, "no_shard", "no shard is ready to take users", hint, retry_after=1)
        return shard

    def find_ticket_shard(self, ticket: str, address: str) -> ShardAddress:
        """The shard that a ticket is for, where it is now. Whether the ticket was used, only that shard knows.

        address: whence it came. Raises InvalidToken, RequestRejected.
        """
        try:
            index = self.tokens.read_ticket(ticket, time.time()).shard
            shard = self._shards.get(index)
            if shard is None:
                hint = "ask /v1/connect again: its users go to the others"
                raise RequestRejected(503, "shard_unavailable", f"shard {index} is away", hint, retry_after=1)
            return shard
        except RequestError as error:
            self._rejection_log.record(error)
            self._audit.record_rejection("connect", error, address, None)
            raise

    @property
    def rejections(self) -> Counter[str]:
        """How many who wanted a place got none, by the problem's code."""
        return self._rejection_log.totals

    async def identify(self, token: str, address: str, *, is_lenient: bool = False) -> Identity:
        """Whom a token proves. address: whence it came, as `addresses` counts it. is_lenient: by an old client's path.

        Raises InvalidToken, or RequestRejected where too many wrong ones have come from there, and not at once.
        """
        try:
            return await self._verify_token(token, is_lenient=is_lenient)
        except InvalidToken as error:
            if error.code in ("missing_token", "token_revoked"):
                raise  # nobody's guesses
            self.auth_failures += 1
            refusal = self._connect_limiter.failed_auth.record_failure(address, self._clock())
            if refusal is None:
                raise
        await self._delay_rejection(refusal)
        try:
            raise refusal
        finally:
            del refusal  # else it would hold this frame, which holds it, until the collector comes

    async def _verify_token(self, token: str, *, is_lenient: bool) -> Identity:
        """Verifies a token, after reading new keys if need be.

        Raises InvalidToken; RequestRejected if it can't be judged now.
        """

        def identify() -> Identity:
            if is_lenient:
                return self.tokens.identify_leniently(token, time.time(), self.leniency)
            return self.tokens.identify(token, time.time())

        return await judge_by_fresh_keys(identify, self._refresh_keys)

    async def assign_old_client(self, token: str, address: str, action: str) -> tuple[ShardAddress, str, str]:
        """As `assign_shard`, by an old client's path."""
        identity = None
        try:
            identity = await self.identify(token, address, is_lenient=True)
            return (*self._admit(identity, address, is_old=True), identity.user)
        except RequestError as error:
            self._rejection_log.record(error)
            self._audit.record_rejection(action, error, address, identity)
            raise

    def find_return_delay(self, user: str, lost: ShardAddress, lost_for: float) -> float | None:
        """When a user whose connection to a shard was lost may come back, in seconds; None while nobody can say.

        lost_for: seconds since then. A shard that is still in the ring may have gone all the same: it is believed when
        the ring would be another by now.
        """
        index = self._ring.owner(user)
        shard = self._shards.get(index) if index is not None else None
        if shard is None:
            return None
        if shard.incarnation == lost.incarnation:
            return max(0.0, _NOTICED_SECONDS + jitter_fraction(user, b"dropped") * _DROPPED_SECONDS - lost_for)
        return self._reconnect_ramp.delay_for(user, self._clock())

    async def assign_shard(self, token: str, address: str, action: str = "connect") -> tuple[ShardAddress, str, str]:
        """The shard that owns the user, a ticket for it, and the user's name.

        action: as audited. Raises InvalidToken, RequestRejected.
        """
        # Most who are refused come back with a token that is known: to await something would double what that costs.
        identity = self.tokens.cached_identity(token, time.time())
        try:
            if identity is None:
                identity = await self.identify(token, address)
            return (*self._admit(identity, address), identity.user)
        except RequestError as error:
            self._rejection_log.record(error)
            self._audit.record_rejection(action, error, address, identity)
            raise

    def need_publisher(self, identity: Identity) -> None:
        """Raises RequestRejected for one who may not publish, before anything that they sent is read."""
        if not identity.has_permission(PUBLISH):
            raise RequestRejected(
                403,
                "forbidden",
                f"publishing needs the permission {PUBLISH}, which the role {identity.role!r} doesn't grant to you",
                "use a token of another role, such as publisher",
            )

    def need_administrator(self, identity: Identity) -> None:
        """Checks that the identity may administer. Raises RequestRejected."""
        if not identity.has_permission(ADMINISTER):
            raise RequestRejected(
                403,
                "forbidden",
                f"this is for administrators, and the role {identity.role!r} doesn't grant you {ADMINISTER!r}",
                "use a token of a role that does, such as admin",
            )

    def reserve_publish(self, identity: Identity) -> Reservation:
        """For a publish request that is about to be read; to be released. Raises RequestRejected."""
        if not self._link.is_router_alive:
            self.publish_limiter.reset()
            raise RequestRejected(503, *_UNAVAILABLE, retry_after=1)
        return self.publish_limiter.reserve(identity.user, self._clock())

    def send_events(
        self, identity: Identity, events: list[Event], weight: int, room: Reservation, traces: list[EventTrace]
    ) -> int:
        """Puts events on their way to the log; returns the number to wait for with `wait_for_ack`.

        identity: of one who may publish, as `need_publisher` said before the events were read. weight: of all of them,
        at least their number (`solowire.gateway.publish.event_weight`). traces: of those that are recorded. Raises
        RequestRejected, and InvalidToken if its token has been revoked meanwhile.
        """
        self.tokens.check_revoked(identity)  # which may have been while they were read
        now = self._clock()
        limiter, user = self.publish_limiter, identity.user
        limiter.check(user, weight, now, read_weight=weight - len(events))
        wire = [PublishedEvent(event.id, event.user, encode_event(event), _state_name(event)) for event in events]
        size = sum(len(event.body) for event in wire)
        limiter.check_bytes(user, size, now)
        request = next(self._requests)
        self._send_request(request, PublishRequest(request, wire, user, traces))
        limiter.charge(user, weight, now)  # not before: what could not be sent costs nothing
        limiter.charge_bytes(user, size, now)
        self.publish_limiter.mark_sent(room, request, now)
        return request

    def charge_refused(self, identity: Identity, events: int) -> None:
        """A request was refused for what is in it, and took as long to read as one of so many events."""
        self.publish_limiter.charge(identity.user, events, self._clock())

    async def wait_for_ack(self, request: int) -> PublishAck:
        """Returns when the events are in the log. Raises RequestRejected."""
        answer = await self._wait_for_answer(request)
        if isinstance(answer, PublishNack):
            status, hint = (429, BYTES_HINT) if answer.code == "publish_rate_limited" else (503, AGAIN)
            raise RequestRejected(status, answer.code, answer.message, hint, answer.retry_after)
        published: PublishAck = answer
        return published

    async def fetch_stats(self) -> StatsResponse:
        """The router's numbers. Raises RequestRejected."""
        request = next(self._requests)
        answer: StatsResponse = await self._request(request, StatsRequest(request))
        return answer

    async def drain_shard(self, identity: Identity, shard: int, *, is_forced: bool) -> int:
        """Tells a shard to send its users away and end; returns how many there are. Raises RequestRejected.

        is_forced: also the last one that takes users.
        """
        request = next(self._requests)
        answer: DrainResponse = await self._request(request, DrainRequest(request, shard, identity.user, is_forced))
        if answer.is_last:
            raise RequestRejected(
                409,
                "last_shard",
                f"shard {shard} is the last one that takes users: without it nobody can connect",
                "start another shard first, or drain it all the same with force=true",
            )
        if answer.users is None:
            raise RequestRejected(404, "no_such_shard", f"there is no shard {shard}", "GET /v1/stats/shards lists them")
        logger.info("drain_requested", shard=shard, users=answer.users, by=identity.user)
        return answer.users

    async def undrain_shard(self, identity: Identity, shard: int) -> int:
        """Tells a shard that is being drained to stay; returns how many users it still has. Raises RequestRejected."""
        request = next(self._requests)
        answer: DrainResponse = await self._request(request, UndrainRequest(request, shard, identity.user))
        if not answer.is_known:
            raise RequestRejected(404, "no_such_shard", f"there is no shard {shard}", "GET /v1/stats/shards lists them")
        if answer.users is None:
            raise RequestRejected(
                409, "not_draining", f"shard {shard} is not being drained", "one that has ended must be started again"
            )
        logger.info("undrain_requested", shard=shard, users=answer.users, by=identity.user)
        return answer.users

    async def disconnect_user(self, identity: Identity, user: str) -> DisconnectResponse:
        """Has all connections of a user closed, on whatever shards; how many there were. Raises RequestRejected."""
        request = next(self._requests)
        closed: DisconnectResponse = await self._request(request, DisconnectRequest(request, user, identity.user))
        logger.info("user_disconnected", user=user, connections=closed.connections, by=identity.user)
        return closed

    async def revoke(self, revocation: Revocation) -> Revocation:
        """Makes tokens void; the revocation that is in force then. Raises RequestRejected."""
        request = next(self._requests)
        answer: RevokeResponse = await self._request(request, RevokeRequest(request, revocation))
        if answer.revocation is None:
            raise RequestRejected(
                409,
                "too_many_revocations",
                f"there are {MAX_REVOCATIONS} revocations already",
                "DELETE /v1/revocations/{id} those of users who can get no token any more, or use issued_before",
            )
        self._need_kept(answer)
        return answer.revocation

    async def unrevoke(self, identity: Identity, id: str) -> Revocation:
        """Ends a revocation; the one that was. Raises RequestRejected."""
        request = next(self._requests)
        answer: RevokeResponse = await self._request(request, UnrevokeRequest(request, id, identity.user))
        if answer.revocation is None:
            raise RequestRejected(
                404, "no_such_revocation", f"there is no revocation {id!r}", "GET /v1/revocations lists them"
            )
        self._need_kept(answer)
        return answer.revocation

    @staticmethod
    def _need_kept(answer: RevokeResponse) -> None:
        if not answer.is_kept:
            message = "it is so, but the journal could not keep it: a restart of the router may undo it"
            hint = "ask for it again in a moment; an operator sees to the journal's disk"
            raise RequestRejected(503, "journal_unavailable", message, hint, retry_after=1)

    async def finish(self) -> None:
        """Waits a moment for answers that are on their way, and closes. Whoever waited has gone on by then."""
        if self._pending_requests:
            await asyncio.wait(self._pending_requests.values(), timeout=_LAST_ANSWERS_SECONDS)
        self.close()
        while self._pending_requests:
            await asyncio.sleep(0)

    def close(self) -> None:
        """Whoever still waits for the router is told that it is away."""
        self._link.close()
        for pending in self._pending_requests.values():
            if not pending.done():
                pending.set_exception(RequestRejected(503, *_UNAVAILABLE, retry_after=1))

    def _admit(self, identity: Identity, address: str, *, is_old: bool = False) -> tuple[ShardAddress, str]:
        role = self._roles.get(identity.role)
        if role is not None and not role.may_connect:
            raise RequestRejected(
                403,
                "forbidden",
                f"the role {identity.role!r} may not open a connection",
                "use a token of another role; a roles file says so by may_connect",
            )
        now = self._clock()
        self._connect_limiter.check(identity, address, now)  # first, since most are refused for that when many come
        shard = self.find_shard(identity.user)
        wait = self._reconnect_ramp.delay_for(identity.user, now)
        if wait:
            raise RequestRejected(
                503,
                "reconnect_throttled",
                "the user's shard was lost, and its users reconnect one after the other",
                "connect again when Retry-After says: it is this user's turn then",
                wait,
            )
        self._connect_limiter.record(identity, address, now)
        ticket = self.tokens.issue_ticket(
            identity, shard.index, process.new_id(), time.time(), address, shard.incarnation, is_old=is_old
        )
        return shard, ticket

    async def _delay_rejection(self, refusal: RequestRejected) -> None:
        if self.delayed_responses < _MOST_HELD:
            self.delayed_responses += 1
            self.delayed_responses_total += 1
            yield_turn()  # else a few wrong tokens would keep all of their address, or proxy, from being answered
            try:
                await asyncio.sleep(min(refusal.retry_after or 0.0, _HELD_SECONDS))
            finally:
                self.delayed_responses -= 1

    async def _request(self, number: int, message: PeerMessage) -> Any:
        self._send_request(number, message)
        return await self._wait_for_answer(number)

    def _send_request(self, number: int, message: PeerMessage) -> None:
        if not self._link.is_router_alive or not self._link.send(message):
            raise RequestRejected(503, *_UNAVAILABLE, retry_after=1)
        self._pending_requests[number] = asyncio.get_running_loop().create_future()

    async def _wait_for_answer(self, number: int) -> Any:
        try:
            return await asyncio.wait_for(self._pending_requests[number], self._timeout)
        except TimeoutError:
            raise RequestRejected(503, *_UNAVAILABLE, retry_after=1) from None
        finally:
            del self._pending_requests[number]

    def _revocations_version(self) -> int:
        return self.tokens.revocations.version

    def _make_join(self) -> Join:
        return Join(VERSION, self._incarnation, revocations_version=self._revocations_version())

    def _on_message(self, message: RouterMessage) -> None:
        match message:
            case (
                PublishAck()
                | PublishNack()
                | StatsResponse()
                | DrainResponse()
                | DisconnectResponse()
                | RevokeResponse()
            ):
                self.publish_limiter.mark_received(message.request, self._clock())
                pending = self._pending_requests.get(message.request)
                if pending is not None and not pending.done():
                    pending.set_result(message)
            case RevocationUpdate():
                _, known = self.tokens.revocations.apply_update(message)
                if known is not None:
                    self._link.send(known)
            case AdmissionState():
                self.is_journal_gone = message.is_journal_gone
                self._connect_limiter.update(message, self._clock())
            case RingState():
                if message.epoch != self.epoch or message.version == self._ring_version:
                    # No change is told, but a hello answered: the router is another, or was away. If it told a change
                    # as well, its next answer frees what was under way.
                    self.publish_limiter.reset()
                self.epoch, self._ring_version = message.epoch, message.version
                self._shards = {shard.index: shard for shard in message.shards}
                if self.is_ready:
                    process.report_ready()
                self._reconnect_ramp.start(message.removed_shards, self._ring, self._clock())
                if self._ring.shards != self._shards.keys():
                    self._ring = Ring(self._shards)
                    logger.info("ring_changed", shards=sorted(self._shards))
            case _:
                hint = "do all processes run one version?"
                self._sampler.write("warning", "unexpected_message", kind=type(message).__name__, hint=hint)


def _state_name(event: Event) -> str | None:
    """The name of the state that the event is the newest word about."""
    if event.delivery is not Delivery.state:
        return None
    return name_state(event.type, event.key, event.user)
