"""Drains: shards that administrators want emptied.

What it keeps true: a drain that was asked for holds over the end of the shard's process and of the router's, until the
shard is empty and has left, or somebody says `undrain`. The last shard that takes users is drained by force alone.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from solowire.backplane.messages import (
    DrainCommand,
    DrainRequest,
    DrainResponse,
    Join,
    RouterMessage,
    UndrainCommand,
    UndrainRequest,
)
from solowire.router.log.journal import Journal
from solowire.router.membership import Membership

KEY = "drains"

logger = structlog.get_logger("solowire.router")


class Drains:
    """Carries them out. They are in the journal, by shard, with who wanted it."""

    def __init__(
        self,
        journal: Journal,
        members: Membership,
        send: Callable[[bytes, RouterMessage], bool],
        audit: Callable[..., None],
    ) -> None:
        self._journal = journal
        self._members = members
        self._send = send
        self._audit = audit
        kept = journal.get_metadata_item(KEY)
        self._wanted_by: dict[int, str] = {}
        try:
            self._wanted_by = msgspec.msgpack.decode(kept, type=dict[int, str]) if kept is not None else {}
        except msgspec.MsgspecError as error:
            hint = "a shard that was to be emptied takes users again when it starts"
            logger.error("metadata_unreadable", key=KEY, reason=str(error), hint=hint)

    def receive(self, peer: bytes, message: DrainRequest | UndrainRequest) -> None:
        answer = self._start(message) if isinstance(message, DrainRequest) else self._cancel(message)
        self._send(peer, answer)

    def is_wanted(self, shard: int) -> bool:
        """Whether the shard is to be emptied, whoever it is now."""
        return shard in self._wanted_by

    def repeat_command(self, peer: bytes, message: Join) -> None:
        """Tells a shard of it that doesn't know, since the one that was told before has ended."""
        if message.shard is not None and not message.is_draining and message.shard.index in self._wanted_by:
            shard, by = message.shard.index, self._wanted_by[message.shard.index]
            hint = f"it had ended before it was empty, and is emptied now; to keep it: solowire undrain {shard}"
            logger.warning("drain_resumed", shard=shard, by=by, hint=hint)
            self._send(peer, DrainCommand())

    def complete(self, shard: int) -> None:
        """The shard is empty, and has left."""
        self._forget(shard)

    def _start(self, message: DrainRequest) -> DrainResponse:
        member = self._members.find_shard(message.shard)
        takes_users = {address.index for address in self._members.shards}
        if member is not None and takes_users == {message.shard} and not message.is_forced:
            return DrainResponse(message.request, None, is_known=True, is_last=True)
        users = None
        if member is not None and self._send(member.name, DrainCommand()):
            users = member.stats.connections
            self._wanted_by[message.shard] = message.by
            self._save()
        self._audit("draining", user=message.by, shard=message.shard, users=users)
        return DrainResponse(message.request, users, is_known=member is not None)

    def _cancel(self, message: UndrainRequest) -> DrainResponse:
        member = self._members.find_shard(message.shard)
        was_wanted = self._forget(message.shard)
        users = 0 if was_wanted and member is None else None
        if member is not None and (member.is_draining or was_wanted) and self._send(member.name, UndrainCommand()):
            users = member.stats.connections
        self._audit("undraining", user=message.by, shard=message.shard, users=users)
        return DrainResponse(message.request, users, is_known=member is not None or was_wanted)

    def _forget(self, shard: int) -> bool:
        was_wanted = self._wanted_by.pop(shard, None) is not None
        if was_wanted:
            self._save()
        return was_wanted

    def _save(self) -> None:
        self._journal.put_metadata_item(KEY, msgspec.msgpack.encode(self._wanted_by))
