"""The subscriptions of a client, kept for its next `hello`, which they have to fit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches

import msgspec

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidMessage, MessageRefused, SubscriptionDenied
from solowire.model.subscriptions import DeniedPattern, Filter, Wanted, expand_pattern, find_idle, unsubscribe
from solowire.protocol.messages import MAX_MESSAGE_BYTES, Hello

MAX_WARNED = 1000
"""Subscriptions that are not granted and were warned of: whoever asks for ever new ones is not."""

_SUBSCRIPTIONS_BYTES = MAX_MESSAGE_BYTES - 1024
"""What of a `hello` may be subscriptions and filters, as JSON; the rest is for its cursor."""

logger = logging.getLogger("solowire.client")


class KeptSubscriptions:
    """The subscriptions of a client, kept to be repeated after a reconnect.

    filter: of the hello. patterns: what is asked for with it, None for the defaults of the role. granted: by the
    server, as it last told.
    """

    def __init__(self, filter: Filter, patterns: Sequence[str] | None, *, strict: bool) -> None:
        self.filter = filter
        self.granted: list[str] = []
        self._wanted: Wanted | None = None if patterns is None else dict.fromkeys(patterns, filter)
        self._is_strict = strict
        self._warned_denied: set[tuple[str, str]] = set()
        self._warned_idle: set[str] = set()  # attributes, of which there are few

    @property
    def wanted(self) -> Wanted:
        """The subscriptions to come back with; before the first change, what the server granted as defaults."""
        return dict.fromkeys(self.granted, self.filter) if self._wanted is None else self._wanted

    def make_hello(self) -> Hello:
        """A `hello` that asks for all of them. Raises MessageRefused if that is more than one message holds."""
        return build_hello(self._wanted, self.filter)

    def check_change(self, change: Callable[[Wanted], Wanted]) -> None:
        """Raises MessageRefused if what the change makes of them would not fit one hello; InvalidMessage."""
        build_hello(change(self.wanted), self.filter)

    def apply_change(self, change: Callable[[Wanted], Wanted], granted: Sequence[str]) -> None:
        """The server has obeyed, and grants these now."""
        try:
            self._wanted = change(self.wanted)
        except InvalidMessage:  # the server's catalogue is another than ours: then as it says
            self._wanted = dict.fromkeys(granted, self.filter)

    def remove(self, wanted: Wanted, names: Sequence[str]) -> Wanted:
        """`wanted` without these. Raises InvalidMessage if what stays can't be said."""
        return unsubscribe(self._spell_out_categories(wanted, names), names, CATALOG)

    def _spell_out_categories(self, wanted: Wanted, leaving: Sequence[str]) -> Wanted:
        """`wanted` with the types of categories that only the server knows in place of `category.*`.

        Raises InvalidMessage if there are several: which type is of which is not known here.
        """
        unknown = [p for p in wanted if p.endswith(".*") and p not in leaving and not expand_pattern(p, CATALOG)]
        if not unknown:
            return wanted
        if len(unknown) > 1:
            fault = f"{' and '.join(unknown)} can't be told apart here"
            raise InvalidMessage("invalid_message", fault, "subscribe to their types by name")
        spelt: Wanted = {}
        for pattern, filter in wanted.items():
            names = [n for n in self.granted if CATALOG.get(n) is None] if pattern in unknown else [pattern]
            for name in names:
                spelt.setdefault(name, filter)
        return spelt

    def report_denied(self, denied: Sequence[DeniedPattern], *, is_first: bool = True) -> None:
        """Warns of each once. Raises SubscriptionDenied instead, if that was wished for and it is the first answer."""
        texts = {one.type: describe_denial(one) for one in denied}
        if texts and self._is_strict and is_first:
            reasons = {one.type: one.reason for one in denied}
            raise SubscriptionDenied("not granted: " + "; ".join(texts.values()), "", reasons)
        for one in denied:
            if (one.type, one.reason) not in self._warned_denied and len(self._warned_denied) < MAX_WARNED:
                self._warned_denied.add((one.type, one.reason))
                logger.warning("not granted: %s; nothing of it will come", texts[one.type])

    def report_not_removed(self, names: Sequence[str], denied: Sequence[DeniedPattern]) -> None:
        """Warns of those that name nothing, or raises SubscriptionDenied."""
        unknown = [one for one in denied if one.type in names and one.reason == "unknown_type"]
        if not unknown:
            return
        texts = "not unsubscribed: " + "; ".join(map(describe_denial, unknown))
        if self._is_strict:
            raise SubscriptionDenied(texts, "", {one.type: one.reason for one in unknown})
        logger.warning("%s; what was meant goes on", texts)

    def report_idle(self, filter: Filter, names: Iterable[str]) -> None:
        """Warns once of what is filtered by and no type has: all events of these types come."""
        for name in find_idle(filter, names, CATALOG):
            if name not in self._warned_idle:
                self._warned_idle.add(name)
                logger.warning("the filter by %r narrows nothing: no event type that it goes with has that", name)


def describe_denial(denied: DeniedPattern) -> str:
    """Why a subscription is not granted, and what was meant, in words."""
    if denied.reason != "unknown_type":
        return f"{denied.type} ({denied.reason}" + (f": {denied.hint})" if denied.hint else ")")
    known = [*CATALOG.names, *(f"{category}.*" for category in CATALOG.categories), "custom.*", "*"]
    close = get_close_matches(denied.type, known, 1)
    hint = f"did you mean {close[0]}?" if close else denied.hint
    return f"{denied.type!r} is no event type" + (f" ({hint})" if hint else "")


def make_filter(filter: Mapping[str, Sequence[str]] | None) -> Filter:
    """A filter as it was given, in the form that can be compared."""
    return tuple(sorted((name, frozenset(values)) for name, values in (filter or {}).items()))


def _plain(filter: Filter) -> dict[str, list[str]] | None:
    return {name: sorted(values) for name, values in filter} or None


def build_hello(wanted: Wanted | None, default: Filter) -> Hello:
    """A `hello` that asks for exactly `wanted`. Raises MessageRefused if that is more than one message holds.

    The filter that would take most room, were it repeated for each of its patterns, is the one for all of them.
    """
    if wanted is None:
        hello = Hello(filter=_plain(default))
    else:
        uses = Counter(wanted.values())
        common = max(uses, key=lambda filter: uses[filter] * len(repr(filter)), default=())
        own = {pattern: _plain(filter) or {} for pattern, filter in wanted.items() if filter != common}
        hello = Hello(subscriptions=list(wanted), filter=_plain(common), filters=own or None)
    if len(msgspec.json.encode(hello)) > _SUBSCRIPTIONS_BYTES:
        raise MessageRefused(
            "too_big",
            f"subscriptions and filters take more than the {_SUBSCRIPTIONS_BYTES} bytes that one message may hold",
            "use fewer or shorter filters, or one for many types",
        )
    return hello
