"""The life of a server as its log tells it: start, stop, reloads, and what went wrong with them.

Pure. The categories are `general`, `config` and `zoneload`. What it keeps true:

* A reload is one `bind_reload`: success, or failure with the error lines since named began to read its configuration.
* A zone that could not be loaded is a `bind_reload` of its own that failed, with `zone`: named says "succeeded" of a
  reload after which zones are missing.
* `running` is also written after each reload: it is a start only if no reload came before it.
* Memory is bounded: ERRORS lines of ERROR_CHARACTERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec

from solowire.sources.bind9.log_line import LogLine

ERRORS = 20
ERROR_CHARACTERS = 400

_CONFIGURATION = re.compile(r"reloading configuration (?:(succeeded)|failed(?:: (.*))?)", re.DOTALL)
_ZONES = re.compile(r"(?:reloading|loading new) zones failed(?:: (.*))?", re.DOTALL)
_COMMAND = re.compile(r"received control channel command '(?P<command>.*)'", re.DOTALL)
_VERSION = re.compile(r"starting BIND (?P<version>[!-~]+)(?: .*)?", re.DOTALL)
_EXIT = re.compile(r"exiting(?: \((?P<reason>.+)\))?")
_ZONE = re.compile(
    r"zone (?P<zone>[!-~]+?)/[A-Z]+(?:/(?P<view>[^:]+?))?(?: \((?:un)?signed\))?: (?P<text>.*)", re.DOTALL
)
_ZONE_FILE = re.compile(r"(?:dns_\w+: )?(?P<file>[^\s:]+):\d+: .+", re.DOTALL)
_LOADING = re.compile(r"loading from (?:master|primary) file (?P<file>\S+) failed: .*", re.DOTALL)
_LOADED = re.compile(r"loaded serial (?P<serial>\d{1,10})(?: .*)?", re.DOTALL)
_NOT_LOADED = "not loaded due to errors."
_PLACE = re.compile(r"(?!none:)[^\s:]+:\d+: .+", re.DOTALL)  # a configuration file's line
_BAD_WORDS = re.compile(r"\b(?:fail(?:ed|ure)|error|not found|denied|cannot|can't|could not|couldn't|unable)\b")
_IGNORED = ("lame-servers", "query-errors", "queries", "client", "security", "network", "dnssec", "resolver")


class ServerNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a line tells of the server; None each if nothing.

    reload: data of a `bind_reload`. status, reason: of a `bind_status`. outcome: how a reload of the configuration
    ended, whose error lines are in `errors`.
    """

    reload: dict[str, Any] | None = None
    status: Literal["running", "stopped"] | None = None
    version: str | None = None
    reason: str | None = None
    outcome: bool | None = None
    errors: tuple[str, ...] = ()


NO_NEWS = ServerNews()


