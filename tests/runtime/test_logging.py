"""Logging never ends a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_a_full_log_disk_costs_lines_and_nothing_else() -> None:
    """A process whose standard error can't be written goes on."""
    code = (
        "from solowire.runtime import logging as logs; import structlog; logs.configure('info', 'json', role='x');"
        "structlog.get_logger('a').error('lost'); structlog.get_logger('a').critical('lost'); print('alive')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, timeout=30)
    assert done.stdout == "alive\n"


@pytest.mark.parametrize("format", ["json", "console"])
def test_what_libraries_and_the_sdk_say_is_a_line_as_ours_are(format: str) -> None:
    """With the process's own fields, and once where several lanes say it; an unexpected error keeps its trace."""
    code = (
        "from solowire.runtime import logging as logs; import logging; logs.configure('info', 'FORMAT', role='x')\n"
        "log = logging.getLogger('solowire.publisher')\n"
        "for count in (33, 2): log.error('stopped with %d events unsent', count)\n"
        "try: 1 / 0\nexcept ZeroDivisionError: logging.getLogger('asyncio').exception('a task failed')"
    ).replace("FORMAT", format)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    if format == "json":
        first, second = map(json.loads, done.stderr.splitlines())
        assert first.items() >= {"event": "stopped with 33 events unsent", "logger": "solowire.publisher"}.items()
        assert first.items() >= {"role": "x", "level": "error"}.items()
        assert "ZeroDivisionError" in second["exception"]
    else:
        assert done.stderr.count("events unsent") == 1
        assert "ZeroDivisionError" in done.stderr
