"""Our events as the old frontend's frames, one JSON object each.

What it keeps true: a frame has a text `type`, an object `data` and a `timestamp`, whatever the event; only names that
the client has asked for are written. What the page wants to know of all forwarders or of a host at once, and an event
says of one, or in part, is remembered from the events before: of those alone that translators of the same view have
been given, so that their readers may see it. An event for one user is never remembered, since others share the
translator. A frame has MAX_FRAME_BYTES at most: what doesn't fit is cut, or left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec

from solowire.domains.dns.legacy import frame_data
from solowire.domains.dns.legacy.event_names import EventNames
from solowire.domains.dns.legacy.frame_data import Data
from solowire.domains.dns.legacy.known_states import KnownStates
from solowire.model.events import Event, Priority

_SOURCE = "solowire"
_SEVERITIES = {Priority.critical: "critical", Priority.high: "warning"}
_REPLACED = b"\1"
"""Before a summary that a later one of its kind in the same batch makes worthless."""


class _Stamp(msgspec.Struct):
    timestamp: str = ""


_read_stamp = msgspec.json.Decoder(_Stamp).decode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class LegacyTranslator:
    """Writes frames. wanted: names of events, as the client calls them. tags: of each frame.

    is_replay: of one user alone. Fragments are joined once, in their order, when their time comes, and tell of the
    forwarders as they were then. known: what others of its view have been told, too; without it, it is alone.
    """

    def __init__(
        self,
        wanted: frozenset[str],
        names: EventNames,
        tags: Sequence[str] = (),
        *,
        is_replay: bool = False,
        known: KnownStates | None = None,
    ) -> None:
        self._is_replay = is_replay
        self._tags = list(tags)
        self._wanted = wanted
        self._names = names
        self._known = KnownStates() if known is None else known

    @property
    def key(self) -> Hashable:
        return self._wanted

    def translate_event(self, event: Event, data: dict[str, Any], offset: int) -> bytes | None:
        """As `solowire.model.dialect.Translator` says."""
        data = frame_data.drop_unreadable(data)
        match event.type:
            case "forwarder_health":
                return self._translate_forwarder(event, data, offset)
            case "forwarder_status_change":
                self._note_status(event, data.get("forwarder_id"), data.get("new_status"), offset)
            case "dns_query_log":
                if not self._wants("system_status", event.type):
                    return None
                return self._write("system_status", event, frame_data.make_query_row(event, data))
            case "system_metrics":
                made = frame_data.make_metrics(event, data, self._recall_host(data))
                self._note_host(event, data, made, offset)
                return self._write("system_status", event, made) if self._wants("system_status", event.type) else None
            case "system_status":
                made = frame_data.make_system_status(event, data, self._recall_host(data))
                self._note_host(event, data, made, offset)
                return self._write("system_status", event, made) if self._wants(event.type) else None
        if not self._wants(event.type):
            return None
        shape = frame_data.SHAPES.get(event.type)
        return self._write(event.type, event, data if shape is None else shape(event, data))

    def join_fragments(self, fragments: Sequence[bytes]) -> bytes:
        """As `solowire.model.dialect.Translator` says; of several states of all forwarders the last alone."""
        last = next((i for i in range(len(fragments) - 1, -1, -1) if fragments[i].startswith(_REPLACED)), None)
        if last is None:
            return b"\n".join(fragments)
        kept: list[bytes] = []
        for i, fragment in enumerate(fragments):
            if not fragment.startswith(_REPLACED):
                kept.append(fragment)
                continue
            draft, _, rest = fragment[1:].partition(b"\n")
            if self._is_replay:
                self._take_up_row(draft)
            if i == last:
                kept.append(self._complete_summary(draft))
            if rest:
                kept.append(rest)
        return b"\n".join(kept)

    def read_timestamp(self, fragment: bytes) -> str:
        """As `solowire.model.dialect.Translator` says."""
        return _read_stamp(fragment.removeprefix(_REPLACED).partition(b"\n")[0]).timestamp

    def _wants(self, *names: str) -> bool:
        return not self._wanted.isdisjoint(names)

    def _translate_forwarder(self, event: Event, data: Data, offset: int) -> bytes | None:
        """One forwarder's health: all that are known, and the change of its status, if it is one."""
        row = frame_data.make_forwarder(data, id=data.get("forwarder_id"), seen=event.timestamp)
        id, status = row["id"], row["status"]
        before = self._known.find_status(str(id), offset)
        context = {"own": row} if event.user is not None else {"seen": row} if self._is_replay else {}
        if not context:
            self._known.note_forwarder(row, offset)
        self._note_status(event, id, status, offset)
        frames = []
        if self._wants("health_update", event.type):
            frames.append(_REPLACED + self._write("health_update", event, context))
        if before not in (None, status) and self._wants("forwarder_status_change", event.type):
            change = {"forwarder_id": id, "old_status": before, "new_status": status, "forwarder_name": row["name"]}
            frames.append(self._write("forwarder_status_change", event, change))
        return b"\n".join(frames) or None

    def _take_up_row(self, draft: bytes) -> None:
        """Remembers what an event of a replay said of one forwarder, now that its time has come."""
        row = _decode(draft)["data"].get("seen")
        if row is not None:
            self._known.note_forwarder(row, 0)

    def _complete_summary(self, draft: bytes) -> bytes:
        """A frame about all forwarders that are known, of a draft whose `data` has the row that its reader alone sees.

        Not before it is sent: each event would write all of them, and of a batch the last summary alone is kept.
        """
        frame = _decode(draft)
        rows = self._known.forwarders
        own = frame["data"].get("own")
        if own is not None:
            rows[str(own["id"])] = frame_data.encode_forwarder(own)
        frame["data"] = frame_data.summarize_forwarders(rows.values(), frame["timestamp"])
        return _encode(frame)

    def _note_status(self, event: Event, id: object, status: object, offset: int) -> None:
        if event.user is None and isinstance(status, str):
            self._known.note_status(str(id), status, offset)

    def _recall_host(self, data: Data) -> Data:
        return self._known.find_host(str(data.get("host") or ""))

    def _note_host(self, event: Event, data: Data, made: Data, offset: int) -> None:
        """What the host has said, and not what was made up where it said nothing."""
        if event.user is None:
            figures = {name: made[name] for name in made.keys() & data.keys() if data[name] is not None}
            self._known.note_host(str(data.get("host") or ""), figures, offset)

    def _write(self, name: str, event: Event, data: Data) -> bytes:
        severity = data.get("level") or data.get("severity")
        frame: dict[str, Any] = {
            "type": name,
            "data": data,
            "timestamp": event.timestamp,
            "severity": severity if isinstance(severity, str) else _SEVERITIES.get(event.priority, "info"),
            "id": event.id,
            "priority": event.priority.value,
            "category": self._names.find_event_category(event.type),
            "source": event.source or _SOURCE,
            "tags": self._tags,
        }
        encoded = _encode(frame)
        if len(encoded) > frame_data.MAX_FRAME_BYTES:
            frame["data"] = frame_data.shorten_data(data)
            encoded = _encode(frame)
        return encoded
