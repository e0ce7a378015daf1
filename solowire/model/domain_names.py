r"""DNS names as hierarchical attributes hold them: their one form, what is no name at all, and the names above one.

What it keeps true: a name has MAX_OCTETS octets and MAX_LABELS labels at most (RFC 1035, section 3.1), whoever gave it,
so that the names above it are few and short; nothing but a small cache holds those.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_OCTETS = 255
MAX_LABELS = 127

CACHED_NAMES = 128
"""So many names have the names above them at hand, 8 MB at the very most: an event is matched by many, one by one."""

_SURELY_SHORT = 60
"""So many characters are no more than 240 octets, nor more labels than one each."""

_ESCAPE = re.compile(r"\\(?:[0-9]{3}|.)", re.DOTALL)


def canonical_name(name: str) -> str:
    r"""A DNS name as hierarchical attributes hold it, and as a filter value must be given to match them.

    Lower case, no last dot (the root stays "."). A dot within a label (`a\.example.com`) is written `\046`,
    so that it can't be taken for one between labels, which would put the name beneath a zone that it is not
    in.
    """
    if "\\" in name:
        name = _ESCAPE.sub(lambda found: r"\046" if found[0] == r"\." else found[0], name)
    name = name.lower()
    return name if name.endswith("..") else name.removesuffix(".") or "."  # what is no name stays none


def describe_name_fault(name: str) -> str | None:
    """Why a canonical name is none, in words; None if it may be one. What is escaped counts as the octet that it is."""
    if len(name) <= _SURELY_SHORT:
        return None
    labels = name.count(".") + 1
    if labels > MAX_LABELS:
        return f"a name has {MAX_LABELS} labels at most, this one has {labels}"
    plain = _ESCAPE.sub("x", name) if "\\" in name else name
    octets = len(plain.encode(errors="surrogatepass")) + 2  # a length before each label, and the root
    if octets > MAX_OCTETS:
        return f"a name takes {MAX_OCTETS} octets at most, this one {octets}"
    return None


@lru_cache(maxsize=CACHED_NAMES)
def names_above(name: str, deepest: int = MAX_LABELS) -> tuple[str, ...]:
    """The root, and the canonical names of `deepest` labels at most that are above `name`, or are it.

    deepest: as many labels as anything that is looked for has; what has more would be made in vain.
    """
    found = ["."]
    at = -1 if name == "." else len(name)
    while at >= 0 and len(found) <= deepest:
        at = name.rfind(".", 0, at)
        found.append(name[at + 1 :])
    return tuple(found)


def count_labels(name: str) -> int:
    """Labels of a canonical name; 1 for the root."""
    return name.count(".") + 1
