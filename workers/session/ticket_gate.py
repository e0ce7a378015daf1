"""Whom a ticket lets in.

What it keeps true: a ticket lets in once, and only to the shard that owns its user, and to that process of it that it
was made for, since another does not know whether it was used; one that is refused for want of a slot stays good.
Whoever is let in has a slot, and counts among the user's handshakes, before anything is accepted. A user who finds no
slot while it has as many connections here as it may ends its oldest, and gets in with its next try.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.auth.tokens import Ticket, Tokens, UsedTickets
from solowire.errors import RequestError, RequestRejected
from solowire.model.access import Identity
from solowire.workers.capacity.slots import RETRY_SECONDS, SlotManager
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.users import UserRegistry


class TicketGate:
    """index: the shard's. on_duplicate: `replace` or `reject`. owns(user): whether the ring gives it to this shard.

    replaced(connection): called when one has to end so that its user gets in with its next try. boot: of this process.
    """

    def __init__(
        self,
        index: int,
        tokens: Tokens,
        users: UserRegistry,
        admission: SlotManager,
        on_duplicate: str,
        *,
        owns: Callable[[str], bool],
        replaced: Callable[[Connection], None],
        boot: str = "",
    ) -> None:
        self._index = index
        self._tokens = tokens
        self._users = users
        self._slot_manager = admission
        self._on_duplicate = on_duplicate
        self._owns = owns
        self._on_replaced = replaced
        self._boot = boot
        self._used = UsedTickets()

    def redeem(self, ticket: str, now: float, wall: float, *, leaving: bool, ready: bool) -> Ticket:
        """Whom the ticket lets in. Raises InvalidToken or RequestRejected, with `who` it was if the ticket is good.

        now: seconds, monotonic. wall: the same time in unix seconds. leaving, ready: the shard's state.
        """
        redeemed = self._tokens.redeem_ticket(ticket, self._index, wall)
        try:
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
            self._admit(redeemed, now, wall)
        except RequestError as error:
            identity = redeemed.identity
            error.who = {"user": identity.user, "role": identity.role, "address": redeemed.address}
            raise
        return redeemed

    def _admit(self, redeemed: Ticket, now: float, wall: float) -> None:
        identity = redeemed.identity
        user = identity.user
        if not self._owns(user):
            raise RequestRejected(
                503,
                "wrong_shard",
                "the user belongs to another shard now",
                "ask /v1/connect again",
                retry_after=1,
            )
        if redeemed.boot not in ("", self._boot):  # which one before this one took, nobody knows any more
            raise RequestRejected(
                503,
                "wrong_shard",
                "the shard was started again since the ticket was made",
                "ask /v1/connect again",
                retry_after=1,
            )
        if self._on_duplicate == "reject" and self._users.is_at_limit(user):
            raise RequestRejected(
                409,
                "duplicate_connection",
                "the user has as many connections as it may have",
                "close one of them first; "
                "an operator sets SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_USER and SOLOWIRE_SESSION__ON_DUPLICATE",
            )
        self._used.check(redeemed, wall)
        oldest = self._users.replaceable(user)
        replaces = oldest is not None and oldest.address == redeemed.address
        if not self._slot_manager.acquire(identity, redeemed.address, now, replaces=replaces):
            self._reject_without_slot(identity, oldest, now)
        self._used.mark_used(redeemed, wall)  # not before: a ticket that was refused for want of room stays good
        self._users.begin_handshake(user)

    def _reject_without_slot(self, identity: Identity, oldest: Connection | None, now: float) -> None:
        if oldest is not None:
            self._slot_manager.reserve_for(identity.user, oldest.group, now)
            self._on_replaced(oldest)
        message, hint = self._slot_manager.explain_full(identity, now)
        raise RequestRejected(503, "over_limit", message, hint, retry_after=1 if oldest is not None else RETRY_SECONDS)
