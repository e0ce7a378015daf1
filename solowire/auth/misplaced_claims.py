"""Claims of ours at a place, or in a spelling, where nobody reads them: what a token that was meant to be narrow has.

Pure. What it keeps true: what would narrow a token, and would be passed over, is found. Looked through are

* the names beside ours, whatever their case, blanks and signs (`Zones`, `clientIp`, `JTI`), also with a namespace
  before them, as OpenID providers want it (`https://app.example/zones`);
* names that speak of what the domain narrows by an alias (of zones: `dns_zones`, `allowedZone`), where they have a
  text, a list or an object, and the token is our own; but for those of time zones (`time_zone`);
* objects that are none of ours, for lists called like that (`zone`, `zones`, `dns_zones`), and objects called `scopes`;
  those that are meant for us (`solowire`, or with a namespace) for one text called `zone`, too;
* other names for what a token is made for (`token_type`), where they say that it only gets others.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from solowire.model.domain import Domain

OAUTH_TEXTS = frozenset(["scope", "scopes"])
"""One text of these is OAuth's scope (RFC 8693, section 4.2), which is none of ours."""
_REGISTERED = frozenset(["name", "status"])
"""Registered claims (IANA, JSON Web Token Claims) that are called like a scope."""
_COMMON = _REGISTERED.union(
    ("action", "actor", "category", "component", "entity_type", "host", "node", "operation", "server", "severity"),
    ("success", "topic", "user"),
)
"""Scopes whose names applications use for other things, too: at the top they are ours only where they have a list."""
_PURPOSES = frozenset(["tokentype", "tokenuse", "typ"])
_GETS_OTHERS = ("refresh", "offline")
_LAST_PART = re.compile(r"[^/:#]*\Z")
_WORD = re.compile(r"[A-Z]*[^A-Z\W_]+|[A-Z]+")


class Misplaced(NamedTuple):
    """A claim of ours that stands where nobody reads it.

    name: as it stands in the token. within: the claim that it stands in, if it isn't at the top.
    """

    name: str
    within: str | None
    hint: str


class _Known(NamedTuple):
    spelling: str
    belongs: str  # the claim of ours that it is, or is a part of


def _fold(name: str) -> str:
    """Letters and digits alone, in small letters."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def _known(ours: Container[str], names: tuple[str, ...], scopes: Iterable[str]) -> dict[str, _Known]:
    found = {name: _Known(name, name) for name in names}
    found |= {name: _Known(name, f"{name}s") for name in ("scope", "permission")}
    found |= {f"{name}s": _Known(name, name) for name in ("role", "tenant")}
    for name in scopes:
        if name not in ours:
            found.setdefault(name, _Known(name, "scopes"))
            found.setdefault(f"{name}s", _Known(f"{name}s", "scopes"))
    return {_fold(name): known for name, known in found.items()}


class MisplacedClaims:
    """Finds claims of ours at a place, or in a spelling, where nobody reads them.

    ours: the names of our claims. domain: whose scopes they may be.
    """

    def __init__(self, ours: tuple[str, ...], domain: Domain) -> None:
        self._ours = frozenset(ours)
        self._known = _known(self._ours, ours, domain.catalog.attributes)
        self._alias_of = {name: alias for alias, name in domain.scope_aliases.items()}
        self._alias_of |= {alias: alias for alias in domain.scope_aliases}

    def find(
        self, raw_claims: Mapping[str, Any], read: Container[str] | None = None, elsewhere: Container[str] = ()
    ) -> Misplaced | None:
        """The first of a token's claims that is misplaced.

        read: names that somebody reads, ours by default; of a provider's tokens those of its mapping: what else
        speaks of a scope there is the provider's business. elsewhere: claims of ours that are read under other names.
        """
        is_ours, read = read is None, self._ours if read is None else read
        for name, value in raw_claims.items():
            if name in read:
                continue
            hint = self._hint_at_top(name, value, elsewhere) or _hint_of_purpose(name, value)
            if hint is None and is_ours and (alias := self._find_alias(name, value, (str, list, dict))):
                hint = _hint_of_scope(alias)
            if hint is not None:
                return Misplaced(name, None, hint)
            is_for_us = _LAST_PART.findall(name)[0] != name or _fold(name) == "solowire"
            for inner, inner_value in _walk(value):
                if self._narrows_within(inner, inner_value, is_for_us):
                    return Misplaced(inner, name, _hint_of_scope(_fold(inner)))
                if is_ours and (alias := self._find_alias(inner, inner_value, (list, dict))):
                    return Misplaced(inner, name, _hint_of_scope(alias))
        return None

    def _hint_at_top(self, name: str, value: object, elsewhere: Container[str]) -> str | None:
        """Where it belongs; None for what is none of ours."""
        last = _LAST_PART.findall(name)[0]
        known = self._known.get(_fold(last))
        is_list = isinstance(value, list)
        if known is None or (known.belongs != "scopes" and last != name):
            return None
        spelling = known.spelling
        if known.belongs in elsewhere or (spelling in OAUTH_TEXTS and isinstance(value, str)):
            return None
        if spelling in OAUTH_TEXTS or known.belongs != "scopes":
            return f"it is called {known.belongs!r}"
        is_common = spelling in _COMMON or spelling.removesuffix("s") in _COMMON
        if (is_common or (last != name and spelling not in self._alias_of)) and not is_list:
            return None
        return _hint_of_scope(spelling)

    def _narrows_within(self, name: str, value: object, is_for_us: bool) -> bool:
        folded = _fold(name)
        texts = (list, str) if is_for_us else list
        is_alias = folded in self._alias_of and isinstance(value, texts)
        return is_alias or (folded in OAUTH_TEXTS and isinstance(value, dict))

    def _find_alias(self, name: str, value: object, kinds: tuple[type, ...]) -> str | None:
        """The alias of the scope that the name speaks of, if its value is one of these; None if of none."""
        if not isinstance(value, kinds):
            return None
        words = [word.casefold() for word in _WORD.findall(name)]
        if "time" in words:
            return None
        return next((self._alias_of[word] for word in words if word in self._alias_of), None)


def _hint_of_scope(name: str) -> str:
    if name in OAUTH_TEXTS:
        return "it is called 'scopes', and stands beside 'sub'"
    return f'write it within scopes: {{"scopes": {{{json.dumps(name)}: […]}}}}'


def _hint_of_purpose(name: str, value: object) -> str | None:
    if _fold(name) in _PURPOSES and isinstance(value, str) and _fold(value).startswith(_GETS_OTHERS):
        return f"it says {value[:40]!r}, which gets other tokens and opens nothing: use an access token"
    return None


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """All names within it, however deep, and what they have; without recursion: it may be 4,000 levels deep."""
    unsearched = [value]
    while unsearched:
        found = unsearched.pop()
        if isinstance(found, dict):
            yield from found.items()
            unsearched.extend(found.values())
        elif isinstance(found, list):
            unsearched.extend(found)
