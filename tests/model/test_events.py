"""The event as bytes: what is put in comes out, and nothing else is taken for an event."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solowire.model.events import Delivery, Event, Priority, decode_event, encode_event, name_state
from tests.support.examples import examples

text = st.text(max_size=20)
maybe = st.none() | text
events = st.builds(
    Event,
    id=text,
    type=text,
    data=st.binary(max_size=50),
    priority=st.sampled_from(Priority),
    delivery=st.sampled_from(Delivery),
    timestamp=text,
    key=maybe,
    user=maybe,
    attributes=st.dictionaries(text, text, max_size=3),
    source=maybe,
    correlation_id=maybe,
)
EVENT = Event(
    "e1", "record_created", b'{"zone":"example.com"}', Priority.high, Delivery.durable, "2026-01-01T00:00:00Z"
)


@given(events)
@settings(deadline=None, max_examples=examples(50))
def test_an_event_survives_its_way(event: Event) -> None:
    """What the gateway accepted is what a shard reads, byte for byte of its payload."""
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize("length", range(len(encode_event(EVENT))))
def test_a_truncated_event_is_refused(length: int) -> None:
    """Half an event is an error that is counted, never an event with half its fields."""
    with pytest.raises(msgspec.DecodeError):
        decode_event(encode_event(EVENT)[:length])


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=examples(200))
def test_garbage_is_refused(raw: bytes) -> None:
    """Any bytes are an event or a DecodeError, which is what a shard expects and counts."""
    try:
        decode_event(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return


def test_a_newer_event_is_still_read() -> None:
    """A field that a newer gateway adds at the end doesn't stop an older shard from reading the event."""
    fields = msgspec.msgpack.decode(encode_event(EVENT))
    assert decode_event(msgspec.msgpack.encode([*fields, "new"])) == EVENT


def test_priorities_and_deliveries_are_the_contracts() -> None:
    """The words that publishers and the catalogue use are these, and in JSON they are plain strings."""
    assert [p.value for p in Priority] == ["critical", "high", "normal", "low"]
    assert [d.value for d in Delivery] == ["durable", "state", "telemetry"]
    assert msgspec.json.encode(Priority.low) == b'"low"'


odd = st.text(st.sampled_from("\0\1\2a"), max_size=4)


@given(first=st.tuples(odd, odd), second=st.tuples(odd, odd))
@example(first=("a\0b", ""), second=("a", "b\0"))
@example(first=("\1\2", ""), second=("\0", ""))
def test_no_two_states_have_one_name(first: tuple[str, str], second: tuple[str, str]) -> None:
    """Whatever is in keys and users' names: else one user's own state would take the place of another's."""
    assert (name_state("bulk_progress", *first) == name_state("bulk_progress", *second)) == (first == second)
    assert name_state("bulk_progress", "a", None) == "bulk_progress\0a\0"
