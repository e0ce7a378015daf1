"""The lines of named's log channels beside the query log: the events they become, and whom else they are told.

Told in the process are: refused requests and policy hits to the rules, changes of updates to those who look for their
authors, the outcome of a reload to the part that watches the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from solowire.sources.bind9.log_line import LogLine, parse_client_message, parse_log_line
from solowire.sources.bind9.security.refusal_message import Refusal, parse_control_refusal, parse_refusal
from solowire.sources.bind9.security.rpz_message import EVENT_TYPE as HIT_TYPE
from solowire.sources.bind9.security.rpz_message import PolicyHit, make_hit_payload, parse_rpz_message
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.reload_log import ReloadLog, ServerNews
from solowire.sources.bind9.zones.update_authors import UpdateAuthors
from solowire.sources.bind9.zones.update_message import parse_update
from solowire.sources.files.line_meaning import SILENT_LINE, UNKNOWN_LINE, LineEvent, LineMeaning
from solowire.sources.files.log_condition import LogKind

SERVER_LOG = LogKind(
    name="server_log",
    title="log",
    wanted="one of named's own",
    channel_hint="name the `file` of a channel that named.conf's `logging` gives `category default`, and `rpz`, "
    "`security`, `update` if they have their own",
)


class SecurityObserver(Protocol):
    """Watches what the log tells of clients, on the loop of the source. at: unix seconds. It must not raise."""

    def observe_hit(self, hit: PolicyHit, at: float) -> None:
        """A query was answered by policy."""
        ...

    def observe_refusal(self, refusal: Refusal, at: float) -> None:
        """A request was refused."""
        ...


class OutcomeObserver(Protocol):
    """Watches how reloads of the configuration end."""

    def observe_outcome(self, success: bool, errors: Sequence[str]) -> None:
        """A reload has ended. errors: named's error lines, without secrets."""
        ...


class ServerLines:
    """What the lines of all logs of one server say."""

    kind = SERVER_LOG

    def __init__(
        self,
        reloads: ReloadLog,
        state: BindState,
        *,
        authors: UpdateAuthors | None = None,
        security: Sequence[SecurityObserver] = (),
        outcomes: Sequence[OutcomeObserver] = (),
    ) -> None:
        self._reloads = reloads
        self._state = state
        self._authors = authors
        self._security = security
        self._outcomes = outcomes

    def interpret_line(self, text: str, now: datetime) -> LineMeaning:
        """What a line says. Times without a zone are this machine's."""
        if _is_query(text):
            return SILENT_LINE
        line = parse_log_line(text, None, now)
        if line is None:
            return UNKNOWN_LINE
        if line.message.startswith("client "):
            return self._interpret_client(line, now)
        if (refusal := parse_control_refusal(line.message)) is not None:
            self._tell_refusal(refusal, line, now)
            return SILENT_LINE
        news = self._reloads.read_line(line)
        if news is None:
            return UNKNOWN_LINE if line.category is None and line.timestamp is None else SILENT_LINE
        return self._interpret_news(news, line)

    def recognizes_line(self, text: str) -> bool:
        """Whether it is a line of one of the categories that are looked for."""
        line = parse_log_line(text, None)
        if line is None:
            return False
        if line.category is not None or line.timestamp is not None or parse_client_message(line.message) is not None:
            return True
        return ReloadLog().read_line(line) is not None

    def _interpret_client(self, line: LogLine, now: datetime) -> LineMeaning:
        client = parse_client_message(line.message)
        if client is None:
            return UNKNOWN_LINE if line.category is None and line.timestamp is None else SILENT_LINE
        if (hit := parse_rpz_message(client)) is not None:
            for observer in self._security:
                observer.observe_hit(hit, _unix_time(line, now))
            return LineMeaning(True, LineEvent(HIT_TYPE, make_hit_payload(hit), line.timestamp))
        if (refusal := parse_refusal(client)) is not None:
            self._tell_refusal(refusal, line, now)
        elif self._authors is not None and (update := parse_update(client)) is not None:
            self._authors.note(
                zone=update.zone,
                name=update.name,
                action=update.action,
                type=update.type,
                value=update.value,
                client=client.client_ip,
                port=client.client_port,
                tsig_key=client.key,
                view=client.view,
                now=time.monotonic(),
            )
        return SILENT_LINE

    def _tell_refusal(self, refusal: Refusal, line: LogLine, now: datetime) -> None:
        for observer in self._security:
            observer.observe_refusal(refusal, _unix_time(line, now))

    def _interpret_news(self, news: ServerNews, line: LogLine) -> LineMeaning:
        if news.version is not None:
            self._state.version = news.version
        if news.outcome is not None:
            for observer in self._outcomes:
                observer.observe_outcome(news.outcome, news.errors)
        if news.reload is not None:
            return LineMeaning(True, LineEvent("bind_reload", news.reload, line.timestamp))
        if news.status is not None:
            self._state.set_status(news.status, news.reason)
            return LineMeaning(True, LineEvent("bind_status", self._state.make_payload(), line.timestamp))
        return SILENT_LINE


def _is_query(text: str) -> bool:
    """Whether a line can only be a query: in a log with all categories most are. An update may have any text in it."""
    place = text.find(": query: ")
    return place >= 0 and "updating zone" not in text[:place]


def _unix_time(line: LogLine, now: datetime) -> float:
    return (now if line.timestamp is None else datetime.fromisoformat(line.timestamp)).timestamp()
