"""The tokens of named's configuration language: words, quoted texts, braces and semicolons, without comments.

Pure: text in, values out, in time that grows with its length. What looks like a comment within quotes is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
    (?: // | \# ) [^\n]* | /\* .*? (?: \*/ | \Z )  # comments
    | "(?P<quoted> (?: [^"\\] | \\. )* ) (?: " | \Z )
    | (?P<word> [^\s"{};/\#]+ (?: /(?! [/*] ) [^\s"{};/\#]* )* | /(?! [/*] ) [^\s"{};\#]* )
    | (?P<mark> [{};] )
    """,
    re.VERBOSE | re.DOTALL,
)


class ConfToken(NamedTuple):
    """A token. is_mark: a brace or a semicolon, which a quoted one is not."""

    text: str
    is_mark: bool = False
    is_quoted: bool = False


def split_tokens(text: str) -> Iterator[ConfToken]:
    """All tokens of a text, also of a damaged one, as far as they can be told."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind is not None:
            yield ConfToken(match[kind], kind == "mark", kind == "quoted")
