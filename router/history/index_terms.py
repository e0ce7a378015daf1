"""By what events are found again: terms, as bytes that sort, of a segment's types, attributes and owners.

    type        T custom.chaos
    attribute   A zone NUL moc.elpmaxe.      the value backwards with a dot behind it: what is beneath begins alike
    owner       O                            an event for one user alone
                P alice                      … and for whom

Rare neighbours share a row: their places together, under the first of their terms. So a row is what a question has to
look at for a term that is at or behind the row's and before the next one's, and the rest of the row is judged and
passed over. A term with many places has a row of its own, and the one behind it begins right behind that term.

What it keeps true: whoever asks for a term gets all places of it. Those of OWNED are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TERM_BYTES = 96
"""No term is longer, so that a value of a kilobyte costs no more than a name. Those that are cut alike share places."""

SHARED_PLACES = 8
"""Neighbours with fewer places than that share a row, until it has so many."""

OWNED = b"O"


def make_type_term(name: str) -> bytes:
    return b"T" + _cut(name.encode(errors="surrogatepass"))


def make_owner_term(user: str) -> bytes:
    return b"P" + _cut(user.encode(errors="surrogatepass"))


def make_value_term(attribute: str, value: str) -> bytes:
    return _cut((f"A{attribute}\0{value[::-1]}." if value != "." else f"A{attribute}\0").encode(errors="surrogatepass"))


def _cut(text: bytes) -> bytes:
    return text[:TERM_BYTES]


def end_of_prefix(prefix: bytes) -> bytes:
    """The first of the terms that come behind all that begin so; UTF-8 has no byte 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def share_rows(terms: Iterable[tuple[bytes, list[int]]]) -> Iterator[tuple[bytes, list[int]]]:
    """Rows of the terms of one kind, or of one attribute, which come sorted, with their places."""
    key = b""
    shared: list[int] = []
    is_marked = False  # the next row begins right behind a term that has a row of its own, whatever term comes first
    for term, places in terms:
        if len(places) >= SHARED_PLACES:
            if shared or is_marked:
                yield key, shared
            yield term, places
            key, shared, is_marked = term + b"\0", [], True
            continue
        if not shared and not is_marked:
            key = term
        shared = shared + places
        if len(shared) >= SHARED_PLACES:
            yield key, shared
            shared, is_marked = [], False
    if shared or is_marked:
        yield key, shared
