"""The text of a configuration: what it includes, its secrets, and the difference of two.

Pure: text in, values out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import unified_diff

import msgspec

DIFF_BYTES = 16_000
"""Of a difference as JSON: an event has 32 KB at most."""
DIFF_LINES = 5_000
"""Of the stretch in which two texts differ: a difference of more is only counted."""
_CONTEXT = 3

_TOKEN = re.compile(
    r"""
    (?: // | \# ) [^\n]* | /\* .*? (?: \*/ | \Z )  # comments
    | "(?P<text> (?: [^"\\] | \\. )* ) (?: " | \Z )
    | (?P<word> [^\s"{};/\#]+ (?: /(?! [/*] ) [^\s"{};/\#]* )* | /(?! [/*] ) [^\s"{};\#]* )
    | [{};]
    """,
    re.VERBOSE | re.DOTALL,
)


class ConfigReferences(msgspec.Struct, frozen=True):
    """What a file of a configuration names. includes: paths or patterns. directory: that relative ones are of."""

    includes: list[str]
    secrets: list[str]
    directory: str | None = None


class ConfigDifference(msgspec.Struct, frozen=True):
    """The difference of two texts. diff: unified, cut with a note; None if it is too long to be made."""

    diff: str | None
    added_count: int
    removed_count: int


def find_references(text: str) -> ConfigReferences:
    """What a file of a configuration names. Comments say nothing, and damaged files as much as can be read."""
    includes, secrets = [], []
    directory, last = None, ""
    for token in _TOKEN.finditer(text):
        word = token["text"] if token["text"] is not None else token["word"]
        if word is None:
            if token[0] in "{};":
                last = ""
            continue
        if last == "include":
            includes.append(word)
        elif last == "secret":
            secrets.append(word)
        elif last == "directory":
            directory = word
        last = word if token["text"] is None else ""
    return ConfigReferences(includes, secrets, directory)


def compare_texts(before: str, after: str) -> ConfigDifference:
    """The difference of two texts, in bounded time and size."""
    old, new = before.split("\n"), after.split("\n")
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    changed = len(old) - start - end, len(new) - start - end
    if max(changed) > DIFF_LINES:
        return ConfigDifference(None, changed[1], changed[0])
    first = max(0, start - _CONTEXT)
    lines = list(
        unified_diff(
            old[first : len(old) - max(0, end - _CONTEXT)],
            new[first : len(new) - max(0, end - _CONTEXT)],
            "before",
            "after",
            n=_CONTEXT,
            lineterm="",
        )
    )
    added = sum(line.startswith("+") for line in lines[2:])
    removed = sum(line.startswith("-") for line in lines[2:])
    return ConfigDifference(_cut([_move_hunk(line, first) for line in lines]), added, removed)


def _move_hunk(line: str, by: int) -> str:
    """A hunk's head with the lines' numbers in the whole text."""
    if not line.startswith("@@"):
        return line
    return re.sub(r"([-+])(\d+)", lambda number: f"{number[1]}{int(number[2]) + by}", line)


def _cut(lines: Sequence[str]) -> str:
    kept, size = [], 0
    for index, line in enumerate(lines):
        size += len(msgspec.json.encode(line))
        if size > DIFF_BYTES:
            kept.append(f"… {len(lines) - index} more lines")
            break
        kept.append(line)
    return "\n".join(kept)
