"""Revocations and disconnects, from the gateways that ask for them to all who enforce them.

What it keeps true: all others are told before whoever asked is answered, and each of it is a line of the audit log.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.backplane.messages import (
    DisconnectCommand,
    DisconnectReport,
    DisconnectRequest,
    Join,
    KnownRevocations,
    RevocationUpdate,
    RevokeRequest,
    RevokeResponse,
    RouterMessage,
    UnrevokeRequest,
)
from solowire.router.access.revocation_keeper import RevocationKeeper
from solowire.router.access.user_disconnects import UserDisconnects
from solowire.router.log.journal import Journal
from solowire.router.membership import Membership

_REVOKED_BY = ("user", "token_id", "issued_before")

Request = DisconnectRequest | DisconnectReport | RevokeRequest | UnrevokeRequest | KnownRevocations


class AccessControl:
    """Keeps revocations and carries out disconnects. now: seconds, monotonic. unix: the same time in unix seconds."""

    def __init__(
        self,
        journal: Journal,
        members: Membership,
        send: Callable[[bytes, RouterMessage], bool],
        audit: Callable[..., None],
        unix: float,
    ) -> None:
        self._revocations = RevocationKeeper(journal, unix)
        self._disconnects = UserDisconnects()
        self._members = members
        self._send = send
        self._audit = audit

    @property
    def revocations_version(self) -> int:
        """Of the revocations in force."""
        return self._revocations.version

    @property
    def revocation_count(self) -> int:
        """How many are in force."""
        return len(self._revocations.table)

    def receive(self, peer: bytes, message: Request, now: float, unix: float) -> None:
        match message:
            case DisconnectRequest():
                self._start_disconnect(peer, message, now)
            case DisconnectReport():
                for name, answer in self._disconnects.record_report(peer, message):
                    self._send(name, answer)
            case RevokeRequest() | UnrevokeRequest():
                self._revoke(peer, message, unix)
            case KnownRevocations():
                learnt = self._revocations.merge_known(message, unix)
                if learnt is not None:
                    self._broadcast(learnt)

    def on_join(self, peer: bytes, message: Join) -> None:
        """To be called before the peer is told the ring: nobody is let in who is not to be."""
        if message.revocations_version != self.revocations_version:
            self._send(peer, self._revocations.make_snapshot())

    def tick(self, now: float, unix: float) -> None:
        for name, answer in self._disconnects.expire_overdue(now):
            self._send(name, answer)
        self._revocations.expire(unix)

    def _start_disconnect(self, gateway: bytes, message: DisconnectRequest, now: float) -> None:
        members = [member for member in self._members if member.address is not None]
        # One that has not said hello since this router began can't be told, and so counts as silent.
        shards = [member.name for member in members if not member.is_presumed]
        waits_for = {member.name for member in members}
        number, answers = self._disconnects.start_disconnect(gateway, message.request, waits_for, now)
        self._audit("disconnecting", user=message.by, about=message.user, shards=len(shards))
        for name, answer in answers:
            self._send(name, answer)
        for name in shards:
            self._send(name, DisconnectCommand(number, message.user))

    def _revoke(self, gateway: bytes, message: RevokeRequest | UnrevokeRequest, unix: float) -> None:
        if isinstance(message, RevokeRequest):
            action, by = "revoked", message.revocation.by
            found, is_kept, update = self._revocations.add(message.revocation, unix)
        else:
            action, by = "unrevoked", message.by
            found, is_kept, update = self._revocations.remove(message.id, unix)
        if update is not None and found is not None:
            self._broadcast(update)
            if self._members.get_peer(gateway) is None:
                self._send(gateway, update)  # whoever asks knows what came of it, also if this router has just begun
            about = {name: value for name in _REVOKED_BY if (value := getattr(found, name)) is not None}
            self._audit(action, user=by, revocation=found.id, about=about, is_kept=is_kept)
        self._send(gateway, RevokeResponse(message.request, found, is_kept))

    def _broadcast(self, message: RevocationUpdate) -> None:
        """Who misses it sees in a HeartbeatResponse that there is another version."""
        for member in self._members:
            self._send(member.name, message)
