"""The paths at which old clients look for their sockets, and what they ask for there."""

from __future__ import annotations

from solowire.domains.dns.legacy.event_names import DEFAULTS
from solowire.model.dialect import DialectPath

_ROOTS = {"/api/websocket/ws": True, "/api/unified/ws": True, "/ws": False}
"""By path: whether old clients alone come there."""
_TYPED = ("/api/websocket/ws/", "/ws/")
DEFAULT_KIND = "admin"
"""What a path without a type means: the page opens it always, and gets what its user may see."""


def find_client_path(path: str) -> DialectPath | None:
    """What a path asks for; None if no old client uses it. The user's number in a path says nothing: the token does."""
    if path in _ROOTS:
        return DialectPath(DEFAULT_KIND, path, _ROOTS[path])
    for root in _TYPED:
        if path.startswith(root):
            kind, slash, user = path.removeprefix(root).partition("/")
            if kind not in DEFAULTS or (slash and (root != "/ws/" or not user or "/" in user)):
                return None
            return DialectPath(kind, f"{root}{{type}}" + ("/{user_id}" if slash else ""))
    return None
