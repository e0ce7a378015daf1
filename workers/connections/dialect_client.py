"""The client of a connection that speaks a dialect: what there is of it beside the connection's own state."""

from __future__ import annotations

from solowire.model.dialect import DialectPath, DialectSession


class DialectClient:
    """One such client. name: of the dialect. path: at which it came. agent: the family of its user agent.

    is_decided: it speaks the dialect for sure.
    """

    __slots__ = ("agent", "is_decided", "name", "path", "session", "silenced_until")

    def __init__(self, name: str, path: DialectPath, session: DialectSession, agent: str) -> None:
        self.name = name
        self.path = path
        self.session = session
        self.agent = agent
        self.is_decided = path.is_certain
        self.silenced_until = float("-inf")  # monotonic: until then it is not told again that it says too much
