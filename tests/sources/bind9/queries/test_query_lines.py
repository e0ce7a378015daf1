"""Queries and their answers in one log: each is one event, with the response code where it is known."""

from __future__ import annotations

from datetime import UTC, datetime

from solowire.sources.bind9.queries.query_lines import UNANSWERED, QueryLines
from solowire.sources.bind9.queries.query_observer import ObservedQuery

NOW = datetime(2026, 11, 23, tzinfo=UTC)
QUERY = "client @0x7f 192.0.2.7#4444 ({0}): query: {0} IN A +E(0)K (192.0.2.53)"
ANSWER = "client @0x7f 192.0.2.7#4444 ({0}): response: {0} IN A NXDOMAIN 0 1 2 +E(0)K (192.0.2.53)"


class Seen:
    def __init__(self) -> None:
        self.names: list[str] = []

    def observe_query(self, query: ObservedQuery) -> None:
        self.names.append(query.query_domain)


def read(lines: QueryLines, *texts: str) -> list[tuple[str, str | None]]:
    """What was asked, and the response code, of each event."""
    meanings = [lines.interpret_line(text, NOW) for text in texts]
    assert all(meaning.is_known for meaning in meanings), "a line that makes no event is none that is strange"
    events = [meaning.event for meaning in meanings if meaning.event is not None]
    return [(event.data["query_domain"], event.data.get("rcode")) for event in events]


def test_an_answer_stands_for_its_query() -> None:
    """One event, and one query for the rules, whoever of them comes first in the log."""
    seen = Seen()
    lines = QueryLines((), [seen])
    assert read(lines, QUERY.format("first.test"), ANSWER.format("first.test")) == [
        ("first.test", None),  # nobody knows yet that there are answers
        ("first.test", "NXDOMAIN"),
    ]
    names = [f"n{number}.test" for number in range(50)]
    texts = [text.format(name) for name in names for text in (QUERY, ANSWER)]
    assert read(lines, *texts) == [(name, "NXDOMAIN") for name in names]
    assert seen.names[2:] == names


def test_queries_are_told_again_when_answers_are_not_written_any_more() -> None:
    """`rndc responselog off`: after as many as may be under way."""
    lines = QueryLines(())
    read(lines, ANSWER.format("a.test"))
    assert read(lines, *[QUERY.format("a.test")] * (UNANSWERED + 2)) == [("a.test", None)] * 2


def test_a_log_of_queries_alone_tells_all() -> None:
    """As those of BIND before 9.20 are."""
    assert len(read(QueryLines(()), *[QUERY.format("a.test")] * 10)) == 10
