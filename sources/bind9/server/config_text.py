"""The text of a configuration: what it includes, its secrets, and the difference of two.

Pure: text in, values out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, unified_diff
from itertools import islice

import msgspec

from solowire.sources.bind9.conf_tokens import split_tokens

DIFF_BYTES = 16_000
"""Of a difference as JSON: an event has 32 KB at most."""
DIFF_STATEMENTS = 400
DIFF_LINES = 5_000
"""In so many statements, and so many lines side by side, texts may differ: more is only counted."""
_CONTEXT = 3


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
    for token in split_tokens(text):
        word = token.text
        if token.is_mark:
            last = ""
            continue
        if last == "include":
            includes.append(word)
        elif last == "secret":
            secrets.append(word)
        elif last == "directory":
            directory = word
        last = "" if token.is_quoted else word
    return ConfigReferences(includes, secrets, directory)


def compare_texts(before: str, after: str) -> ConfigDifference:
    """The difference of two texts, in bounded time and size.

    Statements are compared first, and then the lines of those that differ: so that two edits far apart in a text with
    thousands of zones are two hunks.
    """
    old, new = _split_statements(before), _split_statements(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    places = _count_lines(old[:start])
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    removed, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
    common = Counter(new).most_common(1)
    if removed.total() + added.total() > DIFF_STATEMENTS or (common and common[0][1] > DIFF_STATEMENTS):
        return ConfigDifference(None, _count_all(added), _count_all(removed))
    lines = ["--- before", "+++ after"]
    at = [places, places]
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        sides = _join(old[i1:i2]), _join(new[j1:j2])
        if tag != "equal":
            if max(map(len, sides)) > DIFF_LINES:
                return ConfigDifference(None, _count_all(added), _count_all(removed))
            hunks = unified_diff(*sides, n=_CONTEXT, lineterm="")
            lines += [_move_hunk(line, *at) for line in islice(hunks, 2, None)]
        at = [place + len(side) for place, side in zip(at, sides, strict=True)]
    return ConfigDifference(
        _cut(lines),
        sum(line.startswith("+") for line in lines[2:]),
        sum(line.startswith("-") for line in lines[2:]),
    )


def _split_statements(text: str) -> list[str]:
    """The statements of a canonical text, and those within views, each with its lines."""
    statements: list[str] = []
    lines: list[str] = []
    is_view = False
    for line in text.split("\n"):
        lines.append(line)
        if line.startswith("view "):
            is_view = True
        elif line.startswith("}"):
            is_view = False
        ends = not line.startswith("\t") and not line.endswith("{")
        if ends or (is_view and (line == "\t};" or line.startswith("view "))):
            statements.append("\n".join(lines))
            lines = []
    if lines:
        statements.append("\n".join(lines))
    return statements


def _join(statements: Sequence[str]) -> list[str]:
    return [line for statement in statements for line in statement.split("\n")]


def _count_lines(statements: Iterable[str]) -> int:
    return sum(statement.count("\n") + 1 for statement in statements)


def _count_all(statements: Counter[str]) -> int:
    return _count_lines(statements.elements())


def _move_hunk(line: str, old: int, new: int) -> str:
    """A hunk's head with the lines' numbers in the whole text. old, new: the lines before it."""
    if not line.startswith("@@"):
        return line
    by = {"-": old, "+": new}
    return re.sub(r"([-+])(\d+)", lambda number: f"{number[1]}{int(number[2]) + by[number[1]]}", line)


def _cut(lines: Sequence[str]) -> str:
    kept, size = [], 0
    for index, line in enumerate(lines):
        size += len(msgspec.json.encode(line))
        if size > DIFF_BYTES:
            kept.append(f"… {len(lines) - index} more lines")
            break
        kept.append(line)
    return "\n".join(kept)
