"""Logging never ends a process."""

from __future__ import annotations

import subprocess
import sys


def test_a_full_log_disk_costs_lines_and_nothing_else() -> None:
    """A process whose standard error can't be written goes on."""
    code = (
        "from solowire.runtime import logging as logs; import structlog; logs.configure('info', 'json', role='x');"
        "structlog.get_logger('a').error('lost'); structlog.get_logger('a').critical('lost'); print('alive')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, timeout=30)
    assert done.stdout == "alive\n"