class ReloadLog:
    """Takes in the lines of one server's logs. mask: takes the secrets out of an error line."""

    def __init__(self, mask: Callable[[str], str] = lambda text: text) -> None:
        self._mask = mask
        self._errors: list[str] = []
        self._omitted_count = 0
        self._zone_errors: dict[str, str] = {}
        self._file_error = ("", "")  # the latest line that tells of a fault in a zone's file: the file, and all of it
        self._is_reading = False
        self._has_reloaded = False
        self._began_at: str | None = None
        self._command: str | None = None
        self._zone_command: str | None = None
        self._is_stopping = False

    def read_line(self, line: LogLine) -> ServerNews | None:
        """What a line tells; NO_NEWS if it belongs to a reload and tells nothing yet; None if it is no such line."""
        message = line.message
        if message.startswith("client "):
            return None
        if (zone := _ZONE.fullmatch(message)) is not None:
            return self._read_zone_line(zone["zone"], zone["view"], zone["text"])
        if (configuration := _CONFIGURATION.fullmatch(message)) is not None:
            return self._end_reload(line, configuration[1] is not None, configuration[2])
        if (zones := _ZONES.fullmatch(message)) is not None:
            return self._make_zones_news(zones[1])
        if (command := _COMMAND.fullmatch(message)) is not None:
            self._begin_command(command["command"])
            return NO_NEWS
        if message.startswith("loading configuration from '"):
            self._begin_reading(line)
            return NO_NEWS
        if message == "received SIGHUP signal to reload zones":
            self._command = "SIGHUP"
            return NO_NEWS
        return self._read_status_line(line) or self._keep_error(line)

    # ------------------------------------------------------------------------------------------ reloads

    def _begin_command(self, command: str) -> None:
        words = command.split()
        self._command = None
        self._zone_command = None
        if words[:1] in (["reload"], ["reconfig"]):
            if len(words) > 1:
                self._zone_command = _name(words[1])
            else:
                self._command = f"rndc {words[0]}"

    def _begin_reading(self, line: LogLine) -> None:
        self._forget_errors()
        self._is_reading = True
        self._began_at = line.timestamp

    def _end_reload(self, line: LogLine, success: bool, reason: str | None) -> ServerNews:
        errors = () if success else (*self._errors, *self._note_omitted())
        data: dict[str, Any] = {"success": success, "message": f"configuration {'loaded' if success else 'refused'}"}
        if self._command is not None:
            data["actor"] = self._command
        if (duration := _measure_ms(self._began_at, line.timestamp)) is not None:
            data["duration_ms"] = duration
        if not success:
            data["error"] = "\n".join(errors) or reason or "unknown"
        self._forget_errors()
        self._has_reloaded = True
        return ServerNews(reload=data, outcome=success, errors=errors or ((reason,) if reason else ()))

    def _make_zones_news(self, reason: str | None) -> ServerNews:
        data: dict[str, Any] = {"success": False, "message": "zones not loaded", "error": reason or "unknown"}
        if self._command is not None:
            data["actor"] = self._command
        return ServerNews(reload=data)

    def _read_zone_line(self, zone: str, view: str | None, text: str) -> ServerNews:
        name = _name(zone)
        data: dict[str, Any] = {"zone": zone} if view is None else {"zone": zone, "view": view}
        if self._zone_command == name:
            data["actor"] = "rndc reload"
        if text == _NOT_LOADED:
            error = self._zone_errors.pop(name, text)
            self._end_zone_command(name)
            return ServerNews(reload={**data, "success": False, "message": "zone not loaded", "error": error})
        if _LOADED.fullmatch(text) is not None:
            self._zone_errors.pop(name, None)
            if self._zone_command == name:
                self._end_zone_command(name)
                return ServerNews(reload={**data, "success": True, "message": text})
        elif _BAD_WORDS.search(text) is not None:
            if name not in self._zone_errors and len(self._zone_errors) >= ERRORS:
                self._zone_errors.pop(next(iter(self._zone_errors)))
            error = self._mask(text)[:ERROR_CHARACTERS]
            if (loading := _LOADING.fullmatch(text)) is not None and loading["file"] == self._file_error[0]:
                error = f"{self._file_error[1]}\n{error}"
            self._zone_errors[name] = error
        return NO_NEWS

    def _end_zone_command(self, name: str) -> None:
        if self._zone_command == name:
            self._zone_command = None

    def _keep_error(self, line: LogLine) -> ServerNews | None:
        """Keeps a line of what may become a failure."""
        if (place := _ZONE_FILE.fullmatch(line.message)) is not None:
            self._file_error = (place["file"], self._mask(line.message)[:ERROR_CHARACTERS])
        if not self._is_reading:
            return None if line.category not in ("general", "config", "zoneload") else NO_NEWS
        if line.severity is not None:
            is_error = line.severity in ("error", "critical")
        else:
            is_error = _PLACE.fullmatch(line.message) is not None or _BAD_WORDS.search(line.message) is not None
        if not is_error or line.category in _IGNORED:
            return NO_NEWS
        if len(self._errors) < ERRORS:
            self._errors.append(self._mask(line.message)[:ERROR_CHARACTERS])
        else:
            self._omitted_count += 1
        return NO_NEWS

    def _note_omitted(self) -> tuple[str, ...]:
        return (f"… and {self._omitted_count} more",) if self._omitted_count else ()

    def _forget_errors(self) -> None:
        self._errors = []
        self._omitted_count = 0
        self._is_reading = False

    # ------------------------------------------------------------------------------------------ status

    def _read_status_line(self, line: LogLine) -> ServerNews | None:
        message = line.message
        if message == "running":
            was_start, self._has_reloaded, self._is_stopping = not self._has_reloaded, False, False
            return ServerNews(status="running", reason="started") if was_start else NO_NEWS
        if (starting := _VERSION.fullmatch(message)) is not None:
            self._has_reloaded = False
            return ServerNews(version=starting["version"])
        if message.startswith("shutting down"):
            self._is_stopping = True
            return ServerNews(status="stopped", reason="shutting down")
        if (exiting := _EXIT.fullmatch(message)) is not None:
            reason = exiting["reason"]
            errors = (*self._errors, *self._note_omitted())
            is_told, self._is_stopping, self._has_reloaded = self._is_stopping and reason is None, False, False
            self._forget_errors()
            if is_told:
                return NO_NEWS
            text = "\n".join([reason or "exited", *errors])
            return ServerNews(status="stopped", reason=text)
        return None


def _name(zone: str) -> str:
    return zone.lower().removesuffix(".")


def _measure_ms(began_at: str | None, ended_at: str | None) -> float | None:
    if began_at is None or ended_at is None:
        return None
    duration = datetime.fromisoformat(ended_at) - datetime.fromisoformat(began_at)
    ms = duration.total_seconds() * 1000
    return round(ms, 1) if 0 <= ms < 3_600_000 else None
