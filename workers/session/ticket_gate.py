"""The gate that tickets open.

What it keeps true: a ticket lets in once, and only to the shard that owns its user, and to that process of it that it
was made for, since another does not know whether it was used; one that is refused for want of a slot stays good.
Whoever is let in has a slot, and counts among the user's handshakes, before anything is accepted. A user who finds no
slot while it has as many connections here as it may ends its oldest, and gets in with its next try. Connections that
speak a dialect end no other, have a limit of their own for each user, and make room for the user's own others.
"""

from __future__ import annotations

import msgspec

from solowire.auth.tokens import Ticket, Tokens, UsedTickets
from solowire.errors import InvalidToken, RequestError, RequestRejected
from solowire.model.access import Identity
from solowire.workers.capacity.slots import RETRY_SECONDS, SlotManager
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import UserRegistry
from solowire.workers.delivery.known_rings import KnownRings
from solowire.workers.session.signed_out_tokens import SignedOutTokens


class SlotRefusal(msgspec.Struct, frozen=True, gc=False):
    """There is no slot: what to raise. replaced: has to end, so that its user gets in with its next try."""

    error: RequestRejected
    replaced: Connection | None


class TicketGate:
    """Redeems tickets. index: the shard's. on_duplicate: `replace` or `reject`. incarnation: of this process."""

    def __init__(
        self,
        index: int,
        tokens: Tokens,
        users: UserRegistry,
        admission: SlotManager,
        on_duplicate: str,
        rings: KnownRings,
        *,
        incarnation: str = "",
    ) -> None:
        self._index = index
        self._tokens = tokens
        self._users = users
        self._slot_manager = admission
        self._on_duplicate = on_duplicate
        self._rings = rings
        self._incarnation = incarnation
        self._used = UsedTickets()
        self.signed_out = SignedOutTokens()

    def redeem(
        self,
        ticket: str,
        now: float,
        wall: float,
        *,
        leaving: bool,
        ready: bool,
        is_dialect: bool = False,
        takes_old: bool = False,
    ) -> Ticket | SlotRefusal:
        """Whom the ticket lets in. Raises InvalidToken or RequestRejected, with `who` it was if the ticket is good.

        now: seconds, monotonic. wall: the same time in unix seconds. leaving, ready: the shard's state.
        is_dialect: the client speaks a dialect, or may. takes_old: it comes at a path for such alone.
        """
        redeemed = self._tokens.redeem_ticket(ticket, self._index, wall)
        try:
            if redeemed.is_old and not takes_old:
                hint = "ask /v1/connect for one for this path"
                raise InvalidToken("the ticket is for the path of an old client", code="wrong_path", hint=hint)
            if leaving:
                raise RequestRejected(
                    503,
                    "draining",
                    "this shard is being emptied, and takes no more users",
                    "ask /v1/connect again",
                    retry_after=1,
                )
            if not ready:
                hint = "ask /v1/connect again in a moment"
                raise RequestRejected(503, "not_ready", f"shard {self._index} is not ready yet", hint, retry_after=1)
            refusal = self._admit(redeemed, now, wall, is_dialect=is_dialect)
        except RequestError as error:
            _name_user(error, redeemed)
            raise
        if refusal is not None:
            _name_user(refusal.error, redeemed)
            return refusal
        return redeemed

    def _admit(self, redeemed: Ticket, now: float, wall: float, *, is_dialect: bool) -> SlotRefusal | None:
        identity = redeemed.identity
        user = identity.user
        if not self._rings.owns(user):
            raise RequestRejected(
                503,
                "wrong_shard",
                "the user belongs to another shard now",
                "ask /v1/connect again",
                retry_after=1,
            )
        if redeemed.incarnation not in ("", self._incarnation):  # which one before this one took, nobody knows any more
            raise RequestRejected(
                503,
                "wrong_shard",
                "the shard was started again since the ticket was made",
                "ask /v1/connect again",
                retry_after=1,
            )
        if is_dialect:
            self.signed_out.check(identity)
            self._check_dialect_limit(user)
        elif self._on_duplicate == "reject" and self._users.is_at_limit(user):
            raise RequestRejected(
                409,
                "duplicate_connection",
                "the user has as many connections as it may have",
                "close one of them first; "
                "an operator sets SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_USER and SOLOWIRE_SESSION__ON_DUPLICATE",
            )
        self._used.check(redeemed, wall)
        oldest = None if is_dialect else self._users.replaceable(user)
        replaces = oldest is not None and oldest.address == redeemed.address
        if not self._slot_manager.acquire(identity, redeemed.address, now, replaces=replaces):
            if oldest is None and not is_dialect:
                oldest = next(iter(self._users.list_dialect(user)), None)
            return self._refuse_without_slot(identity, oldest, now)
        self._used.mark_used(redeemed, wall)  # not before: a ticket that was refused for want of room stays good
        self._users.begin_handshake(user)
        if is_dialect:
            self.signed_out.note(identity)
        return None

    def _check_dialect_limit(self, user: str) -> None:
        """Checks the limit on connections of a dialect. Raises RequestRejected."""
        if len(self._users.list_dialect(user)) >= self._users.dialect_limit:
            raise RequestRejected(
                429,
                "too_many_connections",
                f"the user has {self._users.dialect_limit} connections of this kind, as many as one may have",
                "close a tab, or use the unified connection: one serves all; an operator raises "
                "SOLOWIRE_LEGACY_CONNECTIONS_PER_USER",
                retry_after=RETRY_SECONDS,
            )

    def _refuse_without_slot(self, identity: Identity, oldest: Connection | None, now: float) -> SlotRefusal:
        if oldest is not None:
            self._slot_manager.reserve_for(identity.user, oldest.group, now)
        message, hint = self._slot_manager.explain_full(identity, now)
        after = 1 if oldest is not None else RETRY_SECONDS
        return SlotRefusal(RequestRejected(503, "over_limit", message, hint, retry_after=after), oldest)


def _name_user(error: RequestError, ticket: Ticket) -> None:
    """So that the audit log may say who it was."""
    error.who = {"user": ticket.identity.user, "role": ticket.identity.role, "address": ticket.address}
