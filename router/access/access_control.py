"""Who is thrown out: revocations and disconnects, as gateways ask for them, on their way to all who enforce them.

What it keeps true: all others are told before whoever asked is answered, and each of it is a line of the audit log.
"""

from __future__ import annotations

from collections.abc import Callable

from solowire.backplane.messages import (
    Disconnected,
    DisconnectNow,
    DisconnectUser,
    Hello,
    KnownRevocations,
    Revocations,
    Revoke,
    Revoked,
    RouterMessage,
    Unrevoke,
)
from solowire.router.access.revocation_keeper import RevocationKeeper
from solowire.router.access.user_disconnects import UserDisconnects
from solowire.router.log.journal import Journal
from solowire.router.membership import Membership

_REVOKED_BY = ("user", "token_id", "issued_before")

Request = DisconnectUser | Disconnected | Revoke | Unrevoke | KnownRevocations


class AccessControl:
    """now: seconds, monotonic. unix: the same time in unix seconds."""

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
    def version(self) -> int:
        """Of the revocations in force."""
        return self._revocations.version

    @property
    def revocations(self) -> int:
        """How many are in force."""
        return len(self._revocations.table)

    def receive(self, peer: bytes, message: Request, now: float, unix: float) -> None:
        match message:
            case DisconnectUser():
                self._disconnect(peer, message, now)
            case Disconnected():
                for name, answer in self._disconnects.answered(peer, message):
                    self._send(name, answer)
            case Revoke() | Unrevoke():
                self._revoke(peer, message, unix)
            case KnownRevocations():
                learnt = self._revocations.learn(message, unix)
                if learnt is not None:
                    self._tell_all(learnt)

    def greeted(self, peer: bytes, message: Hello) -> None:
        """To be called before the peer is told the ring: nobody is let in who is not to be."""
        if message.revocations != self.version:
            self._send(peer, self._revocations.whole())

    def tick(self, now: float, unix: float) -> None:
        for name, answer in self._disconnects.give_up(now):
            self._send(name, answer)
        self._revocations.expire(unix)

    def _disconnect(self, gateway: bytes, message: DisconnectUser, now: float) -> None:
        members = [member for member in self._members if member.address is not None]
        # One that has not said hello since this router began can't be told, and so counts as silent.
        shards = [member.name for member in members if not member.presumed]
        waits_for = {member.name for member in members}
        number, answers = self._disconnects.begin(gateway, message.request, waits_for, now)
        self._audit("disconnecting", user=message.by, about=message.user, shards=len(shards))
        for name, answer in answers:
            self._send(name, answer)
        for name in shards:
            self._send(name, DisconnectNow(number, message.user))

    def _revoke(self, gateway: bytes, message: Revoke | Unrevoke, unix: float) -> None:
        if isinstance(message, Revoke):
            action, by = "revoked", message.revocation.by
            found, is_kept, told = self._revocations.add(message.revocation, unix)
        else:
            action, by = "unrevoked", message.by
            found, is_kept, told = self._revocations.remove(message.id, unix)
        if told is not None and found is not None:
            self._tell_all(told)
            if self._members.get(gateway) is None:
                self._send(gateway, told)  # whoever asks knows what came of it, also if this router has just begun
            about = {name: value for name in _REVOKED_BY if (value := getattr(found, name)) is not None}
            self._audit(action, user=by, revocation=found.id, about=about, is_kept=is_kept)
        self._send(gateway, Revoked(message.request, found, is_kept))

    def _tell_all(self, message: Revocations) -> None:
        """Who misses it sees in a Beat that there is another version."""
        for member in self._members:
            self._send(member.name, message)
