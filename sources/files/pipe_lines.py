"""Lines of what comes through a pipe: plain ones, or the entries of `journalctl -o export` as lines of syslog.

Pure: bytes in, text out. What it holds is bounded: a line, and a field of an entry, of more than MAX_BYTES is dropped
and counted without being held.
"""

from __future__ import annotations

from datetime import UTC, datetime
from struct import Struct

MAX_BYTES = 64 * 1024
_EXPORT = b"__CURSOR="
"""What the first entry of journald's export format begins with, and no line of a log."""
_SIZE = Struct("<Q")
_LATEST_US = 253_402_300_799_000_000
"""Microseconds of the year 9999's end; a time beyond it is none."""
_UNKNOWN_PROGRAM = "named"


class PipeLines:
    """Cuts a stream into lines. dropped_count: lines, or entries, that were too long."""

    def __init__(self) -> None:
        self.dropped_count = 0
        self._held = b""
        self._is_export: bool | None = None
        self._is_too_long = False
        self._is_passing_line = False  # the rest of a line that was too long
        self._skipped = 0  # bytes of a field of an entry that are still to be passed over
        self._fields: dict[bytes, bytes] = {}

    def feed(self, piece: bytes) -> list[str]:
        """The lines that are complete with these bytes."""
        self._held += piece
        if self._is_export is None:
            if len(self._held) < len(_EXPORT) and _EXPORT.startswith(self._held):
                return []
            self._is_export = self._held.startswith(_EXPORT)
        return self._cut_entries() if self._is_export else self._cut_lines()

    def end(self) -> list[str]:
        """The last line, if it has no end; an entry that has none is no entry."""
        held, self._held = self._held, b""
        if self._is_export or self._is_too_long or not held:
            return []
        return [held.decode("utf-8", "replace")]

    # ------------------------------------------------------------------------------------------ plain lines

    def _cut_lines(self) -> list[str]:
        *whole, self._held = self._held.split(b"\n")
        lines = []
        for line in whole:
            if self._is_too_long or len(line) > MAX_BYTES:
                self.dropped_count += 1
                self._is_too_long = False
            else:
                lines.append(line.decode("utf-8", "replace"))
        if len(self._held) > MAX_BYTES:
            self._held, self._is_too_long = b"", True
        return lines

    # ------------------------------------------------------------------------------------------ entries of journald

    def _cut_entries(self) -> list[str]:
        """A field is `NAME=value`, or a name, a size of eight bytes and data; an empty line ends an entry."""
        lines = []
        position, data = 0, self._held
        while True:
            if self._skipped:
                passed = min(self._skipped, len(data) - position)
                self._skipped -= passed
                position += passed
            end = data.find(b"\n", position)
            if end < 0:
                break
            field = data[position:end]
            if self._is_passing_line:
                self._is_passing_line = False
            elif b"=" in field:
                name, _, value = field.partition(b"=")
                self._keep_field(name, value)
            elif not field:
                if (line := self._end_entry()) is not None:
                    lines.append(line)
            else:
                start = end + 1 + _SIZE.size
                if len(data) < start:
                    break
                (size,) = _SIZE.unpack_from(data, end + 1)
                if size > MAX_BYTES:
                    self._is_too_long = self._is_too_long or field == b"MESSAGE"
                    self._skipped, position = size + 1, start
                    continue
                end = start + size
                if len(data) <= end:
                    break
                self._keep_field(field, data[start:end])
            position = end + 1
        self._held = data[position:]
        if len(self._held) > 2 * MAX_BYTES:  # a field in one line, which has no end yet
            self._held, self._is_too_long, self._is_passing_line = b"", True, True
        return lines

    def _keep_field(self, name: bytes, value: bytes) -> None:
        if name in (b"MESSAGE", b"__REALTIME_TIMESTAMP", b"SYSLOG_IDENTIFIER"):
            self._fields[name] = value

    def _end_entry(self) -> str | None:
        """The entry as a line of syslog; None if it has no message."""
        fields, self._fields = self._fields, {}
        is_too_long, self._is_too_long = self._is_too_long, False
        message = fields.get(b"MESSAGE")
        if is_too_long or message is None or len(message) > MAX_BYTES:
            self.dropped_count += is_too_long or message is not None
            return None
        text = message.decode("utf-8", "replace")
        time = fields.get(b"__REALTIME_TIMESTAMP", b"")
        if not (time.isdigit() and len(time) < 20 and int(time) <= _LATEST_US):
            return text
        program = fields.get(b"SYSLOG_IDENTIFIER", b"").decode("utf-8", "replace")
        if not (program.isascii() and program.replace("-", "").replace("_", "").isalnum()):
            program = _UNKNOWN_PROGRAM
        moment = datetime.fromtimestamp(int(time) // 1_000_000, UTC).replace(microsecond=int(time) % 1_000_000)
        return f"{moment.isoformat(timespec='microseconds')} {program}: {text}"
