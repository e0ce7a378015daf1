"""Logs: structlog to standard error, coloured lines on a terminal, JSON lines elsewhere; one event per line.

What it keeps true: no process waits for whoever reads its log, and none ends for want of it. A thread writes; lines
that can't be written in time are lost, and the next one that is written says how many.
"""

from __future__ import annotations

import atexit
import io
import logging
import sys
import time

import structlog

from solowire.algorithms.warning_pace import WarningPace
from solowire.runtime.line_writer import LineWriter, StderrSink

_FLUSH_SECONDS = 1.0


class _LogWriter:
    """The one writer of this process, made when the first line is written."""

    def __init__(self) -> None:
        self._writer: LineWriter | None = None

    def write(self, text: str) -> None:
        if self._writer is None:
            self._writer = LineWriter(StderrSink(), time.monotonic, name="log", gather_s=0.0, lost=_report_lost)
            atexit.register(self.flush)
        for line in text.splitlines():
            self._writer.write_line(line.encode(errors="backslashreplace"))

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush(_FLUSH_SECONDS)


_log = _LogWriter()


def write(text: str) -> None:
    """Writes lines to standard error without waiting for whoever reads it."""
    _log.write(text)


def flush() -> None:
    """Waits a moment until what was logged is written: before a sudden end."""
    _log.flush()


class _LoggerFactory:
    def __call__(self, *_: object) -> structlog.typing.WrappedLogger:
        return _Logger()


class _Logger:
    """structlog's logger beneath."""

    def msg(self, message: str) -> None:
        write(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


class _LogStream(io.TextIOBase):
    """What the standard library's logging, and so other libraries, write to."""

    def write(self, text: str) -> int:
        if text.strip():
            write(text)
        return len(text)


class _Repetitions(logging.Filter):
    """Passes on of what the SDK says over and over what is new: the lanes of a source have one trouble between them."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = WarningPace()

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("solowire.") or self._pace.is_due(record.getMessage(), time.monotonic())


def set_level(level: str) -> None:
    """From now on this and what is above it is logged. Loggers that have logged already keep their level."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())))


def _report_lost(reason: str, lost: int) -> None:
    structlog.get_logger("solowire.logs").error("log_lines_dropped", reason=reason, lost=lost)


def configure(level: str, format: str | None, **context: object) -> None:
    """Sets logging up for this process. context: on every line, such as `role="shard"`."""
    console = format == "console" or (format is None and sys.stderr.isatty())
    added: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*added, render],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)
    of_others = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*added, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )
    handler = logging.StreamHandler(_LogStream())
    handler.setFormatter(of_others)
    handler.addFilter(_Repetitions())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
