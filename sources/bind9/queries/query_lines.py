"""The lines of a query log: each query becomes one event.

What it keeps true: where a log has answers, too (`responselog` of BIND 9.20), an answer's line stands for its query, as
it tells the same and what became of it; so the lines of queries make no event then. They do again when UNANSWERED of
them have come without an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from solowire.sources.bind9.queries.query_log import EVENT_TYPE, make_payload, normalize_zones, parse_query
from solowire.sources.bind9.queries.query_observer import ObservedQuery, QueryObserver
from solowire.sources.files.line_meaning import SILENT_LINE, UNKNOWN_LINE, LineEvent, LineMeaning
from solowire.sources.files.log_condition import LogKind

QUERY_LOG = LogKind(
    name="query_log",
    title="query log",
    wanted="a query",
    channel_hint="name the `file` of the channel that named.conf's `logging` gives `category queries`; a "
    "`querylog yes` or `rndc querylog on` makes named write it",
)

UNANSWERED = 1_000
"""So many queries in a row have no answer yet only where answers are not written: `named` has no more under way."""


class QueryLines:
    """What the lines of a query log say.

    zones: names of the zones to be told in the events. observers: are told of each query.
    """

    kind = QUERY_LOG

    def __init__(self, zones: Iterable[str], observers: Sequence[QueryObserver] = ()) -> None:
        self.zones = normalize_zones(zones)
        self.observers = observers
        self._unanswered_count = UNANSWERED  # queries since the last answer

    def interpret_line(self, text: str, now: datetime) -> LineMeaning:
        """Makes a `dns_query_log` of a query. Times without a zone are this machine's."""
        query = parse_query(text, None, now)
        if query is None:
            return UNKNOWN_LINE
        if query.rcode is not None:
            self._unanswered_count = 0
        elif self._unanswered_count < UNANSWERED:
            self._unanswered_count += 1
            return SILENT_LINE
        if self.observers:
            asked = now if query.timestamp is None else datetime.fromisoformat(query.timestamp)
            observed = ObservedQuery(
                asked.timestamp(), query.client_ip, query.query_domain, query.query_type, query.rcode, query.view
            )
            for observer in self.observers:
                observer.observe_query(observed)
        return LineMeaning(True, LineEvent(EVENT_TYPE, make_payload(query, self.zones), query.timestamp))

    def recognizes_line(self, text: str) -> bool:
        """Whether it is a query."""
        return parse_query(text, None) is not None
