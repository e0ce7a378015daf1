"""An observer of queries, rules or statistics: what it is told of each.

It comes from dnstap or from the query log, whichever is set up, in the order in which queries become events: a query
of dnstap when its answer is known, so a little out of the order of their times. Both can be set up at once; then each
query is told twice, and a watcher should be given one of them only.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class ObservedQuery(msgspec.Struct, frozen=True, gc=False):
    """One query.

    asked_at: unix seconds, by the clock of the machine that `named` runs on. client_ip: as text. query_domain: as BIND
    writes it: without the final dot (the root is "."), letters as they were asked, odd bytes escaped. query_type:
    BIND's name of it, such as `AAAA` or `TYPE65280`. rcode: BIND's name of it, such as `NXDOMAIN`; None if it is not
    known: the query log tells none, and some queries are never answered. view: None for the default view and where
    nobody tells it (dnstap).
    """

    asked_at: float
    client_ip: str
    query_domain: str
    query_type: str
    rcode: str | None = None
    view: str | None = None


class QueryObserver(Protocol):
    """Watches queries, on the loop of the source."""

    def observe_query(self, query: ObservedQuery) -> None:
        """Takes in one query. It is called for each of up to 20,000 in a second, so it takes microseconds.

        It must not raise: the part that calls it would be begun anew.
        """
        ...
