"""The states of forwarders and hosts that translators remember, for frames that say more than one event does.

What it keeps true: whatever is published, it is bounded in states and in bytes, of each view and of all together. Of an
event only those fields are kept that a frame is made of, with their texts cut (`frame_data`); of what has a longer name
than MAX_TEXT nothing is. What is older never takes the place of what is newer.

Where there is no more room, the state that was heard of first is forgotten: of the kind that takes the most.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from sys import getsizeof
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from solowire.domains.dns.legacy.frame_data import HOST_FIELDS, MAX_TEXT, Data, ForwarderRow, encode_forwarder

MAX_STATES = 1_000
"""Of each kind, for one view."""
MAX_VIEW_BYTES = 2 * 2**20
MAX_TOTAL_BYTES = 64 * 2**20
"""Of all views of a shard together, each of which may have an equal part of it in any case."""
STATE_BYTES = 500
"""What Python takes for one, its texts apart."""

T = TypeVar("T")


class StateBudget:
    """What the known states of all views take together. bytes: now. view_count: how many have any."""

    def __init__(self, max_bytes: int = MAX_TOTAL_BYTES) -> None:
        self.bytes = 0
        self.view_count = 0
        self.max_bytes = max_bytes

    @property
    def view_bytes(self) -> int:
        """What one view may take."""
        return min(MAX_VIEW_BYTES, self.max_bytes // max(1, self.view_count))


class _KnownState(NamedTuple, Generic[T]):
    """A state that is remembered. offset: at which it was said. size: bytes."""

    offset: int
    value: T
    size: int


class _StateTable(Generic[T]):
    """States of one kind, in the order in which they were first heard of. bytes: of all."""

    def __init__(self) -> None:
        self.states: dict[str, _KnownState[T]] = {}
        self.bytes = 0

    def put_state(self, name: str, value: T, offset: int, size: int) -> None:
        known = self.states.get(name)
        if len(name) > MAX_TEXT or (known is not None and known.offset > offset):
            return
        if known is None and len(self.states) >= MAX_STATES:
            self.forget_first()
        size += STATE_BYTES + getsizeof(name)
        self.states[name] = _KnownState(offset, value, size)
        self.bytes += size - (0 if known is None else known.size)

    def forget_first(self) -> None:
        self.bytes -= self.states.pop(next(iter(self.states))).size


class KnownStates:
    """What is known to the readers of one view. budget: of all views together; without one it has its own."""

    def __init__(self, budget: StateBudget | None = None) -> None:
        self._budget = StateBudget() if budget is None else budget
        self._budget.view_count += 1
        self._forwarders: _StateTable[ForwarderRow] = _StateTable()
        self._statuses: _StateTable[tuple[str, str | None]] = _StateTable()  # the present one, and the one before it
        self._hosts: _StateTable[Data] = _StateTable()
        self._tables: tuple[_StateTable[Any], ...] = (self._forwarders, self._statuses, self._hosts)
        self._charged_bytes = 0

    def __del__(self) -> None:
        self._budget.view_count -= 1
        self._budget.bytes -= self._charged_bytes

    @property
    def bytes(self) -> int:
        """What it takes, nearly."""
        return sum(table.bytes for table in self._tables)

    @property
    def forwarders(self) -> dict[str, ForwarderRow]:
        """Of each forwarder, by its id as text, the row of the page's list."""
        return {name: known.value for name, known in self._forwarders.states.items()}

    def note_forwarder(self, row: Data, offset: int) -> None:
        """Keeps what was said of a forwarder. row: as `frame_data.make_forwarder` makes it."""
        encoded = encode_forwarder(row)
        self._forwarders.put_state(str(row["id"]), encoded, offset, getsizeof(encoded.json))
        self._trim()

    def find_status(self, forwarder: str, offset: int) -> str | None:
        """Which status the forwarder had before the event at `offset`, as far as that is known."""
        known = self._statuses.states.get(forwarder)
        if known is None or known.offset > offset:
            return None
        # Another translator of this view, or this one before, may have noted the same event.
        return known.value[known.offset == offset]

    def note_status(self, forwarder: str, status: str, offset: int) -> None:
        before = self.find_status(forwarder, offset)
        self._statuses.put_state(forwarder, (status[:MAX_TEXT], before), offset, 2 * getsizeof(status[:MAX_TEXT]))
        self._trim()

    def find_host(self, host: str) -> Data:
        """What the host has said last, of each of HOST_FIELDS that it has ever said."""
        known = self._hosts.states.get(host)
        return {} if known is None else known.value

    def note_host(self, host: str, figures: Mapping[str, Any], offset: int) -> None:
        """Keeps what an event says of a host. figures: by their names; what is none of HOST_FIELDS is not kept."""
        kept = {name: figures[name] for name in HOST_FIELDS if name in figures}
        self._hosts.put_state(host, {**self.find_host(host), **kept}, offset, 0)
        self._trim()

    def _trim(self) -> None:
        """Forgets what is too much, and tells the budget what is left."""
        budget = self._budget
        others = budget.bytes - self._charged_bytes
        most = min(budget.view_bytes, budget.max_bytes - others)
        while (size := self.bytes) > max(0, most):
            max(self._tables, key=_bytes_of).forget_first()
        budget.bytes = others + size
        self._charged_bytes = size


class ViewStates:
    """The known states of each view that has readers, within one budget."""

    def __init__(self) -> None:
        self._budget = StateBudget()
        self._by_view: WeakValueDictionary[Hashable, KnownStates] = WeakValueDictionary()

    def find_states(self, view: Hashable) -> KnownStates:
        """Those that all translators of the view share, as long as there is one."""
        known = self._by_view.get(view)
        if known is None:
            known = self._by_view[view] = self.make_states()
        return known

    def make_states(self) -> KnownStates:
        """Those of one translator alone."""
        return KnownStates(self._budget)


def _bytes_of(table: _StateTable[Any]) -> int:
    return table.bytes
