"""Questions about history, as they are written: in the query of `GET /v1/events` and in a `history` message.

    since, until   2026-12-01T07:00:00Z     from this time on, before this time, as the log took events
                   1h, 90s, 2d              so long ago
                   EPOCH:OFFSET             behind this event, up to and with this event
    types          dns.*,security_alert     as `subscriptions` of a hello; left out: the role's defaults
    filter         {"zone":["example.com"]} as `filter` of a hello
    limit          events of one page
    order          asc, or desc: newest first
    after          where the last page ended: its `next`, or the EPOCH:OFFSET of its last event

What it keeps true: each parameter that is wrong is named, all of them at once. A page that goes on says where the whole
question ends, so that one about the last hour has the same end on its last page as on its first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from solowire.errors import InvalidHistoryQuery, InvalidMessage
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import MAX_PATTERNS, Wanted, check_values, list_unknown_types, parse_wanted

PARAMETERS = ("since", "until", "types", "filter", "limit", "after", "order")
DEFAULT_LIMIT = 1_000
MAX_FAULTS = 10
"""Of names that are none: of more nobody needs to hear."""
_MAX_QUERY_CHARACTERS = 32 * 1024
_LAST_OFFSET = 2**53

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_LOST_PLUS = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d{1,9})?) (?=\d\d:\d\d\Z)", re.ASCII)
"""A `+` that was not encoded is a blank: before the offset of a time, where nothing else may stand."""
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_POSITION = re.compile(r"([0-9A-Za-z_-]{1,64}):(\d{1,16})", re.ASCII)
_CURSOR = re.compile(r"([0-9A-Za-z_-]{1,64}):(\d{1,16})(?::(\d{1,16}))?", re.ASCII)
_BOUND_HINT = "write a time such as 2026-12-01T07:00:00Z, a duration such as 1h, or EPOCH:OFFSET"


class HistoryPosition(msgspec.Struct, frozen=True):
    """An offset of an epoch."""

    epoch: str
    offset: int


class HistoryCursor(msgspec.Struct, frozen=True):
    """Where a page ended. offset: of the last event that was looked at. end: where the whole question ends, if known.

    Newest first, the page's events lie at it and above it, and `end` is below.
    """

    epoch: str
    offset: int
    end: int | None = None

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}" if self.end is None else f"{self.epoch}:{self.offset}:{self.end}"


class HistoryQuery(msgspec.Struct, frozen=True):
    """A question. since, until: unix seconds or a position. wanted: None means the role's defaults.

    filter: of the defaults, where `wanted` is None.
    """

    since: float | HistoryPosition | None = None
    until: float | HistoryPosition | None = None
    wanted: Wanted | None = None
    filter: dict[str, list[str]] | None = None
    limit: int = DEFAULT_LIMIT
    after: HistoryCursor | None = None
    is_descending: bool = False


def read_query_string(query: str) -> dict[str, Any]:
    """The fields of an HTTP query. Raises InvalidHistoryQuery for a name that is none or stands there twice."""
    faults: dict[str, str] = {}
    fields: dict[str, Any] = {}
    if len(query) > _MAX_QUERY_CHARACTERS:
        raise InvalidHistoryQuery({"filter": f"the query is longer than {_MAX_QUERY_CHARACTERS} characters"})
    for name, text in parse_qsl(query, keep_blank_values=True):
        if len(faults) >= MAX_FAULTS:
            break
        if name not in PARAMETERS:
            faults[name[:64]] = f"there is no such parameter; there are {', '.join(PARAMETERS)}"
        elif name in fields:
            faults[name] = "it is there twice; separate types by commas, and list the values of a filter"
        else:
            fields[name] = _LOST_PLUS.sub(r"\1+", text) if name in ("since", "until") else text
    if "types" in fields:
        fields["types"] = [part.strip() for part in fields["types"].split(",")]
    if "filter" in fields:
        try:
            fields["filter"] = msgspec.json.decode(fields["filter"], type=dict[str, list[str]])
        except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
            faults["filter"] = f'write {{"attribute": ["value", …]}} as JSON: {error}'
    if "limit" in fields:
        text = fields["limit"]
        fields["limit"] = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
    if faults:
        faults |= _find_faults({name: value for name, value in fields.items() if name not in faults})
        raise InvalidHistoryQuery(faults)
    return fields


def _find_faults(fields: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each of these, as far as can be told without a catalogue."""
    faults: dict[str, str] = {}
    _read_plain(fields, 0.0, math.inf, faults)
    return faults


