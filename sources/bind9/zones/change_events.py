"""The events that tell a step of a zone: each changed RRset, or pages of them, and the zone's summary.

Pure. What it keeps true: pages follow from the changes alone, not from the server or the author, so that all agents
make the same ones; each page, and `before` and `after` of each single event, is at most `page_bytes` as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from solowire.sources.bind9.zones.update_authors import UpdateAuthor
from solowire.sources.bind9.zones.zone_change import ChangeTally, RRsetChange
from solowire.sources.bind9.zones.zone_identity import StepIdentity
from solowire.sources.bind9.zones.zone_record import (
    StartOfAuthority,
    ZoneRecord,
    decode_owner,
    format_record,
    format_type,
    parse_soa,
)

BULK_CHANGES = 500
"""A step with more changes is told page by page."""
OPERATION = "zone_update"
_ITEM_BYTES = 400
"""Of a paged change without its name and records."""

_encode = msgspec.json.Encoder().encode

Page = list[dict[str, Any]]


def make_zone_data(step: StepIdentity, author: UpdateAuthor | None) -> dict[str, Any]:
    """What all events of a step say."""
    data: dict[str, Any] = {"zone": step.zone.zone}
    if step.zone.view is not None:
        data["view"] = step.zone.view
    data |= {"serial_before": step.serial_before, "serial": step.serial}
    if author is not None:
        data |= {name: value for name, value in msgspec.structs.asdict(author).items() if value is not None}
    return data


def make_change_data(step: StepIdentity, change: RRsetChange, author: UpdateAuthor | None, page_bytes: int) -> Any:
    """The data of a change's own event, whose type is `record_` and its action; None if it is too long for one."""
    before, after = (_make_state(records, page_bytes) for records in (change.before, change.after))
    if len(_encode((before, after))) > page_bytes:
        return None
    data = make_zone_data(step, author) | _name_rrset(change)
    shown = after or before
    if shown is not None and "value" in shown:
        data["value"] = shown["value"]
    data["ttl"] = (change.after or change.before)[0].ttl
    return data | {name: state for name, state in (("before", before), ("after", after)) if state is not None}


def make_pages(changes: Iterable[RRsetChange], page_bytes: int) -> Iterator[Page]:
    """The changes in pages, in their order."""
    page: Page = []
    size = 2
    for change in changes:
        for item in _make_items(change, page_bytes - _ITEM_BYTES):
            item_size = len(_encode(item)) + 1
            if page and size + item_size > page_bytes:
                yield page
                page, size = [], 2
            page.append(item)
            size += item_size
    if page:
        yield page


def make_summary(
    step: StepIdentity,
    tally: ChangeTally,
    soa_before: ZoneRecord | None,
    soa: ZoneRecord,
    author: UpdateAuthor | None,
    *,
    transfer: str,
    operation_id: str | None,
) -> dict[str, Any]:
    """The data of a step's `zone_updated`. transfer: `ixfr` or `axfr`."""
    data = make_zone_data(step, author)
    if soa_before is not None:
        data |= _compare_soa(parse_soa(soa_before), parse_soa(soa))
    for name in ("created", "updated", "deleted", "left_out"):
        counts = getattr(tally, name)
        if counts:
            data[name] = dict(sorted(counts.items()))
    data["transfer"] = transfer
    if step.is_rollback:
        data["rollback"] = True
        data["message"] = f"the serial went back from {step.serial_before} to {step.serial}"
    if operation_id is not None:
        data["operation_id"] = operation_id
    return data


def _compare_soa(before: StartOfAuthority, after: StartOfAuthority) -> dict[str, Any]:
    changed = [name for name in before._fields if getattr(before, name) != getattr(after, name)]
    return {
        "changed": changed,
        "before": {name: getattr(before, name) for name in changed},
        "after": {name: getattr(after, name) for name in changed},
    }


def _name_rrset(change: RRsetChange) -> dict[str, Any]:
    return {"name": decode_owner(change.key.owner), "type": format_type(change.key.type)}


def _make_state(records: Sequence[ZoneRecord], limit: int) -> dict[str, Any] | None:
    """The records as an event has them; None if there are none. limit: bytes of one record as JSON."""
    if not records:
        return None
    texts = [format_record(record) for record in records]
    cut = [_cut_text(text, limit // 2) for text in texts]
    state: dict[str, Any] = {"records": cut, "ttl": records[0].ttl}
    if cut != texts:
        state["truncated"] = True
    if len(cut) == 1:
        state["value"] = cut[0]
    return state


def _cut_text(text: str, limit: int) -> str:
    """`text`, or its beginning where it takes more than `limit` bytes as JSON; a character takes two at most."""
    if len(text) * 2 <= limit or len(_encode(text)) <= limit:
        return text
    return text[: limit // 2 - 4] + "…"


def _make_items(change: RRsetChange, limit: int) -> Iterator[dict[str, Any]]:
    """A change as it stands in a page, in several parts if it is longer than `limit`."""
    named = {"action": change.action, **_name_rrset(change)}
    states = {"before": _make_state(change.before, limit // 2), "after": _make_state(change.after, limit // 2)}
    whole = named | {name: state for name, state in states.items() if state is not None}
    if len(_encode(whole)) <= limit:
        yield whole
        return
    parts: list[dict[str, Any]] = []
    size = limit
    for name, state in states.items():
        for text in state["records"] if state is not None else ():
            text_size = len(_encode(text)) + 1
            if size + text_size > limit:
                parts.append({})
                size = 0
            size += text_size
            piece = parts[-1].setdefault(name, {"records": [], "ttl": (state or {})["ttl"]})
            piece["records"].append(text)
            if text.endswith("…"):
                piece["truncated"] = True
    for number, part in enumerate(parts, start=1):
        yield named | part | {"part": number, "parts": len(parts)}
