"""The scopes of a token, parsed strictly.

    {"zones": ["Example.com.", "example.org"]}  ─►  {"zone": ("example.com", "example.org")}

What it keeps true: a scope only ever narrows, and what nobody can have meant narrows nothing by accident and widens
nothing: it is refused with its name, never left out, since a scope that is left out shows everything.

* A name is one that event types declare, or an alias of the domain's (`zones` for `zone`), and not both. Names are
  spelt exactly.
* No scopes at all, `{}`, or an attribute that is left out: every value is shown. That is the only way to say "all".
* `[]`: no value at all is shown, so of the types that declare the attribute nothing.
* A value of a hierarchical attribute is a DNS name (RFC 1035, with RFC 2181's freedom of characters): labels of 1 to 63
  characters, 255 octets and 127 labels at most, in any case, with or without its last dot. Of two spellings of one name
  one is kept. The empty name, the root `.` and wildcards would mean everything, or nothing, and are refused.
* A value of another attribute is taken as it stands; one that is empty, has blanks around it, is `*`, or has more than
  1,024 characters, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from solowire.errors import InvalidToken
from solowire.model.catalog import Attribute
from solowire.model.domain import Domain

MAX_NAME_OCTETS = 255
MAX_LABELS = 127
MAX_LABEL_CHARACTERS = 63
MAX_VALUE_CHARACTERS = 1024

_ESCAPED = re.compile(r"\\(?:[0-9]{3}|.)", re.DOTALL)
_ALL = "leave the scope out where every value may be seen"


def read_scopes(claimed: Mapping[str, Iterable[str]], domain: Domain) -> dict[str, tuple[str, ...]]:
    """A token's scopes in canonical form: attribute → values. Raises InvalidToken, which names the fault."""
    scopes: dict[str, tuple[str, ...]] = {}
    for name, values in claimed.items():
        attribute = domain.find_scope(name)
        if attribute is None:
            raise InvalidToken(
                f"the token's scope {name[:64]!r} is no attribute of any event type",
                hint=f"scopes are {domain.scope_names}",
            )
        if attribute.name in scopes:
            twice = [name for name in claimed if domain.find_scope(name) is attribute]
            raise InvalidToken(
                f"the token has a scope both as {min(twice)!r} and as {max(twice)!r}", hint="keep one of them"
            )
        scopes[attribute.name] = tuple(dict.fromkeys(_value(name, attribute, value) for value in values))
    return scopes


def _value(scope: str, attribute: Attribute, value: str) -> str:
    fault, hint = (find_name_fault if attribute.hierarchical else _find_plain_fault)(value)
    if fault:
        raise InvalidToken(f"the token's scope {scope!r} holds {value[:80]!r}, which {fault}", hint=hint)
    return attribute.normalize(value)


def find_name_fault(name: str) -> tuple[str, str]:
    """Why `name` can't say which DNS names somebody may see, and the way out; ("", "") if it can."""
    if not name:
        return "is empty", _ALL
    if name == ".":
        return "is the root, above every name", _ALL
    if re.search(r"[\s\x00-\x1f\x7f]", name):
        return "has blanks or control characters in it", "write each name alone, such as example.com"
    labels = _ESCAPED.sub("x", name).removesuffix(".").split(".")
    if "*" in labels:
        return "is a wildcard", f"a name covers all names beneath it: write example.com for *.example.com; {_ALL}"
    if "" in labels:
        return "has an empty label", "write it without the dot too many"
    if len(labels) > MAX_LABELS:
        return (
            f"is too long: a name has {MAX_LABELS} labels at most, this one has {len(labels)}",
            "no event can have it",
        )
    octets = len(".".join(labels).encode(errors="replace")) + 2  # a length before each label, and the root
    if octets > MAX_NAME_OCTETS:
        return f"is too long: a name takes {MAX_NAME_OCTETS} octets at most, this one {octets}", "no event can have it"
    if any(len(label) > MAX_LABEL_CHARACTERS for label in labels):
        return "has too long a label for a DNS name", f"{MAX_LABEL_CHARACTERS} characters are the most"
    return "", ""


def _find_plain_fault(value: str) -> tuple[str, str]:
    if not value.strip():
        return "is empty", _ALL
    if value != value.strip():
        return "has blanks around it", "write it as events have it"
    if value == "*":
        return "is a wildcard", f"scopes list values; {_ALL}"
    if len(value) > MAX_VALUE_CHARACTERS:
        return f"may have {MAX_VALUE_CHARACTERS} characters, and has {len(value)}", "no event can have it"
    return "", ""
