"""Logs: structlog to standard error, coloured lines on a terminal, JSON lines elsewhere; one event per line."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import structlog


class _Factory:
    """Loggers that lose a line rather than end the process: the disk that is full may be the log's."""

    def __call__(self, *_: object) -> structlog.PrintLogger:
        return _Logger(sys.stderr)


class _Logger(structlog.PrintLogger):
    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure(level: str, format: str | None, **context: object) -> None:
    """Sets logging up for this process. context: on every line, such as `role="shard"`."""
    console = format == "console" or (format is None and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if console
            else structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Factory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s", force=True)
