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

from collections.abc import Iterator

TERM_CHARACTERS = 96
"""A value of a kilobyte costs no more than a name. Those that are cut alike share places."""

SHARED_PLACES = 8
"""Neighbours with fewer places than that share a row, until it has so many."""

OWNED = b"O"
TYPES, OWNERS = b"T", b"P"

Places = dict[str, int | list[int]]
"""By name or value: where it is. Most have one place, which takes no list: there are tens of thousands of them."""


def make_prefix(attribute: str) -> bytes:
    """How the terms of an attribute begin."""
    return b"A" + attribute.encode(errors="surrogatepass") + b"\0"


def make_plain_term(kind: bytes, name: str) -> bytes:
    """The term of a type, or of an owner."""
    return kind + _encode(name[:TERM_CHARACTERS])


def make_value_term(attribute: str, value: str) -> bytes:
    return make_prefix(attribute) + _encode(_reverse(value))


def _reverse(value: str) -> str:
    return (value[::-1] + ".")[:TERM_CHARACTERS] if value != "." else ""


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def find_prefix_end(prefix: bytes) -> bytes:
    """The first of the terms that come behind all that begin so; UTF-8 has no byte 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def list_value_rows(attribute: str, known: Places) -> Iterator[tuple[bytes, list[int]]]:
    """The rows of an attribute's values."""
    return _share_rows(make_prefix(attribute), [(_reverse(value), places) for value, places in known.items()])


def list_plain_rows(kind: bytes, known: Places) -> Iterator[tuple[bytes, list[int]]]:
    """The rows of types, or of owners."""
    return _share_rows(kind, [(name[:TERM_CHARACTERS], places) for name, places in known.items()])


def _share_rows(prefix: bytes, terms: list[tuple[str, int | list[int]]]) -> Iterator[tuple[bytes, list[int]]]:
    """Rows with their places. Only what begins a row is encoded: this is done for each value of a segment."""
    terms.sort(key=_get_term)
    begins = ""  # the term of the row that is being filled
    shared: list[int] = []
    marked = b""  # the next row begins right behind a term that has a row of its own, whatever term comes first
    last = None
    for term, places in terms:
        alone = not isinstance(places, int) and len(places) >= SHARED_PLACES
        # What was cut alike must not be parted, nor have a row of its own that does not hold all of it.
        if last is not None and (alone or len(shared) >= SHARED_PLACES) and term != last:
            if shared or marked:
                yield marked or prefix + _encode(begins), shared
            shared, marked = [], b""
        if isinstance(places, int):
            if not shared:
                begins = term
            shared.append(places)
        elif alone and len(term) < TERM_CHARACTERS:
            own = prefix + _encode(term)
            yield own, places
            shared, marked = [], own + b"\0"
        else:
            if not shared:
                begins = term
            shared += places
        last = term
    if shared or marked:
        yield marked or prefix + _encode(begins), shared


def _get_term(term: tuple[str, int | list[int]]) -> str:
    return term[0]