def parse_history(fields: Mapping[str, Any], catalog: Catalog, *, now: float, max_limit: int) -> HistoryQuery:
    """The question that these fields ask. now: unix seconds. Raises InvalidHistoryQuery."""
    faults: dict[str, str] = {}
    query = _read_plain(fields, now, max_limit, faults)
    types, filter = fields.get("types"), fields.get("filter")
    wanted: Wanted | None = None
    try:
        # Also where there are no types: a filter of the defaults is to be judged now.
        parsed = parse_wanted(types if types is not None else ["*"], filter, None, catalog)
        check_values(parsed)
        wanted = parsed if types is not None else None
    except InvalidMessage as error:
        faults["types" if error.code == "too_many" and not filter else "filter"] = str(error)
    unknown = list_unknown_types((types or ())[:MAX_PATTERNS], catalog)  # there may be thousands
    if unknown:
        faults["types"] = f"{', '.join(repr(denied.type) for denied in unknown[:10])}: no such event type or category"
    elif types is not None and not types:
        faults["types"] = "it lists none; leave it out for your role's defaults"
    if faults:
        raise InvalidHistoryQuery(faults)
    return msgspec.structs.replace(query, wanted=wanted, filter=filter)


def _read_plain(fields: Mapping[str, Any], now: float, max_limit: float, faults: dict[str, str]) -> HistoryQuery:
    """All but types and filter; what is wrong is added to `faults`."""
    bounds: dict[str, float | HistoryPosition | None] = {"since": None, "until": None}
    for name in bounds:
        if fields.get(name) is not None:
            try:
                bounds[name] = _read_bound(fields[name], now)
            except ValueError as error:
                faults[name] = str(error)
    since, until = bounds["since"], bounds["until"]
    if isinstance(since, float) and isinstance(until, float) and until <= since and "since" not in faults:
        faults["until"] = "it is not later than since"
    if (
        isinstance(since, HistoryPosition)
        and isinstance(until, HistoryPosition)
        and (since.epoch != until.epoch or until.offset < since.offset)
    ):
        faults["until"] = "it is not behind since, in the same epoch"
    order = fields.get("order")
    if order not in (None, "asc", "desc"):
        faults["order"] = "write asc or desc"
    limit: Any = fields.get("limit")
    if limit is None:
        limit = int(min(DEFAULT_LIMIT, max_limit))
    elif not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= max_limit:
        bound = ", 1 at least" if math.isinf(max_limit) else f" from 1 to {max_limit:.0f}"
        faults["limit"] = f"write a whole number{bound}"
    after = fields.get("after")
    cursor = None
    if after is not None:
        found = _CURSOR.fullmatch(after)
        if found is None or int(found[2]) > _LAST_OFFSET or int(found[3] or 0) > _LAST_OFFSET:
            faults["after"] = "write what the last page had as next, or EPOCH:OFFSET"
        else:
            cursor = HistoryCursor(found[1], int(found[2]), None if found[3] is None else int(found[3]))
    if faults:
        return HistoryQuery()
    return HistoryQuery(since=since, until=until, limit=limit, after=cursor, is_descending=order == "desc")


def _read_bound(text: str, now: float) -> float | HistoryPosition:
    """Raises ValueError, whose text says how one is written."""
    if found := _DURATION.fullmatch(text):
        return now - float(found[1]) * _UNITS[found[2]]
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(f"there is no such time; {_BOUND_HINT}") from None
    if found := _POSITION.fullmatch(text):
        if int(found[2]) > _LAST_OFFSET:
            raise ValueError(f"no offset is so large; {_BOUND_HINT}")
        return HistoryPosition(found[1], int(found[2]))
    hint = "; times need their zone, such as Z" if re.match(r"\d{4}-\d\d", text, re.ASCII) else ""
    raise ValueError(f"{_BOUND_HINT}{hint}")
