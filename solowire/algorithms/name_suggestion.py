"""The name that is meant by a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_CUTOFF = 0.7  # of difflib's ratio: PROT is PORT by 0.75


def find_match(wrong: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `wrong`, whatever its case; None if none of them is much like it."""
    by_folded = {name.casefold(): name for name in known}
    found = get_close_matches(wrong[:200].casefold(), by_folded, n=1, cutoff=_CUTOFF)
    return by_folded[found[0]] if found else None


def suggest_name(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """What follows "unknown …": `; did you mean 'X'?`, or `; ` and `otherwise` where nothing is much like it."""
    found = find_match(wrong, known)
    if found is not None:
        return f"; did you mean {found!r}?"
    return f"; {otherwise}" if otherwise else ""
