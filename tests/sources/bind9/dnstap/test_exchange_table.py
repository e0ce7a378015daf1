"""Each query and each answer leaves in exactly one exchange, and what waits has bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.dnstap_frames import make_query, make_response
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage
from solowire.sources.bind9.dnstap.exchange_table import ANSWER_TIMEOUT_S, QUERY_TIMEOUT_S, Exchange, ExchangeTable


def make_message(wire: bytes, *, is_response: bool) -> TappedMessage:
    return TappedMessage(is_response, False, False, b"\1\1\1\1", 1, b"\2\2\2\2", 53, "UDP", 1.0, 0.0, wire)


QUERY = make_message(make_query("a.example"), is_response=False)
RESPONSE = make_message(make_response(QUERY.wire), is_response=True)
OTHER_RESPONSE = make_message(make_response(make_query("b.example")), is_response=True)
NO_QUESTION = make_message(RESPONSE.wire[:4] + bytes(8), is_response=True)


def test_an_answer_finds_its_query_whichever_comes_first() -> None:
    table = ExchangeTable()
    assert table.add(QUERY, 0.0) is None
    assert table.add(RESPONSE, 0.1) == Exchange(QUERY, RESPONSE)
    assert table.add(RESPONSE, 0.2) is None
    assert table.add(QUERY, 0.3) == Exchange(QUERY, RESPONSE)
    assert len(table) == 0


def test_each_leaves_alone_when_its_time_is_over() -> None:
    table = ExchangeTable()
    table.add(QUERY, 0.0)
    assert table.expire(ANSWER_TIMEOUT_S - 0.01) == []
    assert table.expire(ANSWER_TIMEOUT_S) == [Exchange(QUERY, None)]
    table.add(RESPONSE, 0.0)
    assert table.expire(QUERY_TIMEOUT_S) == [Exchange(None, RESPONSE)]


def test_an_answer_to_another_question_is_none_of_the_query_s() -> None:
    table = ExchangeTable()
    table.add(QUERY, 0.0)
    assert table.add(OTHER_RESPONSE, 0.0) == Exchange(None, OTHER_RESPONSE)
    assert table.add(NO_QUESTION, 0.0) == Exchange(QUERY, NO_QUESTION), "a FORMERR may have no question"


def test_a_query_that_is_sent_again_leaves_alone() -> None:
    table = ExchangeTable()
    table.add(QUERY, 0.0)
    assert table.add(QUERY, 1.0) == Exchange(QUERY, None)
    assert table.add(RESPONSE, 1.1) == Exchange(QUERY, RESPONSE)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 0.1, 3.0, 12.0])), max_size=60),
    st.integers(1, 4),
)
def test_whatever_the_order_nothing_is_lost_or_told_twice(
    steps: list[tuple[bool, int, float]], max_waiting: int
) -> None:
    table = ExchangeTable(max_waiting)
    added: list[TappedMessage] = []
    left: list[Exchange] = []
    now = 0.0
    for is_query, number, wait in steps:
        now += wait
        wire = make_query("a.example", id=number)
        message = (
            make_message(wire, is_response=False) if is_query else make_message(make_response(wire), is_response=True)
        )
        added.append(message)
        if (exchange := table.add(message, now)) is not None:
            left.append(exchange)
        assert len(table) <= 2 * max_waiting
        if wait:
            left += table.expire(now)
    left += table.clear()
    out = [message for exchange in left for message in (exchange.query, exchange.response) if message is not None]
    assert sorted(map(id, out)) == sorted(map(id, added))
    for exchange in left:
        if exchange.query is not None and exchange.response is not None:
            assert exchange.query.wire[:2] == exchange.response.wire[:2]
