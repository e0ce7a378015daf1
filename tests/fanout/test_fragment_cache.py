"""The fragments that are kept: their bound, and what is dropped at it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.fragment_cache import FRAGMENT_BYTES, FragmentCache, Fragments
from solowire.fanout.recent_log import FRAGMENTS, RecentLog
from solowire.model.events import encode_event
from solowire.protocol.messages import Codec
from tests.support.factories import event

CODECS = list(Codec)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(CODECS), st.integers(0, 900)), max_size=40))
def test_what_is_kept_is_counted_and_bounded(steps: list[tuple[int, Codec, int]]) -> None:
    """Whatever is added to whichever event: the bytes are those of what is there, and never more than the bound."""
    cache = FragmentCache(3_000)
    events: list[Fragments] = [{} for _ in range(6)]
    for number, codec, size in steps:
        if (codec, frozenset[str]()) not in events[number]:
            cache.add(events[number], (codec, frozenset()), b"x" * size)
        kept = [fragment or b"" for fragments in events for fragment in fragments.values()]
        assert cache.bytes == sum(map(len, kept)) + FRAGMENT_BYTES * len(kept) <= 3_000


def test_a_log_s_fragments_are_bounded_whatever_the_number_of_codecs() -> None:
    """Those of the oldest events go first, and are made again, the same, for who reads that far back."""
    log = RecentLog(catalog=CATALOG, max_bytes=100_000)
    for offset in range(1, 61):
        log.append(offset, encode_event(event(data={"x": "x" * 500})))
    first = next(log.entries_after(0))
    before = first.get_fragment(Codec.json, frozenset())
    for entry in log.entries_after(0):
        for codec in Codec:
            entry.get_fragment(codec, frozenset())
        assert log.fragments.bytes <= 100_000 // FRAGMENTS
    again = first.get_fragment(Codec.json, frozenset())
    assert again == before
    assert again is not before
    newest = log.newest_entries(1)[0]
    assert newest.get_fragment(Codec.json, frozenset()) is newest.get_fragment(Codec.json, frozenset())


def test_what_is_only_passed_on_pushes_nothing_out() -> None:
    """A replay's events are no part of the log: what they are written as is not kept for them."""
    log = RecentLog(catalog=CATALOG)
    passing = log.decode_entry(1, encode_event(event()))
    assert passing is not None
    assert passing.get_fragment(Codec.json, frozenset())
    assert log.fragments.bytes == 0
