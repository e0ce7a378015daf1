"""What tests need of the machine. Where it is missing they are skipped, and fail where the variable CI is set.

CI installs every program and runs as root, so that there a skip would hide that nothing was tested. What cannot be
installed, such as IPv6 or a newer kernel, is no requirement of this kind: tests that need it are skipped everywhere.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

_PLACES = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin")


def find_program(name: str) -> str | None:
    """A program of this environment or of the machine; Debian's sbin isn't in everyone's PATH."""
    return shutil.which(name, path=os.pathsep.join(_PLACES))


def need_program(name: str) -> str:
    """Where it is. Skips or fails the test that runs, or that a fixture is made for, where it is missing."""
    if (found := find_program(name)) is None:
        reject_machine(_describe_missing(name))
    return found


def needs(*programs: str) -> pytest.MarkDecorator:
    """The mark of tests that run these programs."""
    missing = [name for name in programs if find_program(name) is None]
    return needs_that(not missing, _describe_missing(*missing))


def needs_that(is_so: bool, reason: str) -> pytest.MarkDecorator:
    """The mark of tests that need something else; `reason` says what."""
    return pytest.mark.needs(is_so, reason)


def check_requirements(item: pytest.Item) -> None:
    """Skips or fails a test whose marks ask for what this machine has not."""
    for mark in item.iter_markers("needs"):
        is_so, reason = mark.args
        if not is_so:
            reject_machine(reason)


def reject_machine(reason: str) -> NoReturn:
    """Skips the test that runs, or fails it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a skip is a failure where CI is set)", pytrace=False)
    pytest.skip(reason)


def _describe_missing(*names: str) -> str:
    return f"needs {' and '.join(names)}: `make install` and .ci/system-packages install all programs of tests"


NEEDS_ROOT = needs_that(os.geteuid() == 0, "needs root's rights")
